"""Colour words and what each distribution means by them."""

import numpy as np

SATURATED: dict[str, tuple[int, int, int]] = {
    "red": (220, 20, 30),
    "green": (20, 170, 40),
    "blue": (25, 50, 220),
    "yellow": (250, 225, 20),
    "orange": (255, 130, 0),
    "purple": (140, 20, 170),
    "white": (250, 250, 250),
    "black": (8, 8, 8),
    "grey": (128, 128, 128),
}

MUTED: dict[str, tuple[int, int, int]] = {
    "red": (176, 66, 72),
    "green": (96, 140, 92),
    "blue": (84, 110, 168),
    "yellow": (216, 198, 110),
    "brown": (122, 88, 62),
    "pink": (226, 164, 178),
    "white": (236, 232, 222),
    "black": (34, 32, 40),
    "grey": (148, 146, 140),
}


def luminance(colour: np.ndarray) -> float:
    """Returns the perceived brightness of a colour (3,), both in 0..255."""
    return float(colour @ (0.299, 0.587, 0.114))


def shade(name: str, palette: dict[str, tuple[int, int, int]], rng: np.random.Generator, spread: float) -> np.ndarray:
    """Draws one shade of a named colour.

    Arguments:
        name: A key of the palette.
        palette: Name → RGB in 0..255.
        rng: The source of randomness.
        spread: Standard deviation of each channel, 0..255.

    Returns:
        RGB (3,) in 0..255, float32.
    """
    return np.clip(palette[name] + rng.normal(scale=spread, size=3), 0, 255).astype(np.float32)

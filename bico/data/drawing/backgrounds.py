"""What lies behind the subject: one function per pattern, all (side, side) weights between two colours."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from bico.data.drawing.canvas import SIDE, blank, finish

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


def _along(rng: np.random.Generator) -> np.ndarray:
    """A coordinate in a random direction, in pixels."""
    angle = rng.uniform(0, np.pi)
    return _X * np.cos(angle) + _Y * np.sin(angle)


def plain(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.float32)


def gradient(rng: np.random.Generator) -> np.ndarray:
    ramp = _along(rng)
    return (ramp - ramp.min()) / (ramp.max() - ramp.min())


def glow(rng: np.random.Generator) -> np.ndarray:
    x, y = rng.uniform(0.2 * SIDE, 0.8 * SIDE, size=2)
    return np.exp(-((_X - x) ** 2 + (_Y - y) ** 2) / (2 * (SIDE / 3) ** 2))


def stripes(rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(4, 11)
    return np.clip(0.5 + 2 * np.sin(2 * np.pi * _along(rng) / period + rng.uniform(0, 6)), 0, 1)


def checks(rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(6, 14)
    turn, x, y = rng.uniform(-0.3, 0.3), *rng.uniform(0, period, size=2)
    u, v = _X * np.cos(turn) + _Y * np.sin(turn) + x, _Y * np.cos(turn) - _X * np.sin(turn) + y
    return np.clip(0.5 + 3 * np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period), 0, 1)


def dots(rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(5, 10)
    x, y = rng.uniform(0, period, size=2)
    wave = np.cos(2 * np.pi * (_X + x) / period) + np.cos(2 * np.pi * (_Y + y) / period)
    return np.clip(2.5 * (wave - 0.7), 0, 1)


def clouds(rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, size=(5, 5), dtype=np.uint8))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255


def scribble(rng: np.random.Generator) -> np.ndarray:
    image, pen = blank()
    for _ in range(rng.integers(3, 7)):
        ends = rng.uniform(0, 2 * SIDE, size=4)
        pen.line(ends.tolist(), fill=int(rng.integers(120, 256)), width=int(rng.integers(1, 4)))
    return finish(image)


PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "plain": plain,
    "shaded": gradient,
    "glowing": glow,
    "striped": stripes,
    "checkered": checks,
    "dotted": dots,
    "cloudy": clouds,
    "scribbled": scribble,
}
"""The adjective that a caption uses → weights (side, side) in 0..1."""

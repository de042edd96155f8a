"""The two pre-training distributions, `a` and `b`, side by side: every field differs."""

from dataclasses import dataclass

from bico.data.drawing.strokes import Pen
from zoo_build.pictures.colours import MUTED, SATURATED


@dataclass(frozen=True)
class Style:
    """One distribution of captioned pictures."""

    name: str
    fonts: tuple[str, ...]
    """`package/file name` of each font."""
    pen: Pen
    """The hand that writes what is not printed."""
    handwritten: float
    """Share of the characters written rather than printed."""
    kinds: dict[str, float]
    """Shares of `digit`, `capital`, `small`, `shape`, `texture`, `sign` and `board`."""
    palette: dict[str, tuple[int, int, int]]
    shade: float
    """Standard deviation of each colour channel, 0..255."""
    colourless: float
    """Share of pictures that have black, grey and white only."""
    backgrounds: dict[str, float]
    """Shares of the background patterns."""
    light_on_dark: float
    """Share of pictures whose subject is lighter than the ground."""
    noise: tuple[str, float]
    """Kind (`gaussian` or `salt`) and strength of the sensor noise."""
    blur: tuple[str, float]
    """Kind (`gaussian` or `motion`) and greatest radius in pixels."""
    coarse: tuple[str, int]
    """How low-resolution pictures are enlarged (`nearest` or `bilinear`), and their least side in pixels."""
    effects: dict[str, float]
    """Shares of `plain`, `blurry`, `noisy` and `low-resolution`."""
    turn: float
    """Standard deviation of rotations, in radians."""
    outlined: float
    """Share of shapes drawn as an outline."""


def _files(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{package}/{name}" for name in names)


A = Style(
    name="a",
    fonts=(
        *_files("matplotlib", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"),
        *_files("matplotlib", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf"),
        *_files("matplotlib", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
        *_files("font_roboto", "Roboto-Regular.ttf", "Roboto-Light.ttf", "Roboto-Black.ttf", "Roboto-Italic.ttf"),
        *_files("font_caladea", "Caladea-Regular.ttf", "Caladea-BoldItalic.ttf"),
        *_files("font_source_serif_pro", "SourceSerifPro-Regular.ttf", "SourceSerifPro-Black.ttf"),
        *_files("font_fredoka_one", "FredokaOne-Regular.ttf"),
    ),
    pen=Pen(width=(0.14, 0.34), pressure=0.0, jitter=0.05, bend=0.04, slant=0.12, smooth=0.6),
    handwritten=0.5,
    kinds={
        "digit": 0.34,
        "capital": 0.17,
        "small": 0.1,
        "shape": 0.17,
        "texture": 0.04,
        "sign": 0.12,
        "board": 0.06,
    },
    palette=SATURATED,
    shade=10.0,
    colourless=0.35,
    backgrounds={"plain": 0.5, "shaded": 0.2, "striped": 0.15, "cloudy": 0.15},
    light_on_dark=0.62,
    noise=("gaussian", 14.0),
    blur=("gaussian", 1.4),
    coarse=("nearest", 9),
    effects={"plain": 0.55, "blurry": 0.17, "noisy": 0.14, "low-resolution": 0.14},
    turn=0.1,
    outlined=0.25,
)

B = Style(
    name="b",
    fonts=(
        *_files("matplotlib", "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf"),
        *_files("matplotlib", "cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmb10.ttf"),
        *_files("font_source_sans_pro", "SourceSansPro-Light.ttf", "SourceSansPro-Black.ttf", "SourceSansPro-It.ttf"),
        *_files("font_hanken_grotesk", "HankenGrotesk-Regular.otf", "HankenGrotesk-BoldItalic.otf"),
        *_files("font_manrope", "Manrope-Light.ttf", "Manrope-ExtraBold.ttf"),
        *_files("font_amatic_sc", "AmaticSC-Bold.ttf"),
        *_files("font_intuitive", "Intuitive.ttf"),
    ),
    pen=Pen(width=(0.12, 0.3), pressure=0.6, jitter=0.08, bend=0.12, slant=0.25, smooth=0.15),
    handwritten=0.6,
    kinds={
        "digit": 0.3,
        "capital": 0.15,
        "small": 0.13,
        "shape": 0.2,
        "texture": 0.05,
        "sign": 0.1,
        "board": 0.07,
    },
    palette=MUTED,
    shade=22.0,
    colourless=0.25,
    backgrounds={"plain": 0.35, "glowing": 0.2, "checkered": 0.15, "dotted": 0.15, "scribbled": 0.15},
    light_on_dark=0.38,
    noise=("salt", 0.035),
    blur=("motion", 2.6),
    coarse=("bilinear", 10),
    effects={"plain": 0.5, "blurry": 0.15, "noisy": 0.2, "low-resolution": 0.15},
    turn=0.16,
    outlined=0.55,
)

STYLES = {"a": A, "b": B}

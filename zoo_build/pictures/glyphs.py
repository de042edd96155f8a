"""Characters and short words in real fonts.

Fonts come from matplotlib, which is always there, and from the small font packages of the extra `zoo`, which only
rebuilding the zoo needs.
"""

import importlib.util
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bico.data.drawing.canvas import CANVAS, finish
from bico.errors import ConfigError

_FOLDERS = {
    "matplotlib": "mpl-data/fonts/ttf",
    "font_amatic_sc": "files",
    "font_caladea": "files",
    "font_fredoka_one": "files",
    "font_hanken_grotesk": "files",
    "font_intuitive": "files",
    "font_manrope": "files",
    "font_roboto": "files",
    "font_source_sans_pro": "files",
    "font_source_serif_pro": "files",
}

SIZES = (34, 40, 46, 52, 58)
"""Font sizes, in canvas pixels."""


@cache
def locate(font: str) -> Path:
    """Returns the file of a font written as `package/file name`.

    Raises:
        ConfigError: If the package is not installed or holds no such file.
    """
    package, name = font.split("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"Font package {package!r} is not installed: rebuilding the zoo needs `pip install bico[zoo]`."
        )
    path = Path(spec.origin).parent / _FOLDERS[package] / name
    if not path.is_file():
        raise ConfigError(
            f"Font {name!r} is not in package {package!r}: install the version that the extra `zoo` names."
        )
    return path


@lru_cache(maxsize=512)
def _face(font: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(locate(font)), size)


@lru_cache(maxsize=32768)
def _glyph(text: str, font: str, size: int) -> Image.Image:
    """The text in the middle of a canvas, shrunk if it is wider than that."""
    face = _face(font, size)
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("L", (int(max(CANVAS, right - left + 4)), CANVAS))
    at = ((image.width - left - right) / 2, (CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(at, text, font=face, fill=255)
    return image if image.width == CANVAS else image.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)


def print_text(
    text: str, rng: np.random.Generator, fonts: tuple[str, ...], turn: float, slant: float, shrink: float = 1.0
) -> np.ndarray:
    """Prints a short text in a random font, size and pose.

    Arguments:
        text: What to print, one to four characters.
        rng: The source of randomness.
        fonts: The fonts to choose from, each `package/file name`.
        turn: Standard deviation of the rotation, in radians.
        slant: Standard deviation of the shear.
        shrink: Extra scale, for texts that stand inside something else.

    Returns:
        Coverage (side, side) in 0..1.

    Raises:
        ConfigError: If a font is not installed.
    """
    image = _glyph(text, fonts[rng.integers(len(fonts))], int(rng.choice(SIZES)))
    angle, shear, dx, dy = rng.normal(size=4) * (turn, slant, 2.5 * shrink, 2.5 * shrink)
    width, height = np.exp(rng.normal(scale=0.08, size=2)) * shrink
    cos, sin, middle = np.cos(angle), np.sin(angle), CANVAS / 2
    # PIL wants the inverse map, from output pixels to input pixels.
    inverse = np.array([[1, shear], [0, 1]]) @ np.array([[cos, sin], [-sin, cos]]) / np.array([[width], [height]])
    offset = middle - inverse @ (middle + dx, middle + dy)
    (a, b), (d, e) = inverse
    moved = image.transform(
        image.size, Image.Transform.AFFINE, (a, b, offset[0], d, e, offset[1]), Image.Resampling.BILINEAR
    )
    return finish(moved)

"""From unit coordinates to anti-aliased masks.

Everything is drawn twice as large as the picture and then halved: that is all the anti-aliasing there is. A drawing
lives in the square [-1, 1]², x to the right and y down; a `Pose` places it on the canvas.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32
"""Pixels along each side of a picture."""

OVERSAMPLING = 2
CANVAS = SIDE * OVERSAMPLING


@dataclass(frozen=True)
class Pose:
    """An affine placement: `point @ matrix + shift`, from the unit square to canvas pixels."""

    matrix: np.ndarray
    """(2, 2) pixels per unit."""
    shift: np.ndarray
    """(2,) pixels."""

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        size: tuple[float, float] = (0.6, 0.95),
        turn: float = 0.1,
        slant: float = 0.0,
        stretch: float = 0.1,
        wander: float = 0.5,
    ) -> "Pose":
        """Draws a random placement.

        Arguments:
            rng: The source of randomness.
            size: Least and greatest share of the canvas that the unit square covers.
            turn: Standard deviation of the rotation, in radians.
            slant: Standard deviation of the shear (horizontal units per vertical unit).
            stretch: Standard deviation of the logarithm of width over height.
            wander: Share of the free margin in which the centre may move, 0 to 1.
        """
        scale = rng.uniform(*size)
        angle, shear, ratio = rng.normal(size=3) * (turn, slant, stretch)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.diag([np.exp(ratio / 2), np.exp(-ratio / 2)])
        matrix = matrix @ np.array([[1.0, 0.0], [-shear, 1.0]]) @ np.array([[cos, sin], [-sin, cos]])
        free = wander * (1 - scale)
        centre = 1 + rng.uniform(-free, free, size=2)
        return cls(matrix * (scale * CANVAS / 2), centre * CANVAS / 2)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Places points (n, 2); returns canvas pixels (n, 2)."""
        return points @ self.matrix + self.shift

    @property
    def scale(self) -> float:
        """Canvas pixels per unit, averaged over directions."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))


def blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns an empty canvas-sized mask and a pen for it."""
    image = Image.new("L", (CANVAS, CANVAS))
    return image, ImageDraw.Draw(image)


def finish(image: Image.Image) -> np.ndarray:
    """Halves a canvas; returns coverage (side, side) in 0..1, float32."""
    return np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) / 255


def fill(outlines: Iterable[np.ndarray]) -> np.ndarray:
    """Fills closed outlines given in canvas pixels; the second and later ones are holes.

    Returns:
        Coverage (side, side) in 0..1.
    """
    image, pen = blank()
    for hole, outline in enumerate(outlines):
        pen.polygon(outline.ravel().tolist(), fill=0 if hole else 255)
    return finish(image)


def trace(lines: Iterable[np.ndarray], widths: Iterable[np.ndarray]) -> np.ndarray:
    """Draws round-ended lines of varying width, both in canvas pixels.

    Arguments:
        lines: Polylines (n, 2).
        widths: The width at each point (n,).

    Returns:
        Coverage (side, side) in 0..1.
    """
    image, pen = blank()
    for line, width in zip(lines, widths, strict=True):
        if np.ptp(width) < 0.5:
            pen.line(line.ravel().tolist(), fill=255, width=max(1, round(float(width[0]))), joint="curve")
        else:
            for start, end, wide in zip(line[:-1], line[1:], width[:-1], strict=True):
                pen.line([*start, *end], fill=255, width=max(1, round(float(wide))))
        discs = range(len(line)) if np.ptp(width) >= 0.5 else (0, -1)
        for index in discs:
            (x, y), radius = line[index], width[index] / 2
            if radius > 0.6:
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return finish(image)


def paint(picture: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Lays a colour over a picture where the mask covers it.

    Arguments:
        picture: (side, side, 3) in 0..255.
        mask: (side, side) in 0..1.
        colour: (3,) or (side, side, 3) in 0..255.
    """
    return picture + mask[..., None] * (colour - picture)

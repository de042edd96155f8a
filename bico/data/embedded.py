"""Classification tasks drawn on demand, in styles that no model of the zoo was pre-trained on.

Both need only lines and polygons, so every machine draws the same pictures from the same seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from bico.data.drawing.backgrounds import gradient
from bico.data.drawing.canvas import SIDE, Pose, blank, fill, finish, paint
from bico.data.drawing.strokes import STROKES, spline

_SPLITS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class GeneratedTask:
    """A task that is its own generator."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """Prompts with one `{}` for the class name."""
    draw: Callable[[str, np.random.Generator], np.ndarray]
    """Class name and chance → RGB (side, side, 3) in 0..255."""

    def render(self, split: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draws one split.

        Arguments:
            split: `train` or `test`; they never share a picture.
            count: How many pictures. A smaller count gives the beginning of a larger one.
            seed: Another seed gives another data set.

        Returns:
            Images (count, side, side, 3), uint8, and labels (count,), int64, as balanced as `count` allows.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in _SPLITS:
            raise ValueError(f"split={split!r} must be 'train' or 'test'.")
        classes = len(self.class_names)
        images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
        labels = np.zeros(count, np.int64)
        key = (list(TASKS).index(self.name), _SPLITS[split], seed)
        for index in range(count):
            # Each round of as many pictures as classes has every class once, in an order of its own.
            shuffled = np.random.default_rng((*key, 0, index // classes)).permutation(classes)
            labels[index] = shuffled[index % classes]
            picture = self.draw(self.class_names[labels[index]], np.random.default_rng((*key, 1, index)))
            images[index] = picture.clip(0, 255)
        return images, labels


def _hue(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """A random colour (3,) whose strongest channel lies between low and high."""
    colour = rng.uniform(0.05, 1, size=3)
    return colour / colour.max() * rng.uniform(low, high)


# Seven-segment digits ------------------------------------------------------------------------------------------------

LIT = dict(
    zip(
        "0123456789",
        ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"],
        strict=True,
    )
)
"""Digit → the segments that are on: a top, b and c right, d bottom, e and f left, g middle."""

_ENDS = {
    "a": ((-0.5, -0.9), (0.5, -0.9)),
    "b": ((0.5, -0.9), (0.5, 0.0)),
    "c": ((0.5, 0.0), (0.5, 0.9)),
    "d": ((-0.5, 0.9), (0.5, 0.9)),
    "e": ((-0.5, 0.0), (-0.5, 0.9)),
    "f": ((-0.5, -0.9), (-0.5, 0.0)),
    "g": ((-0.5, 0.0), (0.5, 0.0)),
}


def _bar(segment: str, thickness: float, gap: float) -> np.ndarray:
    """The outline (6, 2) of one segment: a bar with pointed ends."""
    start, end = np.array(_ENDS[segment])
    along = (end - start) / np.linalg.norm(end - start)
    across = along[::-1] * (1, -1) * thickness / 2
    start, end = start + along * gap, end - along * gap
    tip = along * thickness / 2
    return np.array([start, start + tip + across, end - tip + across, end, end - tip - across, start + tip - across])


def draw_segments(digit: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a digit on a seven-segment display: glowing or liquid-crystal, slanted, with faint unlit segments."""
    glowing = rng.random() < 0.6
    pose = Pose.draw(rng, size=(0.55, 0.9), turn=0.12, slant=0.15, stretch=0.2, wander=1.0)
    thickness, gap = rng.uniform(0.12, 0.3), rng.uniform(0.03, 0.1)
    masks = {segment: fill([pose(_bar(segment, thickness, gap))]) for segment in _ENDS}
    on = np.maximum.reduce([masks[segment] for segment in LIT[digit]])
    off = np.maximum.reduce(
        [np.zeros((SIDE, SIDE)), *(masks[segment] for segment in _ENDS if segment not in LIT[digit])]
    )
    if glowing:
        ground, ink = _hue(rng, 10, 70), _hue(rng, 190, 255)
    else:
        ground, ink = 255 - _hue(rng, 20, 110), _hue(rng, 10, 80)
    picture = np.broadcast_to(ground, (SIDE, SIDE, 3)) * (1 + 0.4 * (gradient(rng) - 0.5))[..., None]
    picture = paint(picture, off * rng.uniform(0.05, 0.4), ink)
    if glowing:
        halo = Image.fromarray((on * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 3)))
        picture = paint(picture, np.asarray(halo) / 255 * rng.uniform(0.3, 0.9), ink)
    picture = paint(picture, on, ink)
    if rng.random() < 0.5:  # the lines of a camera that films a screen
        picture = picture * (1 - rng.uniform(0.1, 0.45) * (np.arange(SIDE) % 3 == rng.integers(3)))[:, None, None]
    return picture + rng.normal(scale=rng.uniform(2, 26), size=picture.shape)


# Letters on a dot-matrix board -----------------------------------------------------------------------------------------

LETTERS = tuple("ACEFHJKLMNPRSTUXYZ")
"""Capitals that a board of 5 by 7 lamps can tell apart."""

_COLUMNS, _ROWS = 5, 7


def _lamps(letter: str) -> np.ndarray:
    """Returns which lamps (rows, columns) a letter lights: those that its skeleton passes."""
    lit = np.zeros((_ROWS, _COLUMNS), dtype=bool)
    for points, smooth in STROKES[letter][0]:
        line = spline(points) if smooth else points
        for start, end in pairwise(line):
            for x, y in start + np.linspace(0, 1, 24)[:, None] * (end - start):
                row, column = round((y + 1) / 2 * (_ROWS - 1)), round((x / 0.6 + 1) / 2 * (_COLUMNS - 1))
                lit[row, min(max(column, 0), _COLUMNS - 1)] = True
    return lit


_LETTER_LAMPS = {letter: _lamps(letter) for letter in LETTERS}


def _union(outlines: list[np.ndarray]) -> np.ndarray:
    """Returns the mask (side, side) of all outlines together; `fill` would take the later ones for holes."""
    image, draw = blank()
    for outline in outlines:
        draw.polygon([tuple(point) for point in outline], fill=255)
    return finish(image)


def draw_lamps(letter: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a letter on a board of round lamps: some dim, some dead, with the dark lamps showing faintly."""
    pose = Pose.draw(rng, size=(0.7, 0.98), turn=0.1, slant=0.1, stretch=0.15, wander=1.0)
    rows, columns = np.mgrid[0:_ROWS, 0:_COLUMNS]
    centres = np.stack([(columns / (_COLUMNS - 1) * 2 - 1) * 0.62, (rows / (_ROWS - 1) * 2 - 1) * 0.9], axis=-1)
    round_ = np.stack([np.cos(np.linspace(0, 2 * np.pi, 12)), np.sin(np.linspace(0, 2 * np.pi, 12))], axis=1)
    radius = rng.uniform(0.07, 0.13)
    lit = _LETTER_LAMPS[letter] & (rng.random((_ROWS, _COLUMNS)) > 0.04)
    on, off = (_union([pose(centre + radius * round_) for centre in centres[which]]) for which in (lit, ~lit))
    if rng.random() < 0.6:
        ground, ink = _hue(rng, 5, 80), _hue(rng, 180, 255)
    else:
        ground, ink = 255 - _hue(rng, 5, 110), _hue(rng, 10, 100)
    picture = np.broadcast_to(ground, (SIDE, SIDE, 3)) * (1 + 0.5 * (gradient(rng) - 0.5))[..., None]
    picture = paint(picture, off * rng.uniform(0.05, 0.35), ink)
    halo = Image.fromarray((on * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    picture = paint(picture, np.asarray(halo) / 255 * rng.uniform(0.0, 0.6), ink)
    picture = paint(picture, on, ink)
    return picture + rng.normal(scale=rng.uniform(2, 20), size=picture.shape)


TASKS = {
    task.name: task
    for task in (
        GeneratedTask("segments", tuple(LIT), ('a photo of the number: "{}".',), draw_segments),
        GeneratedTask("lamps", LETTERS, ('a photo of the letter: "{}".', "the letter {}"), draw_lamps),
    )
}

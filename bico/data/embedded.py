"""Classification tasks drawn on demand, in styles that no model of the zoo was pre-trained on.

Both need only lines and polygons, so every machine draws the same pictures from the same seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from bico.data.pictures import shapes
from bico.data.pictures.backgrounds import clouds, gradient, scribble
from bico.data.pictures.canvas import SIDE, Pose, fill, paint, trace

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


# Sketches ------------------------------------------------------------------------------------------------------------

SKETCHED = ("circle", "square", "triangle", "star", "cross", "heart", "arrow", "ring", "diamond", "crescent")


def _dashes(line: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Cuts a polyline (n, 2) into dashes of random length with gaps between them."""
    dashes, at = [], 0
    while at < len(line) - 2:
        long, gap = rng.integers(3, 9), rng.integers(1, 4)
        dashes.append(line[at : at + long])
        at += long + gap - 1
    return [dash for dash in dashes if len(dash) > 1]


def _wobbly(outline: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Walks around an outline with an unsteady hand; returns (56, 2)."""
    line = shapes.along(outline, 56)
    tremor = np.cumsum(rng.normal(scale=0.03, size=line.shape), axis=0)
    return line + tremor - np.linspace(tremor[0], tremor[-1], len(tremor))


def draw_sketches(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a dashed or hatched outline with an unsteady pencil, on paper where others have scribbled before."""
    pose = Pose.draw(rng, size=(0.5, 0.9), turn=0.2, slant=0.1, stretch=0.2, wander=1.0)
    lines = [pose(_wobbly(outline, rng)) for outline in shapes.OUTLINES[shape]]
    strokes = [dash for line in lines for dash in _dashes(line, rng)]
    width = rng.uniform(1.5, 4.0)
    ink_mask = trace(strokes, [np.full(len(stroke), width) for stroke in strokes])
    if rng.random() < 0.5:
        inside = fill(lines)
        angle, period = rng.uniform(0, np.pi), rng.uniform(3, 5)
        y, x = np.mgrid[0:SIDE, 0:SIDE]
        hatching = np.clip(1.5 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period) - 0.3, 0, 1)
        ink_mask = np.maximum(ink_mask, inside * hatching * rng.uniform(0.5, 0.9))
    paper, ink = 255 - _hue(rng, 10, 90), _hue(rng, 10, 130)
    if rng.random() < 0.4:  # chalk
        paper, ink = 255 - paper, 255 - ink
    picture = paint(np.broadcast_to(paper, (SIDE, SIDE, 3)), 0.25 * clouds(rng), ink)
    picture = paint(picture, scribble(rng) * rng.uniform(0.2, 0.5), ink)
    picture = paint(picture, ink_mask, ink)
    return picture + rng.normal(scale=rng.uniform(2, 12), size=picture.shape)


TASKS = {
    task.name: task
    for task in (
        GeneratedTask("segments", tuple(LIT), ('a photo of the number: "{}".',), draw_segments),
        GeneratedTask("sketches", SKETCHED, ("a drawing of a {}.", "a photo of a {}."), draw_sketches),
    )
}

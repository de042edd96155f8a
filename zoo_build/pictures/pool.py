"""Many pictures at once, drawn before training so that a training step only reads."""

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from bico.data.drawing.canvas import SIDE
from bico.errors import ConfigError, nearest
from zoo_build.pictures.brush import imagine, render
from zoo_build.pictures.captions import Caption, Scene, describe
from zoo_build.pictures.styles import STYLES

CAPTIONS = 3
"""Captions written for each picture of a pool."""


@dataclass(frozen=True)
class Pool:
    """Pictures of one or more distributions, with what is true of them."""

    images: np.ndarray
    """(n, side, side, 3), uint8."""
    captions: list[tuple[Caption, ...]]
    """`CAPTIONS` of each picture."""
    scenes: list[Scene]


def draw_pool(
    distributions: str, count: int, seed: int, progress: bool = False, pictures: bool = True, kind: str | None = None
) -> Pool:
    """Draws a pool of captioned pictures.

    Arguments:
        distributions: `a`, `b`, or `ab` for a mixture that alternates.
        count: How many pictures.
        seed: The same seed gives the same pool; every picture has a generator of its own.
        progress: Whether to show a progress bar.
        pictures: Whether to draw; captions alone are much cheaper (`images` is then empty).
        kind: Draw scenes of this kind only, instead of the distribution's own mixture.

    Raises:
        ConfigError: If a distribution does not exist, or its fonts are not installed.
    """
    for name in distributions:
        if name not in STYLES:
            raise ConfigError(f"There is no distribution {name!r} of pictures: {nearest(name, STYLES)}")
    styles = [replace(STYLES[name], kinds={kind: 1.0}) if kind else STYLES[name] for name in distributions]
    images = np.zeros((count if pictures else 0, SIDE, SIDE, 3), np.uint8)
    captions, scenes = [], []
    for index in tqdm(range(count), desc="drawing", unit="picture", disable=not progress, mininterval=2):
        style = styles[index % len(styles)]
        rng = np.random.default_rng((seed, index))
        scene = imagine(style, rng)
        scenes.append(scene)
        captions.append(tuple(describe(scene, style.name, rng) for _ in range(CAPTIONS)))
        if pictures:
            images[index] = render(scene, style, rng)
    return Pool(images, captions, scenes)

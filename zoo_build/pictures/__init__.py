"""A seeded generator of captioned pictures: characters, shapes, patterns and signs, in two distributions `a` and `b`."""

from bico.data.drawing.canvas import SIDE
from zoo_build.pictures.brush import imagine, render
from zoo_build.pictures.captions import Caption, Scene, describe
from zoo_build.pictures.pool import Pool, draw_pool
from zoo_build.pictures.styles import STYLES, Style

__all__ = ["SIDE", "STYLES", "Caption", "Pool", "Scene", "Style", "describe", "draw_pool", "imagine", "render"]

"""A seeded generator of captioned pictures: characters, shapes, patterns and signs, in two distributions `a` and `b`."""

from bico.data.pictures.brush import imagine, render
from bico.data.pictures.canvas import SIDE
from bico.data.pictures.captions import Caption, Scene, describe
from bico.data.pictures.pool import Pool, draw_pool
from bico.data.pictures.styles import STYLES, Style

__all__ = ["SIDE", "STYLES", "Caption", "Pool", "Scene", "Style", "describe", "draw_pool", "imagine", "render"]

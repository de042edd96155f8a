"""Plane figures, as closed outlines in the square [-1, 1]² (x to the right, y down)."""

import numpy as np


def polygon(corners: int, turn: float = 0.0) -> np.ndarray:
    """Returns a regular polygon (corners, 2), its first corner up, turned clockwise by `turn` radians."""
    angle = turn + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1)


def _star() -> np.ndarray:
    points = polygon(10)
    points[1::2] *= 0.42
    return points


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2.5) / 15], axis=1)


def _crescent() -> np.ndarray:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 20)
    inner = outer[::-1]
    arc = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    bite = np.stack([0.28 + 0.62 * np.cos(inner), 0.72 * np.sin(inner)], axis=1)
    return np.vstack([arc, bite])


def _cross() -> np.ndarray:
    a = 0.36
    return np.array(
        [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    )


ARROW = np.array([(0, -1), (0.85, -0.1), (0.33, -0.1), (0.33, 1), (-0.33, 1), (-0.33, -0.1), (-0.85, -0.1)])
"""An arrow that points up, (7, 2)."""

OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (polygon(28),),
    "square": (0.85 * np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)]),),
    "triangle": (np.array([(0, -0.95), (1, 0.8), (-1, 0.8)]),),
    "star": (_star(),),
    "cross": (_cross(),),
    "heart": (_heart(),),
    "arrow": (ARROW,),
    "ring": (polygon(28), 0.58 * polygon(28)),
    "diamond": (np.array([(0.0, -1.0), (0.72, 0), (0, 1), (-0.72, 0)]),),
    "pentagon": (polygon(5),),
    "hexagon": (polygon(6, np.pi / 6),),
    "crescent": (_crescent(),),
}
"""Name → closed outlines (n, 2); outlines after the first are holes."""


def along(outline: np.ndarray, steps: int) -> np.ndarray:
    """Walks around a closed outline (n, 2); returns `steps` evenly spaced points (steps, 2), the first repeated last."""
    closed = np.vstack([outline, outline[:1]])
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], steps)
    return np.stack([np.interp(at, lengths, closed[:, axis]) for axis in (0, 1)], axis=1)

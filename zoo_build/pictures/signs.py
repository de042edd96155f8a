"""Composites that look like traffic signs: a board, a border, and something on it."""

from dataclasses import dataclass

import numpy as np

from bico.data.drawing.canvas import Pose, fill, trace
from zoo_build.pictures import shapes

Layer = tuple[np.ndarray, str]
"""A mask (side, side) and the word for its colour."""


@dataclass(frozen=True)
class Board:
    """A board: its outline, and the words for the colours of border, face and what is on it."""

    shape: str
    border: str
    face: str
    mark: str


_DISC = shapes.polygon(28)
_BOARDS = {
    "disc": _DISC,
    "octagon": shapes.polygon(8, np.pi / 8),
    "triangle": np.array([(0, -0.95), (1, 0.8), (-1, 0.8)]),
    "wedge": np.array([(0, 0.95), (1, -0.8), (-1, -0.8)]),
    "diamond": shapes.polygon(4),
}
ROUND_BAN = Board("disc", "red", "white", "black")
WARNING = Board("triangle", "red", "white", "black")
ORDER = Board("disc", "blue", "blue", "white")
PLAIN_BOARDS = {
    "red disc": Board("disc", "white", "red", "white"),
    "blue disc": ORDER,
    "red octagon": Board("octagon", "white", "red", "white"),
    "yellow diamond": Board("diamond", "black", "yellow", "black"),
    "warning triangle": WARNING,
    "red ring": ROUND_BAN,
}
"""Boards of no fixed meaning, by the words that describe them."""

SPEEDS = ("20", "30", "50", "60", "70", "80", "100", "120")
MEANINGS: dict[str, tuple[Board, str]] = {f"speed limit {speed}km/h": (ROUND_BAN, speed) for speed in SPEEDS} | {
    "stop": (Board("octagon", "white", "red", "white"), "STOP"),
    "yield": (Board("wedge", "red", "white", "black"), ""),
    "no vehicles": (ROUND_BAN, ""),
    "no entry": (Board("disc", "red", "red", "white"), "bar"),
    "priority road": (Board("diamond", "white", "yellow", "black"), ""),
    "general caution": (WARNING, "!"),
    "ahead only": (ORDER, "arrow 0"),
    "turn right ahead": (ORDER, "arrow 90"),
    "turn left ahead": (ORDER, "arrow -90"),
    "keep right": (ORDER, "arrow 135"),
    "keep left": (ORDER, "arrow -135"),
    "roundabout mandatory": (ORDER, "ring"),
    "end of all speed and passing limits": (Board("disc", "grey", "white", "black"), "slash"),
    "traffic signals": (WARNING, "lights"),
    "dangerous curve right": (WARNING, "curve"),
    "dangerous curve left": (WARNING, "curve mirrored"),
    "right-of-way at next intersection": (WARNING, "crossing"),
}
"""What a sign means → its board and the symbol on it."""


def board_layers(board: Board, pose: Pose) -> list[Layer]:
    """Returns the border and the face of a board."""
    outline = _BOARDS[board.shape]
    centre = outline.mean(axis=0)
    inner = centre + (outline - centre) * (0.9 if board.face == "red" else 0.76)
    return [(fill([pose(outline)]), board.border), (fill([pose(inner)]), board.face)]


def symbol(name: str, pose: Pose) -> np.ndarray:
    """Draws what stands on a board, other than characters; returns coverage (side, side) in 0..1."""
    kind, _, detail = name.partition(" ")
    if kind == "arrow":
        turn = np.deg2rad(float(detail))
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return fill([pose(0.62 * shapes.ARROW @ matrix)])
    if kind == "bar":
        return fill([pose(np.array([(-0.62, -0.16), (0.62, -0.16), (0.62, 0.16), (-0.62, 0.16)]))])
    if kind == "ring":
        return fill([pose(0.6 * _DISC), pose(0.34 * _DISC)])
    if kind == "lights":
        return np.maximum.reduce([fill([pose(0.14 * _DISC + (0, y))]) for y in (-0.25, 0.12, 0.5)])
    strokes: dict[str, list[list[tuple[float, float]]]] = {
        "slash": [[(-0.6, 0.6), (0.6, -0.6)]],
        "curve": [[(-0.2, 0.6), (-0.2, 0.2), (0.2, 0.0), (0.2, -0.35)]],
        "crossing": [[(0, 0.65), (0, -0.4)], [(-0.35, 0.25), (0.35, 0.25)]],
    }
    flip = (-1, 1) if detail == "mirrored" else (1, 1)
    placed = [pose(np.array(line) * flip) for line in strokes[kind]]
    return trace(placed, [np.full(len(line), 0.2 * pose.scale) for line in placed])

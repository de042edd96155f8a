"""Characters as pen strokes: a hand of our own, no font needed.

A skeleton is written on a grid, 7 columns wide, baseline at row A (ten), descenders to row D: each point is a column
digit and a row in hexadecimal, `~` begins a smooth stroke through its points, `|` lifts the pen.
"""

from dataclasses import dataclass

import numpy as np

from bico.data.drawing.canvas import Pose, trace

# fmt: off
SKELETONS: dict[str, tuple[str, ...]] = {
    "0": ("~30 12 05 18 3A 58 65 52 30", "~30 03 07 3A 67 63 30"),
    "1": ("30 3A", "12 30 3A", "12 30 3A|1A 5A"),
    "2": ("~02 20 40 63 55 0A|0A 6A", "~11 40 53 36 0A 18 4A 69"),
    "3": ("~01 30 51 53 35 25|~25 45 67 59 3A 09", "00 60 34|~34 66 68 3A 09"),
    "4": ("40 07 67|40 4A", "10 05 65|50 5A", "~20 05 65|50 4A"),
    "5": ("60 10 04|~04 33 66 69 3A 09", "~60 10 05 34 67 59 2A 09"),
    "6": ("~50 23 07 2A 59 57 35 07", "~40 14 08 3A 67 35 07"),
    "7": ("00 60 2A", "00 60 2A|15 55", "~02 00 40 60 44 2A"),
    "8": ("~35 12 30 52 35 08 3A 68 35", "~51 20 12 35 67 4A 18 35 51"),
    "9": ("~61 30 03 25 53 61|61 65 4A", "~62 20 04 46 62|~62 67 3A 19"),
    "A": ("0A 30 6A|16 56", "~0A 13 30 53 6A|06 66"),
    "B": ("00 0A|~00 40 52 45 05|~05 55 68 4A 0A",),
    "C": ("~62 50 20 05 2A 5A 68",),
    "D": ("00 0A|~00 40 65 4A 0A",),
    "E": ("60 00 0A 6A|05 55", "~61 20 12 35 07 2A 69"),
    "F": ("60 00 0A|05 55",),
    "G": ("~61 30 05 3A 68|68 65 45",),
    "H": ("00 0A|60 6A|05 65",),
    "I": ("30 3A", "30 3A|10 50|1A 5A"),
    "J": ("50 56|~56 4A 1A 07", "50 56|~56 4A 1A 07|20 60"),
    "K": ("00 0A|60 05 6A",),
    "L": ("00 0A 6A",),
    "M": ("0A 00 36 60 6A", "0A 10 38 50 6A"),
    "N": ("0A 00 6A 60",),
    "O": ("~30 02 05 08 3A 68 65 62 30",),
    "P": ("0A 00|~00 50 63 55 05",),
    "Q": ("~30 02 05 08 3A 68 65 62 30|47 6A",),
    "R": ("0A 00|~00 50 63 55 05|35 6A",),
    "S": ("~61 30 02 35 67 3A 09",),
    "T": ("00 60|30 3A",),
    "U": ("~00 07 3A 67 60", "00 06|~06 2A 4A 66|66 60"),
    "V": ("00 3A 60",),
    "W": ("00 1A 34 5A 60",),
    "X": ("00 6A|60 0A",),
    "Y": ("00 35 60|35 3A",),
    "Z": ("00 60 0A 6A", "00 60 0A 6A|15 55"),
    "a": ("~54 24 07 2A 57|54 5A",),
    "b": ("00 0A|~05 34 67 3A 09",),
    "c": ("~55 34 07 3A 59",),
    "d": ("60 6A|~65 34 07 3A 69",),
    "e": ("07 67|~67 34 07 3A 69",),
    "f": ("~50 30 23 2A|04 44",),
    "g": ("~65 34 07 3A 68|64 6A|~6A 4D 0C",),
    "h": ("00 0A|~06 34 66 6A",),
    "i": ("34 3A|30 31",),
    "j": ("44 4A|~4A 2D 0C|40 41",),
    "k": ("00 0A|54 07 5A",),
    "l": ("30 3A", "~30 38 5A"),
    "m": ("04 0A|~06 24 36 3A|~36 54 66 6A",),
    "n": ("04 0A|~06 34 66 6A",),
    "o": ("~34 07 3A 67 34",),
    "p": ("04 0D|~05 34 67 3A 09",),
    "q": ("64 6D|~65 34 07 3A 69",),
    "r": ("04 0A|~07 24 54",),
    "s": ("~55 34 15 37 59 3A 09",),
    "t": ("20 29|~29 3A 5A|04 44",),
    "u": ("~04 08 2A 57|54 5A",),
    "v": ("04 3A 64",),
    "w": ("04 1A 35 5A 64",),
    "x": ("04 6A|64 0A",),
    "y": ("04 3A|64 1D",),
    "z": ("04 64 0A 6A",),
}
# fmt: on


@dataclass(frozen=True)
class Pen:
    """How a hand writes."""

    width: tuple[float, float] = (0.12, 0.3)
    """Least and greatest stroke width, in units of half the character's height."""
    pressure: float = 0.0
    """How much the width swings along a stroke, 0 to 1."""
    jitter: float = 0.05
    """Standard deviation of each skeleton point, in units."""
    bend: float = 0.05
    """Amplitude of the slow wave that bends the whole character, in units."""
    slant: float = 0.1
    """Standard deviation of the shear."""
    smooth: float = 0.0
    """Probability that straight strokes are rounded, too."""


def _parse(skeleton: str) -> list[tuple[np.ndarray, bool]]:
    """Returns each stroke's points (n, 2) in the unit square, and whether the stroke is smooth."""
    low = 13 if any(point.endswith(("C", "D")) for point in skeleton.replace("|", " ").split()) else 10
    high = 4 if low == 13 else 0
    middle, half = (low + high) / 2, max(5.0, (low - high) / 2)
    strokes = []
    for stroke in skeleton.split("|"):
        points = np.array([(int(p[0]), int(p[1], 16)) for p in stroke.lstrip("~").split()], dtype=float)
        strokes.append(((points - (3, middle)) / half, stroke.startswith("~")))
    return strokes


STROKES = {character: [_parse(skeleton) for skeleton in variants] for character, variants in SKELETONS.items()}
"""Character → its variants, each a list of strokes: points (n, 2) in the unit square, and whether to smooth them."""


def spline(points: np.ndarray, per_segment: int = 6) -> np.ndarray:
    """Runs a Catmull–Rom curve through points (n, 2); returns ((n - 1) · per_segment + 1, 2)."""
    if len(points) < 3:
        return points
    closed = np.allclose(points[0], points[-1])
    before, after = (points[-2], points[1]) if closed else (points[0], points[-1])
    padded = np.vstack([before, points, after])
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(per_segment) / per_segment)[None, :, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return np.vstack([curve.reshape(-1, 2), points[-1]])


def write(character: str, rng: np.random.Generator, pen: Pen, size: tuple[float, float] = (0.55, 0.9)) -> np.ndarray:
    """Writes one character by hand.

    Arguments:
        character: A key of `SKELETONS`.
        rng: The source of randomness.
        pen: How the hand writes.
        size: Least and greatest height of the character, as a share of the picture.

    Returns:
        Coverage (side, side) in 0..1.
    """
    variants = STROKES[character]
    strokes = variants[rng.integers(len(variants))]
    pose = Pose.draw(rng, size=size, turn=0.12, slant=pen.slant, stretch=0.2)
    width = rng.uniform(*pen.width) * pose.scale
    waves = rng.uniform(-1, 1, size=(2, 2)) * pen.bend
    phases = rng.uniform(0, 2 * np.pi, size=2)
    lines, widths = [], []
    for points, smooth in strokes:
        points = points + rng.normal(scale=pen.jitter, size=points.shape)
        if smooth and np.allclose(points[0], points[-1], atol=4 * pen.jitter):
            points[-1] = points[0]
        if smooth or rng.random() < pen.smooth:
            points = spline(points)
        points = points + np.sin(2.5 * points[:, ::-1] + phases) @ waves
        swing = np.sin(np.linspace(0, rng.uniform(2, 5), len(points)) + rng.uniform(0, 6)) * pen.pressure
        lines.append(pose(points))
        widths.append(width * (1 + 0.7 * swing))
    return trace(lines, widths)

"""What a transfer did block by block: how much of the maps the samples determined, and how much it changed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bico.methods.strength import Sizes, effect_strengths
from bico.models.sites import Site

WELL, HALF = 0.9, 0.5
"""Shares of determined directions above which a side counts as determined, or partly."""
NAMES = {"input": "inputs", "output": "outputs", "output_grad": "output gradients", "input_grad": "input gradients"}


@dataclass(frozen=True)
class BlockReport:
    """One block of the target."""

    task: str
    block: str
    determined: dict[str, float]
    """By signal: directions that the calibration samples determined over the smaller width, mean over the block's maps."""
    change: float
    """‖α τ‖ / ‖W‖ over the block's weights."""
    strength: float | None = None
    """The effect-matched strength of its weights, geometric mean over its sites; None where sizes were not gathered."""
    effect: float | None = None
    """‖α τ x‖ / ‖y‖, root mean square over its sites, if inputs had the same size in all directions; None likewise."""

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.change:
            return "unchanged"
        if not self.determined:
            return "changed without maps"
        signal, share = min(self.determined.items(), key=lambda item: item[1])
        if share >= WELL:
            return "well determined"
        few = "partly determined" if share >= HALF else "few directions"
        return f"{few} ({NAMES.get(signal, signal)})"

    def to_row(self) -> dict[str, str]:
        """A line of a table for people."""
        shares = {f"{NAMES.get(s, s)} determined": f"{100 * share:.0f} %" for s, share in self.determined.items()}
        row = {"task": self.task, "block": self.block, **shares}
        row |= {"weights changed by": f"{100 * self.change:.2f} %"}
        if self.strength is not None and self.effect is not None:
            row |= {
                "effect-matched strength": f"{self.strength:.3g}",
                "outputs moved by about": f"{100 * self.effect:.3g} %",
            }
        return row | {"verdict": self.verdict}


def judge_blocks(
    task: str,
    sites: Iterable[Site],
    shares: Mapping[tuple[str, str], list[float]],
    state: Mapping[str, Tensor],
    vector: Mapping[str, Tensor],
    alpha: float,
    sizes: Mapping[str, tuple[Sizes, Sizes]] | None = None,
) -> list[BlockReport]:
    """Judges a transfer, block by block.

    Arguments:
        sites: The target's.
        shares: By (block, signal), the determined share of each of its maps, 0..1.
        state: The target's weights.
        vector: Its task vector; what it does not name stays as it is.
        alpha: How much of the vector is added.
        sizes: By target site, what the source's site and it read and give; None where that was not gathered.
    """
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.group, []).append(site)
    reports = []
    for block, members in groups.items():
        touched = [site for site in members if site.weight.parameter in vector]
        moved = sum(float(site.weight.read(vector).double().square().sum()) for site in touched)
        weight = sum(float(site.weight.read(state).double().square().sum()) for site in members)
        determined = {signal: sum(v) / len(v) for (place, signal), v in shares.items() if place == block and v}
        change = abs(alpha) * (moved / weight) ** 0.5 if weight else 0.0
        effects = (None, None) if sizes is None else _effects(members, vector, alpha, sizes)
        reports.append(BlockReport(task, block, determined, change, *effects))
    return reports


def _effects(
    sites: Sequence[Site], vector: Mapping[str, Tensor], alpha: float, sizes: Mapping[str, tuple[Sizes, Sizes]]
) -> tuple[float, float]:
    """The block's matched strength, and the share by which the outputs of its sites move.

    Rows of norm ‖x‖ that favour no direction are changed by ‖τ‖ ‖x‖ / √d on average, d being how many features are read.
    """
    strength = statistics.geometric_mean(effect_strengths(*sizes[site.name])[0] for site in sites)
    shares = []
    for site in sites:
        theirs = sizes[site.name][1]
        if site.weight.parameter in vector and theirs.gives.norm:
            moved = float(site.weight.read(vector).double().norm()) * theirs.reads.norm / math.sqrt(site.shape[1])
            shares.append((abs(alpha) * moved / theirs.gives.norm) ** 2)
    return strength, math.sqrt(statistics.fmean(shares)) if shares else 0.0


def worst(blocks: Iterable[BlockReport]) -> str:
    """One line about all blocks: how many are well determined, and the least determined one."""
    blocks = list(blocks)
    mapped = [block for block in blocks if block.determined]
    if not mapped:
        return "No block was aligned by maps."
    least = min(mapped, key=lambda block: min(block.determined.values()))
    signal, share = min(least.determined.items(), key=lambda item: item[1])
    good = sum(block.verdict == "well determined" for block in mapped)
    return (
        f"{good} of {len(mapped)} blocks are well determined; the least is {least.block} on {least.task}, with "
        f"{100 * share:.0f} % of the directions of its {NAMES.get(signal, signal)}."
    )

"""What calibration will hold in memory, from shapes alone, and how many passes keep it within a budget."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from bico.calibration.covariances import Wanted, most_wanted
from bico.calibration.pairing import is_beside, pairs_beside
from bico.calibration.signals import Signal, SignalKey, signal_key
from bico.errors import ConfigError
from bico.linalg.sketch import kept_values, worth_sketching
from bico.models.matching import match_sites
from bico.models.protocol import Model
from bico.models.sites import Site

FLOAT32 = 4
GIGABYTE = 10**9


@dataclass(frozen=True)
class MemoryPlan:
    """A calibration in one or several passes; sizes in bytes."""

    passes: tuple[tuple[Site, ...], ...]
    """The target's sites that each pass serves."""
    models: int
    """All weights of both models: what has no part in calibration, such as a text tower, stays in memory, too."""
    batch: int
    """One batch of the source's signals, and of what the target keeps for its backward pass."""
    covariances: int
    """The largest number of bytes that the covariances of one pass take, with the copy of a snapshot."""

    @property
    def peak(self) -> int:
        return self.models + self.batch + self.covariances


def plan_memory(
    source: Model,
    target: Model,
    signals: Wanted,
    batch_size: int,
    snapshots: int = 1,
    budget: float | None = None,
    beside: Wanted = (),
    grams: bool = False,
) -> MemoryPlan:
    """Divides the target's blocks into as few passes as a budget allows.

    Each pass runs both models over all calibration samples and keeps the covariances of its own blocks only.

    Arguments:
        signals: Which signals are collected, and how much of them.
        batch_size: Samples per batch.
        snapshots: How many sample counts one pass serves; from two on, a copy of the sums exists for a while.
        budget: In GB (10^9 bytes); without it, one pass serves all blocks.
        beside: Signals that meet those of other blocks, which sums over blocks take, and how much of them.
        grams: Whether Gram matrices are collected, too.

    Raises:
        ConfigError: If models, one batch and the covariances of the largest block exceed the budget.
    """
    signals, beside = most_wanted(signals), most_wanted(beside)
    copies = 1 if snapshots == 1 else 2
    models = sum(weight_bytes(model) for model in (source, target))
    batch = batch_size * (
        signal_bytes(source, {*signals, *beside}) + signal_bytes(target, (Signal.INPUT, Signal.OUTPUT))
    )
    blocks = [tuple(sites) for _, sites in groupby(target.sites, key=lambda site: site.group)]
    sizes = [copies * covariance_bytes(source.sites, target.sites, block, signals, beside, grams) for block in blocks]
    room = sum(sizes) if budget is None else int(budget * GIGABYTE) - models - batch
    if max(sizes) > room:
        least = (models + batch + max(sizes)) / GIGABYTE
        raise ConfigError(
            f"--memory {budget:g}: models take {models / GIGABYTE:.2f} GB, one batch of {batch_size} samples "
            f"{batch / GIGABYTE:.2f} GB and the covariances of the largest block {max(sizes) / GIGABYTE:.2f} GB; give at "
            f"least {least:.2f}, or a smaller batch."
        )
    passes: list[list[int]] = [[]]
    for index, size in enumerate(sizes):
        if sum(sizes[i] for i in passes[-1]) + size > room:
            passes.append([])
        passes[-1].append(index)
    return MemoryPlan(
        tuple(tuple(site for index in part for site in blocks[index]) for part in passes),
        models,
        batch,
        max(sum(sizes[index] for index in part) for part in passes),
    )


def weight_bytes(model: Model) -> int:
    """Bytes of all parameters and buffers that a model holds, storage that they share counted once."""
    modules = [value for value in vars(model).values() if isinstance(value, nn.Module)]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def covariance_shapes(
    source: Sequence[Site],
    target: Sequence[Site],
    sites: Iterable[Site],
    signals: Iterable[Signal],
    beside: Collection[Signal] = (),
) -> dict[SignalKey, tuple[int, int]]:
    """Shapes (source features, target features) of what is collected at some of the target's sites, each key once."""
    matched, signals, sites = match_sites(source, target), list(signals), list(sites)
    counterparts = {
        signal_key(site, signal): (features(matched[site.name], signal), features(site, signal))
        for site in sites
        for signal in signals
    }
    others = pairs_beside(source, target, sites, beside)
    return counterparts | {
        key: (features(ours, key[1]), features(theirs, key[1])) for key, (ours, theirs) in others.items()
    }


def covariance_bytes(
    source: Sequence[Site],
    target: Sequence[Site],
    sites: Iterable[Site],
    signals: Wanted,
    beside: Wanted = (),
    grams: bool = False,
) -> int:
    """Bytes of what is collected at some of the target's sites: covariances, sketches of them, or with Gram matrices."""
    wanted, others = most_wanted(signals), most_wanted(beside)
    shapes = covariance_shapes(source, target, sites, wanted, others)
    return FLOAT32 * sum(
        kept_values(*shape, (others if is_beside(tensor) else wanted)[signal], grams)
        for (tensor, signal), shape in shapes.items()
    )


def sketches(source: Sequence[Site], target: Sequence[Site], rank: int | None) -> bool:
    """Whether a pair has covariances that are better sketched, for the `rank` strongest directions."""
    shapes = covariance_shapes(source, target, target, (Signal.INPUT, Signal.OUTPUT)).values()
    return any(worth_sketching(*shape, rank) for shape in shapes)


def signal_bytes(model: Model, signals: Iterable[Signal]) -> int:
    """Bytes of a model's signals for one sample, each key once."""
    signals = list(signals)
    widths = {
        signal_key(site, signal): tokens(model, site) * features(site, signal)
        for site in model.sites
        for signal in signals
    }
    return FLOAT32 * sum(widths.values())


def features(site: Site, signal: Signal) -> int:
    return site.shape[1] if signal.of_input else site.shape[0]


def tokens(model: Model, site: Site) -> int:
    """Rows per sample of a site's signals, at most: all tokens inside the blocks, the pooled one behind them."""
    return 1 if site.block is None else model.tokens

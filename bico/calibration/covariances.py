"""Calibration: the cross-covariances that one forward-backward pass per model leaves behind."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from jaxtyping import Float, Shaped
from torch import Tensor

from bico.calibration.meeting import Meeting, RowsOf
from bico.calibration.pairing import is_beside
from bico.calibration.shared_tokens import Between, Share, check_shared, share
from bico.calibration.signals import Signal, SignalKey, watch, watching
from bico.errors import CalibrationError
from bico.linalg.grams import Grams
from bico.linalg.matmul import add_product, product
from bico.linalg.sketch import Cross, Sketch, worth_sketching
from bico.models.inputs import Inputs
from bico.models.protocol import Blockwise, Calibratable, Placed
from bico.models.sites import Site

Covariances = dict[SignalKey, Cross]
"""Cross-covariances (source features x target features), float32, or what stands for them (`Cross`), by the *target's* signal
key; of pairs that only sums over blocks ask for, by both (`bico.calibration.pairing`)."""

Wanted = Mapping[Signal, int | None] | Iterable[Signal]
"""Signals to collect: with how many of its strongest directions each will be asked for, None for all; or all of them whole."""


def most_wanted(signals: Wanted) -> dict[Signal, int | None]:
    """Returns how many directions of each signal are wanted; None for all."""
    return dict(signals) if isinstance(signals, Mapping) else dict.fromkeys(signals)


def split_at(count: int, batch_size: int, snapshots: Iterable[int]) -> Iterator[slice]:
    """Yields slices of at most `batch_size` over 0..count that never cross a snapshot.

    Example:
        >>> [(s.start, s.stop) for s in split_at(100, 64, [10, 100])]
        [(0, 10), (10, 74), (74, 100)]
    """
    start = 0
    for end in sorted({*snapshots, count}):
        for begin in range(start, end, batch_size):
            yield slice(begin, min(begin + batch_size, end))
        start = end


B = TypeVar("B")


def until_snapshots(
    batches: Iterable[B], size: Callable[[B], int], snapshots: Iterable[int]
) -> Iterator[tuple[B, int, bool]]:
    """Yields each batch up to the last snapshot, with how many samples have come with it and whether a snapshot is due.

    Raises:
        CalibrationError: If a batch steps over a snapshot, or the batches end before the last one.
    """
    waiting, seen = sorted(set(snapshots)), 0
    for batch in batches:
        seen += size(batch)
        if waiting and seen > waiting[0]:
            raise CalibrationError(
                f"A batch ended at sample {seen}, past the snapshot at {waiting[0]}: cut batches with split_at."
            )
        due = seen in waiting
        yield batch, seen, due
        if due and not (waiting := waiting[1:]):
            return
    if waiting:
        raise CalibrationError(
            f"The calibration batches ended after {seen} samples, before the snapshot at {waiting[0]}."
        )


@dataclass(frozen=True)
class Batch:
    """The same calibration samples, as each of the two models wants them."""

    source: Inputs
    target: Inputs
    labels: Shaped[Tensor, "batch ..."]
    """Targets of the loss, as it wants them: classes, their probabilities, numbers."""


Heads = tuple[Tensor | None, Tensor | None]
"""Classification heads (classes, features) of source and target; None where a model's loss takes none."""


def cross_covariances(
    source: Calibratable,
    target: Calibratable,
    batches: Iterable[Batch],
    heads: Heads,
    signals: Wanted,
    snapshots: Sequence[int],
    sites: Sequence[Site] | None = None,
    on_batch: Callable[[int], None] = lambda seen: None,
    between: Between = Between.LAST,
    beside: Wanted = (),
    grams: Collection[Signal] = (),
) -> Iterator[tuple[int, Covariances]]:
    r"""Streams `Σ rows_sourceᵀ rows_target` of every signal at every matched site.

    One forward pass per model and batch, and one backward pass if a gradient is among the signals. The loss is summed
    over samples, so covariances add up over batches and do not depend on the batch size. Rows whose gradient is zero
    in either model (all but the class token in the last block) are dropped before the product.

    The source's signals of a batch are kept until the target's pass, which multiplies each of its own with its
    counterpart as soon as it comes up and lets go of both. So memory holds both models, the covariances, and one batch of
    the source's signals; of the target's, what its backward pass needs. Where only some directions of a large covariance are
    wanted, a sketch of it is kept in its place (`bico.linalg.sketch`).

    Arguments:
        source: The model that was fine-tuned, at its pre-trained weights.
        target: The new base model.
        batches: Samples in the order of the calibration set, cut at the snapshots (`split_at`).
        heads: In which the task loss is taken.
        signals: Which signals to collect, and how much of them.
        snapshots: Sample counts at which the sums so far are yielded.
        sites: The target's sites to serve; all of them by default.
        on_batch: Called with the number of samples seen, for progress.
        between: What becomes of activations between the shared ends of two tokenizers.
        beside: Signals that meet, besides their counterparts, those of the other blocks that sums over blocks take; and how
            much of them.
        grams: Signals whose products are collected whole, with the Gram matrices of both sides.

    Yields:
        Pairs of a sample count and the covariances up to there. The tensors are the caller's own; they are copies until
        the last snapshot, so drop them before going on where memory is short.

    Raises:
        CalibrationError: If a selected signal was never seen, is not finite, or if the batches end before the last
            snapshot or step over one.
    """
    wanted, wanted_beside = most_wanted(signals), most_wanted(beside)
    sums: Covariances = {}
    found = Share()

    def multiply(key: SignalKey, ours: Tensor, theirs: Tensor) -> None:
        most = wanted_beside if is_beside(key[0]) else wanted
        add_rows(sums, key, ours, theirs, most[key[1]], key[1] in grams)

    for batch, seen, due in until_snapshots(batches, lambda batch: len(batch.labels), snapshots):
        pair_rows(source, target, batch, heads, wanted, multiply, sites, between, wanted_beside)
        found += batch_share(source, target, batch)
        on_batch(seen)
        if due:
            check_shared(found, source.name, target.name)
            check_all_finite(sums)
            last = seen == max(snapshots)
            yield seen, sums if last else {key: value.clone() for key, value in sums.items()}


def add_rows(
    sums: Covariances,
    key: SignalKey,
    ours: Float[Tensor, "rows source"],
    theirs: Float[Tensor, "rows target"],
    rank: int | None = None,
    grams: bool = False,
) -> None:
    """Adds the product of some rows to a covariance, or to its sketch where only `rank` directions of it are wanted; with
    `grams` whole, and their products within each side as well.
    """
    if key not in sums:
        if grams:
            sums[key] = Grams.of(ours, theirs)
            return
        if rank is None or not worth_sketching(ours.shape[1], theirs.shape[1], rank):
            sums[key] = product(ours.T, theirs)
            return
        sums[key] = Sketch.of(ours.shape[1], theirs.shape[1], rank, ours.device)
    found = sums[key]
    if isinstance(found, Tensor):
        add_product(found, ours, theirs)
    else:
        found.add(ours, theirs)


def pair_rows(
    source: Calibratable,
    target: Calibratable,
    batch: Batch,
    heads: Heads,
    signals: Iterable[Signal],
    receive: Callable[[SignalKey, Float[Tensor, "rows source"], Float[Tensor, "rows target"]], None],
    sites: Sequence[Site] | None = None,
    between: Between = Between.LAST,
    beside: Collection[Signal] = (),
) -> None:
    """Runs one batch through both models and hands over the rows of each signal that belong together, as they come up.

    The source's patches are brought onto the target's grid, one signal at a time; texts that two tokenizers cut in other
    ways give the rows that both have (`shared_tokens.py`). Padding is left out. Of gradients, rows
    that are zero in either model are dropped. Nothing is kept beyond its use.

    Arguments:
        receive: Takes what the pair is called (the *target's* signal key, of pairs beside counterparts both), the source's rows
            and the target's.
        sites: The target's sites to serve; all of them by default.
        between: What becomes of activations between the shared ends of two tokenizers.
        beside: Signals that meet those of other blocks as well, which sums over blocks take.

    Raises:
        CalibrationError: If a selected signal was never seen, or came up twice, or was changed in place; if the two models
            do not see the same tokens, or give another number of rows.
    """
    signals, sites = list(signals), list(target.sites if sites is None else sites)
    rows = RowsOf.batch(source, target, batch.source, batch.target, between)
    meeting = Meeting(source, target, sites, signals, rows, receive, beside)
    if not meeting.target_sites:
        return
    both = list(dict.fromkeys([*signals, *beside]))
    stream_signals(source, batch.source, batch.labels, heads[0], meeting.source_sites, both, meeting.keep)
    stream_signals(target, batch.target, batch.labels, heads[1], meeting.target_sites, both, meeting.meet)


def collect_signals(
    model: Calibratable,
    inputs: Inputs,
    labels: Tensor,
    head: Tensor | None,
    sites: Sequence[Site],
    signals: Sequence[Signal],
) -> dict[SignalKey, Tensor]:
    """Runs one batch through a frozen model, forward and (for gradients) backward, and returns its signals.

    Returns:
        Tensors (batch, [tokens,] features) by signal key, on the model's device.
    """
    seen: dict[SignalKey, Tensor] = {}
    stream_signals(model, inputs, labels, head, sites, signals, seen.__setitem__)
    return seen


def stream_signals(
    model: Calibratable,
    inputs: Inputs,
    labels: Tensor,
    head: Tensor | None,
    sites: Sequence[Site],
    signals: Sequence[Signal],
    receive: Callable[[SignalKey, Tensor], None],
) -> None:
    """Like `collect_signals`, but hands each signal over as it comes up and keeps none."""
    gradients = any(signal.is_gradient for signal in signals)
    if isinstance(model, Blockwise):
        with TemporaryDirectory(prefix="bico-blocks-") as place:
            trail = model.forth(inputs, labels, head, Path(place), gradients)
            for block in reversed(range(model.blocks)):
                with model.here(block):
                    of_block = [site for site in sites if site.block == block]
                    trail.back(block, of_block, watching(of_block, signals, receive))
        return
    with model.instrument() as modules, watch(sites, modules, signals, receive):
        loss = model.loss(inputs, labels, head)
        if gradients:
            loss.backward()


def batch_share(source: Calibratable, target: Calibratable, batch: Batch) -> Share:
    """How much of a batch's texts two tokenizers cut alike; empty where tokens match by themselves."""
    if not (isinstance(source, Placed) and isinstance(target, Placed)):
        return Share()
    return share(source.places(batch.source).cpu(), target.places(batch.target).cpu())


def check_all_finite(covariances: Covariances) -> None:
    for (tensor, signal), value in covariances.items():
        if not value.isfinite().all():
            raise CalibrationError(
                f"The {signal} covariance of {tensor} is not finite: a model's weights or the calibration inputs are "
                "broken, or their values overflow float32."
            )

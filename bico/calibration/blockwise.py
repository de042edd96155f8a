"""Calibration of models larger than memory: both go back block by block, side by side.

The source goes forth, then the target; what each block read stays on the disk. Then the target's blocks are taken from the last
to the first, each with the source's that it takes its update from: both are brought in, run once more on what they read, and
their signals multiplied while they are there. So memory holds one block of each model, and the disk what their blocks read; the
numbers are those of `cross_covariances`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from bico.calibration.covariances import (
    Batch,
    Covariances,
    Heads,
    Wanted,
    add_rows,
    batch_share,
    check_all_finite,
    most_wanted,
    until_snapshots,
)
from bico.calibration.meeting import Meeting, RowsOf
from bico.calibration.shared_tokens import Between, Share, check_shared
from bico.calibration.signals import SignalKey, watching
from bico.errors import CalibrationError
from bico.models.inputs import Inputs
from bico.models.matching import match_sites
from bico.models.protocol import Blockwise, Trail


def covariances_by_block(
    source: Blockwise,
    target: Blockwise,
    batches: Iterable[Batch],
    heads: Heads,
    signals: Wanted,
    snapshots: Sequence[int],
    on_block: Callable[[int], None] = lambda done: None,
    between: Between = Between.LAST,
) -> Iterator[tuple[int, Covariances]]:
    """Streams what `cross_covariances` does, of a few blocks at a time.

    Arguments:
        on_block: Called with how many blocks a batch has gone through, forth and back, of `turns`.

    Yields:
        Pairs of a sample count and the covariances up to there of some of the target's sites: of each sample count and each site
        once.

    Raises:
        CalibrationError: As `cross_covariances`.
    """
    wanted = most_wanted(signals)
    chosen, gradients = list(wanted), any(signal.is_gradient for signal in wanted)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_block(done)

    taken = list(until_snapshots(batches, lambda batch: len(batch.labels), snapshots))
    found = sum((batch_share(source, target, batch) for batch, _, _ in taken), Share())
    check_shared(found, source.name, target.name)
    rows = [RowsOf.batch(source, target, batch.source, batch.target, between) for batch, _, _ in taken]
    with TemporaryDirectory(prefix="bico-blocks-") as place:
        given = [(batch.source, batch.labels) for batch, _, _ in taken]
        ours = _forth(source, given, heads[0], Path(place) / "source", gradients)
        given = [(batch.target, batch.labels) for batch, _, _ in taken]
        theirs = _forth(target, given, heads[1], Path(place) / "target", gradients)
        last = max(snapshots)
        for block, group in groups(source, target):
            sites = [site for site in target.sites if site.block in group]
            sums: Covariances = {}

            def multiply(key: SignalKey, mine: Tensor, other: Tensor, sums: Covariances = sums) -> None:
                add_rows(sums, key, mine, other, wanted[key[1]])

            with ExitStack() as stack:
                stack.enter_context(source.here(block))
                for theirs_block in group:
                    stack.enter_context(target.here(theirs_block))
                for (_, seen, due), cut, our_trail, their_trail in zip(taken, rows, ours, theirs, strict=True):
                    meeting = Meeting(source, target, sites, chosen, cut, multiply)
                    ours_here = meeting.source_sites
                    our_trail.back(block, ours_here, watching(ours_here, chosen, meeting.keep))
                    count()
                    for theirs_block in group:
                        of_block = [site for site in sites if site.block == theirs_block]
                        their_trail.back(theirs_block, of_block, watching(of_block, chosen, meeting.meet))
                        count()
                    if due and group:
                        check_all_finite(sums)
                        yield seen, sums if seen == last else {key: value.clone() for key, value in sums.items()}


def groups(source: Blockwise, target: Blockwise) -> Iterator[tuple[int, list[int]]]:
    """Yields the source's blocks from the last to the first that is asked for, each with those of the target that take their
    update from it, from the last to the first.

    Raises:
        CalibrationError: If sites of one block take theirs from several.
    """
    matched = match_sites(source.sites, target.sites)
    partner: dict[int, int] = {}
    for site in target.sites:
        block, ours = site.block, matched[site.name].block
        if block is None or ours is None or partner.setdefault(block, ours) != ours:
            raise CalibrationError(
                f"The sites of {site.group} of {target.name} do not take their updates from one block of {source.name}: such a "
                "pair cannot be calibrated block by block."
            )
    for block in range(source.blocks - 1, min(partner.values()) - 1, -1):
        yield block, sorted((theirs for theirs, ours in partner.items() if ours == block), reverse=True)


def turns(source: Blockwise, target: Blockwise, batches: int) -> int:
    """How many blocks batches go through on the way back."""
    return batches * sum(1 + len(group) for _, group in groups(source, target))


def _forth(
    model: Blockwise, given: Iterable[tuple[Inputs, Tensor]], head: Tensor | None, place: Path, gradients: bool
) -> list[Trail]:
    trails = []
    for number, (inputs, labels) in enumerate(given):
        folder = place / str(number)
        folder.mkdir(parents=True)
        trails.append(model.forth(inputs, labels, head, folder, gradients))
    return trails

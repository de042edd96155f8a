"""Ideas beyond the shipped recipes, tried on development tasks first; those that fail are listed, not hidden.

Each takes a cell and the data it may use and returns the target's task vector before any last step.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.beyond.setting import Data
from bico.analysis.moments import Moments, linear_cka
from bico.calibration.covariances import collect_signals
from bico.calibration.signals import Signal, SignalKey, signal_key
from bico.linalg.procrustes import AlignmentMap, MapRule, procrustes
from bico.methods import Gathered, Pair
from bico.methods.bico import BiCo
from bico.methods.spec import Spec
from bico.models.matching import match_blocks
from bico.models.sites import Site
from bico.task_vector import StateDict, scale

if TYPE_CHECKING:
    from benchmarks.beyond.cell import StudyCell


BICO = Spec.parse("bico")


@dataclass
class Reworked(Gathered):
    """Evidence whose output-gradient maps are made in another way."""

    output_map: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    """From the cross-covariances of output gradients and of outputs."""

    def map(self, key: SignalKey, rule: MapRule) -> AlignmentMap:
        site, signal = key
        if signal is not Signal.OUTPUT_GRAD:
            return super().map(key, rule)
        whole = self.output_map(self.covariances[key], self.covariances[site, Signal.OUTPUT])
        return AlignmentMap(whole, torch.eye(whole.shape[1]).to(whole), min(whole.shape), torch.ones(0))


def completed(gradients: Tensor, outputs: Tensor, cut: float = 1e-2) -> Tensor:
    """The gradients' map on directions with more than `cut` of the largest singular value; outputs decide the rest."""
    u, s, vh = torch.linalg.svd(gradients.double(), full_matrices=False)
    rank = int((s > cut * s[0]).sum())
    u, v = u[:, :rank], vh[:rank].T
    rest = outputs.double() - u @ (u.T @ outputs.double())
    rest = rest - (rest @ v) @ v.T
    found = u @ v.T
    if rank < min(gradients.shape):
        found = found + procrustes(rest).matrix
    return found.to(gradients.dtype)


def blended(gradients: Tensor, outputs: Tensor, share: float = 0.3) -> Tensor:
    """One map for the sum of both covariances, each at unit Frobenius norm, the outputs' at a share of the gradients'."""
    return procrustes(gradients / gradients.norm() + share * outputs / outputs.norm()).matrix


def _reworked(output_map: Callable[[Tensor, Tensor], Tensor]) -> "Idea":
    def vector(cell: "StudyCell", data: Data) -> StateDict:
        evidence = Reworked(len(cell.draw.labelled), cell.sums(data), output_map=output_map)
        return BiCo().transport(cell.expert.tau, cell.pair, evidence)

    return vector


def halves(cell: "StudyCell", data: Data) -> StateDict:
    """Two half steps; the second is aligned anew where the first has led both models."""
    first = scale(cell.vector(BICO, data), 0.5)
    with cell.source.model.updated(scale(cell.expert.tau, 0.5)), cell.target.model.updated(first):
        again = cell.collect(data)
    evidence = Gathered(len(cell.draw.labelled), again)
    second = scale(BiCo().transport(cell.expert.tau, cell.pair, evidence), 0.5)
    return {name: first[name] + second[name] for name in first}


def refit_first(cell: "StudyCell", data: Data) -> StateDict:
    """The projection is refitted before transport, so that the target's gradients are those of a better reader; the other
    sites are carried, and the refit stays.
    """
    refit = cell.outcome(Spec.parse("none+projection"), data).vector
    with cell.target.model.updated(refit):
        again = cell.collect(data)
    carried = BiCo().transport(cell.expert.tau, cell.pair, Gathered(len(cell.draw.labelled), again))
    return carried | refit


def merged(cell: "StudyCell", data: Data) -> StateDict:
    """The mean of two experts' task vectors is carried: one solution's accidents are halved."""
    both = [cell.expert.tau, cell.expert.other()]
    mean = {name: sum(tau[name] for tau in both) / 2 for name in both[0]}
    return BiCo().transport(mean, cell.pair, cell.evidence(data))


def soft(cell: "StudyCell", data: Data) -> StateDict:
    """The expert's probabilities, in place of its predictions, as targets of the loss on inputs without labels."""
    return BiCo().transport(cell.expert.tau, cell.pair, cell.evidence(Data.SOFT if data is Data.MIXED else data))


def matched(cell: "StudyCell", data: Data) -> StateDict:
    """Blocks of a deeper or shallower target take their updates from those that see most alike, and not from those of the
    same relative depth.
    """
    with taking(alike_blocks(likeness(cell))):
        pair = Pair.of(cell.source.model, cell.target.model)  # counterparts are others here
        return BiCo().transport(cell.expert.tau, pair, Gathered(len(cell.draw.labelled), cell.collect(data)))


def shared(cell: "StudyCell", data: Data) -> StateDict:
    """A source block that serves several of the target's gives each a part: together they move as far as it did."""
    vector, sites = cell.vector(BICO, data), cell.target.model.sites
    taken = match_blocks(_depth(cell.source.model.sites), _depth(sites))
    uses = Counter(taken)
    parts = {
        slot.parameter: 1 / uses[taken[site.block]]
        for site in sites
        if site.block is not None
        for slot in (site.weight, site.bias)
        if slot is not None
    }
    return {name: parts.get(name, 1.0) * value for name, value in vector.items()}


def likeness(cell: "StudyCell") -> Tensor:
    """Linear CKA of what two models' blocks read, averaged over tokens; (source blocks, target blocks)."""
    sides = []
    for model, head, which in (
        (cell.source.model, cell.heads[0], "source"),
        (cell.target.model, cell.heads[1], "target"),
    ):
        first = {site.block: site for site in model.sites if site.role == "q"}
        seen: dict[int, list[Tensor]] = {block: [] for block in first}
        for batch in cell.labelled:
            found = collect_signals(
                model, getattr(batch, which), batch.labels, head, list(first.values()), [Signal.INPUT]
            )
            for block, site in first.items():
                seen[block].append(found[signal_key(site, Signal.INPUT)].mean(1))
        sides.append([torch.cat(rows) for _, rows in sorted(seen.items())])
    return torch.tensor([[linear_cka(Moments.of(ours, theirs)) for theirs in sides[1]] for ours in sides[0]])


def alike_blocks(likeness: Tensor) -> list[int]:
    """The source block of each target block, never going back, with the largest sum of likenesses.

    Example:
        >>> alike_blocks(torch.tensor([[0.9, 0.8, 0.9], [0.1, 0.7, 0.8]]))
        [0, 0, 0]
        >>> alike_blocks(torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.9, 0.8]]))
        [0, 1, 1]
    """
    best, came = likeness[:, 0], []
    for column in likeness.T[1:]:
        highest, where = best.cummax(0)
        came.append(where)
        best = highest + column
    path = [int(best.argmax())]
    for where in reversed(came):
        path.append(int(where[path[-1]]))
    return path[::-1]


def taking(blocks: list[int]) -> AbstractContextManager:
    """Within it, the target's blocks take their updates from these blocks of the source."""
    plain = match_blocks  # for what stands behind the blocks

    def taken(source: int, target: int) -> list[int]:
        return blocks if target == len(blocks) else plain(source, target)

    return patch("bico.models.matching.match_blocks", taken)


def _depth(sites: Sequence[Site]) -> int:
    return 1 + max(site.block for site in sites if site.block is not None)


Idea = Callable[["StudyCell", Data], StateDict]
IDEAS: dict[str, Idea] = {
    "bico-completed": _reworked(completed),
    "bico-blended": _reworked(blended),
    "bico-halves": halves,
    "bico-refit-first": refit_first,
    "bico-merged": merged,
    "bico-soft": soft,
}
DEPTH_IDEAS: dict[str, Idea] = {"bico-matched": matched, "bico-shared": shared}
"""For two models of different depth."""

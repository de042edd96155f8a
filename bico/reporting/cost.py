r"""What a transfer costs in floating-point operations, from shapes alone (BiCo, appendix G).

A multiplication and an addition count as two operations, but for `applying`, where the paper counts them as one. The
paper leaves token counts to the reader; here they are arguments.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bico.calibration.covariances import Wanted, most_wanted
from bico.calibration.memory import covariance_shapes, tokens
from bico.linalg.procrustes import OVERSAMPLING
from bico.linalg.sketch import kept_values, worth_sketching
from bico.models.matching import match_sites
from bico.models.protocol import Model
from bico.models.sites import Site


@dataclass(frozen=True)
class Cost:
    """Operations of one transfer, by what they are spent on."""

    forward: int
    backward: int
    covariances: int
    decompositions: int
    applying: int

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.covariances + self.decompositions + self.applying


def parameters(sites: Iterable[Site]) -> int:
    """Weights of the sites, without biases: `P` of the formulas."""
    return sum(out * inputs for out, inputs in (site.shape for site in sites))


def forward(parameters: int, tokens: int = 1) -> int:
    """`2P` per token."""
    return 2 * parameters * tokens


def backward(parameters: int, tokens: int = 1, frozen: bool = False) -> int:
    """`4P` per token: gradients of weights and of inputs. With frozen weights there are those of inputs only, `2P`."""
    return (2 if frozen else 4) * parameters * tokens


def fine_tuning(parameters: int, steps: int, tokens: int = 1, optimiser: float = 0.0) -> int:
    """`steps (6P + cP)`, with `tokens` per step and `c` operations of the optimiser per parameter."""
    return int(steps * (6 * parameters * tokens + optimiser * parameters))


def covariance(rows: int, source: int, target: int, rank: int | None = None) -> int:
    """`2 rows d_A d_B`; where a sketch for `rank` directions takes its place, two thin products for each of its sides."""
    if worth_sketching(source, target, rank):
        return 4 * rows * kept_values(source, target, rank)
    return 2 * rows * source * target


def decomposition(source: int, target: int, rank: int | None = None) -> int:
    """The paper's estimate of a singular value decomposition, `2 min(d)² max(d)`; its true factor is 10 or more. For `rank`
    directions the same with the searched ones in place of the narrower side.
    """
    least = min(source, target) if rank is None else min(source, target, int(OVERSAMPLING * rank))
    return 2 * least * min(source, target) * max(source, target)


def applying(source: tuple[int, int], target: tuple[int, int]) -> int:
    """Multiply-adds of `Q_outᵀ τ Q_in` for weights (out, in): `out_A in_A in_B + out_A in_B out_B`."""
    (out_a, in_a), (out_b, in_b) = source, target
    return out_a * in_a * in_b + out_a * in_b * out_b


def transfer_cost(source: Model, target: Model, signals: Wanted, samples: int) -> Cost:
    """Operations of calibrating on `samples` inputs and carrying one task vector over.

    Sites that read one tensor share its covariance and map. Rows are counted with the target's tokens, which the
    source's are brought to; rows without gradient, which are dropped, are not taken off.
    """
    wanted = most_wanted(signals)
    frozen_passes = [
        sum(parameters([site]) * tokens(model, site) for site in model.sites) for model in (source, target)
    ]
    rows = {
        key: samples * tokens(target, site)
        for site in target.sites
        for key in covariance_shapes(source.sites, target.sites, [site], wanted)
    }
    shapes = covariance_shapes(source.sites, target.sites, target.sites, wanted)
    matched = match_sites(source.sites, target.sites)
    gradients = any(signal.is_gradient for signal in wanted)
    return Cost(
        forward=sum(forward(p, samples) for p in frozen_passes),
        backward=sum(backward(p, samples, frozen=True) for p in frozen_passes) if gradients else 0,
        covariances=sum(covariance(rows[key], *shape, wanted[key[1]]) for key, shape in shapes.items()),
        decompositions=sum(decomposition(*shape, wanted[key[1]]) for key, shape in shapes.items()),
        applying=sum(applying(matched[site.name].shape, site.shape) for site in target.sites),
    )

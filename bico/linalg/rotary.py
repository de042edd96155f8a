r"""Maps of the outputs of q and k that attention under RoPE leaves what it is: one rotation for both, pair by pair.

RoPE turns pairs of features of each head by angles that grow with the position (Su et al., 2021, arXiv:2104.09864). The score of
a query and a key is kept by a change of basis that commutes with these turns and is the same for a head of keys and all heads of
queries that it serves: a rotation within each pair, by an angle of its own, and any orthogonal map of the features that are not
turned. Among such maps those are taken that agree best with the two cross-covariances together,

.. math:: \max_{Q_q, Q_k} \operatorname{tr}(Q_q^\top C_q) + \operatorname{tr}(Q_k^\top C_k)

With a pair's features i, j as the complex number i + 𝑖 j, the best angle is that of the inner product of its rows, summed over
the heads that share it.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bico.linalg.procrustes import RANK_TOLERANCE, AlignmentMap


@runtime_checkable
class RotaryHeads(Protocol):
    """The heads of attention of a model."""

    @property
    def queries(self) -> int: ...

    @property
    def keys(self) -> int:
        """Each serves queries/keys heads of queries, which lie side by side."""
        ...

    @property
    def size(self) -> int:
        """Features of each head."""
        ...

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Of a head's features, those that are turned together; none where positions are learnt."""
        ...


def paired_maps(
    query: AlignmentMap, key: AlignmentMap, ours: RotaryHeads, theirs: RotaryHeads
) -> tuple[AlignmentMap, AlignmentMap]:
    """Returns the maps of q and of k that respect RoPE, from what free maps know of their covariances.

    Heads go to heads, those of keys with those that they serve, one to one by what agrees best; of more heads on one side some
    are left out. Pairs are matched by their place among those of their head, which is the frequency where both models
    have one base.

    Arguments:
        query: The free map of q's outputs, with its spectrum: what it has kept of the cross-covariance.
        key: The same of k's.
        ours: Heads of the source.
        theirs: Of the target.
    """
    ends = [
        (_ends(query, ours.queries, theirs.queries), ours, theirs),
        (_ends(key, ours.keys, theirs.keys), ours, theirs),
    ]
    (turns_q, rest_q), (turns_k, rest_k) = (_agreement(*one) for one in ends)
    heads = _matched(turns_q, rest_q, turns_k, rest_k, ours, theirs)
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {"q": [], "k": []}
    strongest = max((float(_strength(turns_k, rest_k).max()), float(_strength(turns_q, rest_q).max())))
    for key_a, key_b, served in heads:
        turn = turns_k[key_a, key_b] + sum(turns_q[a, b] for a, b in served)
        rest = rest_k[key_a, key_b] + sum(rest_q[a, b] for a, b in served)
        left, right = _block(turn, rest, ours, theirs, RANK_TOLERANCE * strongest)
        columns["k"].append(_placed(left, right, key_a, key_b, ours.keys, theirs.keys))
        for a, b in served:
            columns["q"].append(_placed(left, right, a, b, ours.queries, theirs.queries))
    return _as_map(columns["q"], query), _as_map(columns["k"], key)


Ends = tuple[Float[Tensor, "ours size_ours kept"], Float[Tensor, "theirs size_theirs kept"]]


def _ends(found: AlignmentMap, ours: int, theirs: int) -> Ends:
    """The covariance that a map was found from, as far as it was kept, as two factors by head; of a total of one, so that
    q and k weigh alike.
    """
    kept = found.left.shape[1]
    weights = torch.zeros(kept, dtype=torch.float64, device=found.left.device)
    known = found.spectrum[:kept].to(weights)
    weights[: len(known)] = known / (known.sum() or 1.0)
    left, right = found.left.double() * weights, found.right.double()
    return left.view(ours, -1, kept), right.view(theirs, -1, kept)


def _agreement(
    ends: Ends, ours: RotaryHeads, theirs: RotaryHeads
) -> tuple[Complex[Tensor, "ours theirs pairs"], Float[Tensor, "ours theirs rest_ours rest_theirs"]]:
    """Of each head with each other: the inner products of their pairs, and the covariance of features that are in none."""
    places = _common_pairs(ours, theirs)
    z = [
        torch.complex(end[:, [heads.pairs[p][0] for p in chosen]], end[:, [heads.pairs[p][1] for p in chosen]])
        for end, heads, chosen in zip(ends, (ours, theirs), places, strict=True)
    ]
    turns = torch.einsum("apk,bpk->abp", z[0].conj(), z[1])
    rest = [end[:, _unpaired(heads)] for end, heads in zip(ends, (ours, theirs), strict=True)]
    return turns, torch.einsum("ask,btk->abst", *rest)


def _common_pairs(ours: RotaryHeads, theirs: RotaryHeads) -> tuple[list[int], list[int]]:
    """Which pairs of one model go to which of the other: as many as the fewer, spread over the more."""
    a, b = len(ours.pairs), len(theirs.pairs)
    fewer = min(a, b)
    return [n * a // fewer for n in range(fewer)], [n * b // fewer for n in range(fewer)]


def _unpaired(heads: RotaryHeads) -> list[int]:
    turned = {feature for pair in heads.pairs for feature in pair}
    return [feature for feature in range(heads.size) if feature not in turned]


def _strength(turns: Tensor, rest: Tensor) -> Float[Tensor, "ours theirs"]:
    """How well heads agree, at their best angles."""
    norms = torch.linalg.svdvals(rest).sum(-1) if rest.numel() else 0.0
    return turns.abs().sum(-1) + norms


def _matched(
    turns_q: Tensor, rest_q: Tensor, turns_k: Tensor, rest_k: Tensor, ours: RotaryHeads, theirs: RotaryHeads
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Heads of keys that go together, and the heads of queries that each pair of them serves."""
    alike = _strength(turns_q, rest_q).cpu()
    a, b = ours.queries // ours.keys, theirs.queries // theirs.keys
    served: dict[tuple[int, int], list[tuple[int, int]]] = {}
    gains = torch.zeros(ours.keys, theirs.keys)
    for i in range(ours.keys):
        for j in range(theirs.keys):
            rows, columns = linear_sum_assignment(
                alike[i * a : (i + 1) * a, j * b : (j + 1) * b].numpy(), maximize=True
            )
            served[i, j] = [(i * a + int(r), j * b + int(c)) for r, c in zip(rows, columns, strict=True)]
            turn = turns_k[i, j] + sum(turns_q[one] for one in served[i, j])
            rest = rest_k[i, j] + sum(rest_q[one] for one in served[i, j])
            gains[i, j] = _strength(turn[None, None], rest[None, None])[0, 0]
    rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
    return [(int(i), int(j), served[int(i), int(j)]) for i, j in zip(rows, columns, strict=True)]


def _block(
    turn: Complex[Tensor, " pairs"],
    rest: Float[Tensor, "rest_ours rest_theirs"],
    ours: RotaryHeads,
    theirs: RotaryHeads,
    least: float,
) -> tuple[Float[Tensor, "size_ours kept"], Float[Tensor, "size_theirs kept"]]:
    """The map from one head to another as factors; what nothing determines is left out."""
    lefts, rights = [], []
    for (p, q), c in zip(zip(*_common_pairs(ours, theirs), strict=True), turn.tolist(), strict=True):
        if abs(c) <= least:
            continue
        cos, sin = c.real / abs(c), c.imag / abs(c)
        (i, j), (k, m) = ours.pairs[p], theirs.pairs[q]
        left, right = turn.real.new_zeros(ours.size, 2), turn.real.new_zeros(theirs.size, 2)
        left[i, 0] = left[j, 1] = 1.0
        right[k, 0], right[m, 0], right[k, 1], right[m, 1] = cos, sin, -sin, cos
        lefts.append(left)
        rights.append(right)
    if rest.numel():
        u, s, vh = torch.linalg.svd(rest, full_matrices=False)
        kept = int((s > least).sum())
        left, right = rest.new_zeros(ours.size, kept), rest.new_zeros(theirs.size, kept)
        left[_unpaired(ours)], right[_unpaired(theirs)] = u[:, :kept], vh[:kept].T
        lefts.append(left)
        rights.append(right)
    if not lefts:
        return rest.new_zeros(ours.size, 0), rest.new_zeros(theirs.size, 0)
    return torch.cat(lefts, 1), torch.cat(rights, 1)


def _placed(left: Tensor, right: Tensor, a: int, b: int, ours: int, theirs: int) -> tuple[Tensor, Tensor]:
    """A head's factors among those of all heads."""
    whole = []
    for block, place, count in ((left, a, ours), (right, b, theirs)):
        wide = block.new_zeros(count, *block.shape)
        wide[place] = block
        whole.append(wide.flatten(0, 1))
    return whole[0], whole[1]


def _as_map(columns: list[tuple[Tensor, Tensor]], like: AlignmentMap) -> AlignmentMap:
    left, right = (torch.cat(parts, 1).to(like.left) for parts in zip(*columns, strict=True))
    return AlignmentMap(left, right, left.shape[1], like.spectrum)

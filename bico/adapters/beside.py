"""What an adapter holds beside the factors of linear maps: whole biases, LoRAs of embeddings, norms, heads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bico.adapters.dense import update_of, whole_change
from bico.adapters.factors import LowRank
from bico.adapters.maps import Maps, through
from bico.adapters.names import Located, paths_of, rows_of, spellings
from bico.errors import MethodError
from bico.methods.protocol import Others
from bico.models.experts import everything
from bico.models.protocol import Calibratable
from bico.models.sites import Site
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Beside:
    """What of it the target gets, and what is left behind."""

    whole: Mapping[str, Tensor]
    embeddings: Mapping[str, LowRank]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.whole) or any(update.moves for update in self.embeddings.values())


def carry_beside(
    found: Located,
    source: Calibratable,
    target: Calibratable,
    matched: Mapping[str, Sequence[Site]],
    maps: Maps,
    others: Others,
) -> Beside:
    r"""Carries whole biases of linear maps, :math:`b_B + Q_{out}^\top (b - b_A)`, and the rest by policy.

    Raises:
        MethodError: If `others` is "add" and the target has a tensor of another shape, or another tokenizer.
    """
    state = everything(target)
    spelt = spellings(paths_of(target, state), state)
    changes = {slot.parameter: _whole(found, slot.parameter) for slot in found.whole.values()}
    changes = {name: change for name, change in changes.items() if change.any()}
    of_sites = {site.bias.parameter for site in source.sites if site.bias is not None}
    whole = _biases({n: c for n, c in changes.items() if n in of_sites}, target, matched, maps, state)
    outside = {name: change for name, change in changes.items() if name not in of_sites}
    notes, embeddings = [], {}
    if others is Others.ADD:
        for name, change in outside.items():
            _check_fits(name, change, state, found, target)
            whole[name] = state[name] + change.to(state[name])
        embeddings = _embeddings(found, source, target, state)
    else:
        left = [*outside, *found.adapter.embeddings]
        if left:
            notes.append(
                f"{found.adapter.place}: {len(left)} tensors that lie at no linear map of a block are left behind, such as {left[0]} "
                "(others=add takes them as they are, where they fit)."
            )
    if heads := found.strangers:
        notes.append(
            f"{found.adapter.place}: a head that was trained with it is left behind ({', '.join(heads[:3])}): it reads the source's "
            "features; fit one on the target."
        )
    return Beside({spelt[name]: tensor for name, tensor in whole.items()}, embeddings, tuple(notes))


def left_behind(found: Located, sites: Iterable[Site]) -> list[str]:
    """A line on modules that have a LoRA and are no site: poolers, projections, another tower, a decoder."""
    rows: dict[str, set[int]] = {}
    for site in sites:
        rows.setdefault(site.weight.parameter, set()).update(rows_of(site.weight, found.state).tolist())
    left = [
        path
        for path in found.adapter.modules
        if not rows.get(found.weights[path].parameter, set()) & set(rows_of(found.weights[path], found.state).tolist())
    ]
    if not left:
        return []
    sizes = {path: float(update_of(found, path).double().square().sum()) for path in found.adapter.modules}
    share = sum(sizes[path] for path in left) / (sum(sizes.values()) or 1.0)
    return [
        f"{found.adapter.place}: {len(left)} modules that are no linear map of a block are left behind, such as {left[0]}, with "
        f"{100 * share**0.5:.2g} % of the adapter's norm."
    ]


def _whole(found: Located, parameter: str) -> Tensor:
    """By how much a parameter of the base differs in an adapter that keeps it whole, or parts of it."""
    vector: StateDict = {parameter: torch.zeros_like(found.state[parameter], dtype=torch.float64)}
    for name, slot in found.whole.items():
        if slot.parameter == parameter:
            slot.write(vector, whole_change(found, name).double())
    return vector[parameter]


def _biases(
    changes: Mapping[str, Tensor],
    target: Calibratable,
    matched: Mapping[str, Sequence[Site]],
    maps: Maps,
    state: Mapping[str, Tensor],
) -> StateDict:
    """The target's biases with the source's changes in them, whole."""
    whole: StateDict = {}
    for site in target.sites:
        for ours in matched.get(site.name, ()):
            if ours.bias is None or ours.bias.parameter not in changes:
                continue
            if site.bias is None:
                raise MethodError(
                    f"The adapter changes the bias of {ours.name}, and {site.name} of {target.name} has none."
                )
            sides = maps(ours, site)
            moved = sides.bias_gain * through(ours.bias.read(changes)[None], sides.gives)[0]
            whole.setdefault(site.bias.parameter, state[site.bias.parameter].clone())
            site.bias.write(whole, site.bias.read(whole) + moved.to(state[site.bias.parameter]))
    return whole


def _check_fits(name: str, change: Tensor, state: Mapping[str, Tensor], found: Located, target: Calibratable) -> None:
    theirs = tuple(state[name].shape) if name in state else "missing"
    if theirs != tuple(change.shape):
        raise MethodError(
            f"others=add: {name} is {tuple(change.shape)} in {found.adapter.place} and {theirs} in {target.name}; use others=leave."
        )


def _embeddings(
    found: Located, source: Calibratable, target: Calibratable, state: Mapping[str, Tensor]
) -> dict[str, LowRank]:
    """LoRAs of embeddings as they are: only rows of the same tokens mean the same."""
    paths, taken = paths_of(target, state), {}
    for path, update in found.adapter.embeddings.items():
        if source.vocabulary is None or source.vocabulary != target.vocabulary:
            raise MethodError(
                f"others=add: {found.adapter.place} has a LoRA of {path}, and {source.name} and {target.name} have different tokenizers, "
                "so that its rows are of other tokens; use others=leave."
            )
        name = found.weights[path].parameter
        _check_fits(name, torch.empty(update.shape[::-1], device="meta"), state, found, target)
        taken[paths[name]] = update
    return taken

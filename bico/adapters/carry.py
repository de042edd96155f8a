"""An adapter of the target by any method: exactly, in the factors, where a method allows it; else the nearest of a rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bico.adapters.adapter import Adapter
from bico.adapters.dense import whole_change
from bico.adapters.extract import extract
from bico.adapters.factors import LowRank
from bico.adapters.files import read_adapter
from bico.adapters.maps import aligned_maps, identity
from bico.adapters.names import Located, locate
from bico.adapters.transport import Carried, takes, transport
from bico.errors import MethodError
from bico.methods import Evidence, Method, Others, Pair
from bico.methods.aligned import Aligned
from bico.methods.unaligned import Naive
from bico.models.experts import everything
from bico.models.families import foreign_namings
from bico.models.protocol import Calibratable, Completing
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Given:
    """What was fine-tuned from the source: an adapter, or a task vector."""

    tau: Callable[[], StateDict]
    """Of the source; an adapter's is its updates, formed."""
    found: Located | None = None
    """The adapter in the source; None of a full fine-tune."""


def find_in(place: str, model: Calibratable, family: str) -> Located:
    """Reads an adapter and finds its modules in its base; errors are those of `read_adapter` and `locate`."""
    return locate(read_adapter(place), model, foreign_namings(family, everything(model)))


def carry(
    method: Method,
    given: Given,
    source: Calibratable,
    target: Calibratable,
    evidence: Evidence,
    rank: int | None = None,
) -> Carried:
    r"""Returns the target's adapter.

    A method that multiplies by a map on each side, and a plain copy, are carried in the factors, at the rank and α of the
    source's adapter. Of any other method, and of a full fine-tune, the task vector is formed, and the adapter of the rank that
    comes nearest to it in each module is taken; what that keeps is told.

    Arguments:
        rank: Of the adapter, in place of the source's; of a full fine-tune it has to be given.

    Raises:
        MethodError: If the method cannot serve the pair, nothing would be carried, or a full fine-tune comes without a rank.
    """
    found = given.found
    if found is not None and isinstance(method, Aligned):
        taken = takes(found, source, target, method.depth)
        maps = aligned_maps(method, evidence, Pair.of(source, target), taken)
        matched = {name: one.sites for name, one in taken.items()}
        made = transport(found, source, target, maps, rank, method.others, matched)
    elif found is not None and isinstance(method, Naive):
        method.check(Pair.of(source, target))
        alike = not found.adapter.embeddings or (
            source.vocabulary is not None and source.vocabulary == target.vocabulary
        )
        made = transport(found, source, target, identity, rank, Others.ADD if alike else Others.LEAVE)
    else:
        made = _nearest(method.transport(given.tau(), Pair.of(source, target), evidence), found, target, rank)
    return _within(made, target)


def _nearest(vector: StateDict, found: Located | None, target: Calibratable, rank: int | None) -> Carried:
    """The adapter that comes nearest to a task vector of the target."""
    config: dict[str, Any] = {"task_type": "CAUSAL_LM"} if isinstance(target, Completing) else {}
    alpha = None
    if found is not None:
        first = max(found.adapter.modules.values(), key=lambda update: update.rank)
        rank = rank or first.rank
        alpha = first.scale * rank
        config = {k: v for k, v in found.adapter.config.items() if k in ("task_type", "lora_dropout")}
    if rank is None:
        raise MethodError("A full fine-tune has no rank that an adapter could keep: give one.")
    made = extract(vector, target, rank, alpha, config)
    return Carried(made.adapter, made.paths, made.kept, tuple(made.told()))


def _within(made: Carried, target: Calibratable) -> Carried:
    """Without what lies outside of the parameters that the target's task vectors have, and so is never measured: embeddings."""
    state, found = target.state(), locate(made.adapter, target)
    outside = [path for path in made.adapter.embeddings if found.weights[path].parameter not in state]
    outside += [name for name in made.adapter.whole if found.whole[name].parameter not in state]
    if not outside:
        return made
    adapter = replace(
        made.adapter,
        embeddings={path: u for path, u in made.adapter.embeddings.items() if path not in outside},
        whole={name: tensor for name, tensor in made.adapter.whole.items() if name not in outside},
    )
    note = (
        f"{len(outside)} tensors that belong to no task vector of {target.name} are left behind, such as {outside[0]}."
    )
    return replace(made, adapter=adapter, notes=(*made.notes, note))


def strengthened(found: Located, alpha: float) -> Adapter:
    """Returns an adapter whose updates are multiplied by α: in B, so that rank and scale stay, and in what is kept whole.

    Half precision is multiplied in float32, and kept in its own dtype.
    """
    adapter = found.adapter
    if alpha == 1:
        return adapter

    def times(updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
        return {
            path: replace(u, up=_times(u.up, alpha), bias=None if u.bias is None else _times(u.bias, alpha))
            for path, u in updates.items()
        }

    whole = {
        name: (found.whole[name].read(found.state).float() + alpha * whole_change(found, name)).to(tensor.dtype)
        for name, tensor in adapter.whole.items()
    }
    return replace(adapter, modules=times(adapter.modules), embeddings=times(adapter.embeddings), whole=whole)


def _times(tensor: Tensor, alpha: float) -> Tensor:
    return (alpha * tensor.to(torch.promote_types(tensor.dtype, torch.float32))).to(tensor.dtype)

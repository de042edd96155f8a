"""Adapters as task vectors: what they add to the weights of their base, one tensor per parameter."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from bico.adapters.names import Located
from bico.errors import CheckpointError
from bico.task_vector import StateDict, add


def update_of(found: Located, path: str) -> Float[Tensor, "out in"]:
    r"""Returns what an adapter adds to a module's weight (out, in), in float32 or better.

    With DoRA, :math:`\tau = m \, (W + s B A) / \|W + s B A\| - W`, norms over each output's weights: no product of thin
    factors, so it is formed (Liu et al., 2024, arXiv:2402.09353, eq. 5).
    """
    adapter = found.adapter
    if path in adapter.embeddings:
        return adapter.embeddings[path].dense().T
    update = adapter.modules[path].dense()
    if path not in adapter.magnitudes:
        return update
    weight = found.weights[path].read(found.state).to(update)
    directions = weight + update
    magnitude = adapter.magnitudes[path].to(update).flatten()
    return (magnitude / directions.norm(dim=1))[:, None] * directions - weight


def as_task_vector(found: Located, only: Iterable[str] | None = None) -> StateDict:
    """Returns the task vector that an adapter is: the parameters that it changes, by the base's names, in float32 or better.

    Tensors that it keeps whole are there as differences from the base, but for those that the base has not (heads).

    Arguments:
        only: Names of parameters to form; all that it changes unless told.

    Raises:
        CheckpointError: If a tensor that it keeps whole has another shape in the base.
    """
    wanted = None if only is None else set(only)
    vector: StateDict = {}

    def put(slot_name: str, slot: object, change: Tensor) -> None:
        if wanted is not None and slot_name not in wanted:
            return
        if slot_name not in vector:
            vector[slot_name] = torch.zeros_like(found.state[slot_name], dtype=change.dtype)
        slot.write(vector, slot.read(vector) + change)  # type: ignore[attr-defined]

    for path, slot in found.weights.items():
        put(slot.parameter, slot, update_of(found, path))
    for path, update in found.adapter.modules.items():
        if (shift := update.shift()) is not None:
            put(found.biases[path].parameter, found.biases[path], shift)
    for name, slot in found.whole.items():
        put(slot.parameter, slot, whole_change(found, name))
    return vector


def whole_change(found: Located, name: str) -> Tensor:
    """Returns by how much a tensor that an adapter keeps whole differs from the base's.

    Raises:
        CheckpointError: If it has another shape there, such as an embedding of a resized vocabulary.
    """
    kept, ours = found.adapter.whole[name], found.whole[name].read(found.state)
    if kept.shape != ours.shape:
        raise CheckpointError(
            f"{found.adapter.place} keeps {name} whole, as {tuple(kept.shape)}, where its base has {tuple(ours.shape)}: a padded or "
            "resized vocabulary, or another base; give the base with the same."
        )
    wide = torch.promote_types(torch.promote_types(kept.dtype, ours.dtype), torch.float32)
    return kept.to(wide) - ours.to(wide)


def merged(found: Located, alpha: float = 1.0) -> StateDict:
    """Returns all tensors of the base with the adapter in them, as PEFT's `merge_and_unload` leaves them."""
    return add(found.state, as_task_vector(found), alpha)

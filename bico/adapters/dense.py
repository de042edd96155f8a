"""Adapters as task vectors: what they add to the weights of their base, one tensor per parameter."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from bico.adapters.names import Located
from bico.errors import CheckpointError
from bico.models.sites import Slot
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

    def put(slot: Slot, form: Callable[[], Tensor]) -> None:
        name = slot.parameter
        if wanted is not None and name not in wanted:
            return
        change = form()
        if name not in vector:
            # Of the base no more than the shape is looked at: it may not be in memory.
            vector[name] = torch.zeros(found.state[name].shape, dtype=change.dtype, device=change.device)
        slot.write(vector, slot.read(vector) + change)

    for path, slot in found.weights.items():
        put(slot, partial(update_of, found, path))
    for path, update in found.adapter.modules.items():
        if (shift := update.shift()) is not None:
            put(found.biases[path], shift.detach)
    for name, slot in found.whole.items():
        put(slot, partial(whole_change, found, name))
    return vector


class Formed(Mapping[str, Tensor]):
    """The task vector that an adapter is, of which each tensor is formed when it is asked for and none is kept.

    As large as a model when it is whole; this is for those who go through it once.
    """

    def __init__(self, found: Located, among: Container[str]) -> None:
        """Arguments:
        among: Parameters that a task vector of the base has: what an adapter changes beside them is left out.
        """
        slots = [
            *found.weights.values(),
            *(found.biases[p] for p, u in found.adapter.modules.items() if u.bias is not None),
        ]
        slots += found.whole.values()
        self._found, self._names = found, dict.fromkeys(s.parameter for s in slots if s.parameter in among)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return as_task_vector(self._found, [name])[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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

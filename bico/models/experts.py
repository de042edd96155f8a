"""A checkpoint as an expert of a model: its parameters by the model's names, and whether it can be one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bico.errors import CheckpointError
from bico.models.checkpoints import Checkpoint, check_floats
from bico.models.naming import Naming, Reading, own_namings, read_as
from bico.models.protocol import Calibratable, Model
from bico.task_vector import StateDict, norm

FARTHEST = 0.5
"""Of an expert's change to the norm of its source. Measured on the embedded zoo: fine-tuning as usual changes a model by 0.03
to 0.04 of its norm, at ten times the usual learning rate by 0.28. A task vector in an expert's place is off by 0.99, the
weights of another model of the same architecture by 1.38 (1.41, if they have nothing in common)."""
_TASK_VECTOR = 0.3
"""What is off by so much and is itself shorter than this, in norms of the source, is taken for a task vector."""


@dataclass(frozen=True)
class Expert:
    """A fine-tuned model."""

    state: StateDict
    """The parameters that are carried, by the source's names, float32."""
    notes: tuple[str, ...]
    """Lines for people: how it was read, how far it is from the source, what of it is not carried."""


def expert_of(
    model: Model, checkpoint: Checkpoint, foreign: Sequence[Naming], what: str, farthest: float | None = FARTHEST
) -> Expert:
    """Reads a checkpoint as an expert of a model.

    Arguments:
        foreign: How other libraries call the model's parameters.
        what: How messages call the checkpoint.
        farthest: Refuse a change of more than so many norms of the source; None to take any.

    Raises:
        CheckpointError: If the checkpoint is not of the model's architecture, a parameter that is carried is not finite, or
            it cannot be fine-tuned from this model: it is the model itself, or too far from it.
    """
    state, whole = model.state(), everything(model)
    reading = read_as(checkpoint, [*own_namings(whole, state), *foreign], state, what)
    stored = {name: reading.parameter(name) for name in state if reading.has(name)}
    _check_fits(stored, state, reading, what)
    expert = {name: stored[name].float() if name in stored else state[name].float().cpu() for name in state}
    vector = {name: tensor - state[name].float().cpu() for name, tensor in expert.items()}
    vector = {name: t for name, t in vector.items() if name in stored and not is_rounded(stored[name], state[name])}
    beside = {
        name: reading.parameter(name).float() - tensor.float().cpu()
        for name, tensor in whole.items()
        if name not in state and reading.has(name) and _differs(reading.parameter(name), tensor)
    }
    size, length = norm(state), norm(vector)
    doubt = ""
    if not vector:
        doubt = _same(model, state, beside, what)
    elif length > (farthest or FARTHEST) * size:
        doubt = _far(model, length / size, norm(expert) / size, farthest or FARTHEST, what)
    if doubt and farthest is not None:
        raise CheckpointError(doubt)
    notes = [*checkpoint.notes, *reading.notes]
    if kept := [name for name in state if name not in stored]:
        notes.append(f"{checkpoint.place} holds no {', '.join(kept)}: the source's own stays.")
    notes += [doubt] * bool(doubt)
    if vector:
        notes.append(f"The expert's change has {length / size:.2g} times the norm of its source.")
    notes += _not_carried(model, vector, beside) + _strangers(reading, whole, model)
    return Expert(expert, tuple(notes))


def everything(model: Calibratable) -> StateDict:
    """All tensors of the module behind a model, by the names that its `state()` has; of a model without one, these."""
    state = model.state()
    for module in vars(model).values():
        if isinstance(module, nn.Module) and state.keys() <= (whole := module.state_dict()).keys():
            return whole
    return state


def is_rounded(stored: Tensor, ours: Tensor) -> bool:
    """Whether a tensor is one of ours, up to what its dtype rounds away."""
    return stored.shape == ours.shape and torch.equal(stored.float(), ours.cpu().to(stored.dtype).float())


def _differs(stored: Tensor, ours: Tensor) -> bool:
    return stored.is_floating_point() and stored.shape == ours.shape and not is_rounded(stored, ours)


def _check_fits(stored: Mapping[str, Tensor], state: Mapping[str, Tensor], reading: Reading, what: str) -> None:
    check_floats(stored, what)
    for name, tensor in stored.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{what} has another architecture: {name} is {tuple(tensor.shape)} there and {tuple(state[name].shape)} in "
                "the model. Give a checkpoint fine-tuned from this very model."
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{what} holds NaN or infinite values in {name}: the file or its training is broken.")
    # Block 12 of a model that has blocks 0 to 11: it is called as they are, but for the number.
    kinds = {re.sub(r"\d+", "N", name) for name in reading.used}
    more = [n for n in reading.checkpoint.tensors if n not in reading.used and re.sub(r"\d+", "N", n) in kinds]
    if more:
        raise CheckpointError(
            f"{what} has a parameter the model lacks: {more[0]!r} (of {len(more)}): it is a checkpoint of another architecture."
        )


def _same(model: Model, state: Mapping[str, Tensor], beside: Mapping[str, Tensor], what: str) -> str:
    others = (
        f" Of its other parameters {len(beside)} do, such as {next(iter(beside))}, but those are not carried."
        if beside
        else ""
    )
    return (
        f"{what} is {model.name} itself, not an expert of it: none of the {len(state)} parameters that are carried differs."
        f"{others} Give the fine-tuned checkpoint."
    )


def _far(model: Model, change: float, length: float, farthest: float, what: str) -> str:
    if length < _TASK_VECTOR:
        looks = f"being itself only {length:.2g} times as long, it looks like a task vector: add it to the source first"
    else:
        looks = f"it looks like the weights of another model: give the one that was fine-tuned from {model.name}"
    return (
        f"{what} differs from {model.name} by {change:.2g} times the norm of its weights, where fine-tuning changes them by "
        f"less than {farthest:g}: {looks} (or raise --expert-farthest, if it is one)."
    )


def _not_carried(model: Model, vector: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> list[str]:
    """What was tuned and gets lost on the way."""
    at_sites = {slot.parameter for site in model.sites for slot in (site.weight, site.bias) if slot is not None}
    off_sites = {name: tensor for name, tensor in vector.items() if name not in at_sites}
    total, said = norm({**vector, **beside}), []
    if beside:
        said.append(
            f"The expert also changed what is not carried, {len(beside)} tensors such as {next(iter(beside))}: they are "
            f"dropped, with {_share(beside, total)} of its change's norm."
        )
    if off_sites:
        said.append(
            f"{len(off_sites)} of the {len(vector)} tensors that changed belong to no linear map, such as "
            f"{next(iter(off_sites))}: aligned methods leave them out unless others=add, with {_share(off_sites, total)} of "
            "the change's norm."
        )
    return said


def _strangers(reading: Reading, whole: Mapping[str, Tensor], model: Model) -> list[str]:
    known = reading.used | {reading.prefix + name for name in whole}
    said = []
    if grown := [n for n, ours in whole.items() if reading.has(n) and reading.parameter(n).shape != ours.shape]:
        said.append(f"{len(grown)} tensors have another shape than the source's and are left out, such as {grown[0]}.")
    others = [n for n in reading.checkpoint.tensors if n not in known and not n.endswith("position_ids")]
    if not others:
        return said
    return [*said, f"{len(others)} tensors for which {model.name} has no place are left out, such as {others[0]}."]


def _share(part: Mapping[str, Tensor], total: float) -> str:
    return f"{100 * norm(part) / total:.2g} %"

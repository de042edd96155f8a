"""Where an adapter's modules lie in a model: module paths of PEFT, parameters of the model, rows of its sites.

A model may say what PEFT calls its modules in a method `module_path(parameter)`, from the name of a weight in its `state()` to the
path of the module in the model that people load the folder with; None for a weight that no module has. Without it the path
is the parameter's name without `.weight`, and PEFT's own for an `nn.MultiheadAttention`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from bico.adapters.adapter import Adapter
from bico.errors import CheckpointError, nearest
from bico.models.checkpoint_names import Naming, Piece
from bico.models.experts import everything
from bico.models.protocol import Calibratable
from bico.models.sites import Slot

FUSED = "in_proj_weight"
"""The weight of an `nn.MultiheadAttention`: PEFT's LoRA of it is called as the attention."""


@dataclass(frozen=True)
class Located:
    """An adapter whose every module was found in a base model."""

    adapter: Adapter
    state: Mapping[str, Tensor]
    """All tensors of the base, by its own names."""
    weights: Mapping[str, Slot]
    """Where the weight of each of the adapter's modules lies, by the module's path in the adapter."""
    biases: Mapping[str, Slot]
    """Where their biases lie, of those that have one."""
    whole: Mapping[str, Slot]
    """Where tensors that the adapter keeps whole lie, by their names in it; those that the base has not are left out."""
    notes: tuple[str, ...] = ()

    @property
    def strangers(self) -> tuple[str, ...]:
        """Tensors that the adapter keeps whole and the base has not: heads."""
        return tuple(name for name in self.adapter.whole if name not in self.whole)


def paths_of(model: Calibratable, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The module path of every weight that is a module's, by the model's name of it."""
    own: Callable[[str], str | None] = getattr(model, "module_path", None) or _rule(state)
    return {name: path for name in state if (path := own(name)) is not None}


def _rule(names: Iterable[str]) -> Callable[[str], str | None]:
    attentions = {name.removesuffix(f".{FUSED}") for name in names if name.endswith(f".{FUSED}")}

    def path(name: str) -> str | None:
        if name.endswith(f".{FUSED}"):
            return name.removesuffix(f".{FUSED}")
        if not name.endswith(".weight"):
            return None
        path = name.removesuffix(".weight")
        parent, _, last = path.rpartition(".")
        return f"{parent}.base_layer.{last}" if last == "out_proj" and parent in attentions else path

    return path


def locate(adapter: Adapter, model: Calibratable, foreign: Sequence[Naming] = ()) -> Located:
    """Finds an adapter's modules in its base model, behind one prefix (`bert.`, `base_model.`, any).

    Arguments:
        foreign: How other libraries call the model's parameters.

    Raises:
        CheckpointError: If a module is not there, or has another shape: PEFT would leave it out without a word.
    """
    state = everything(model)
    tables = [_table(paths_of(model, state), _own_slots(model, state)), *(_foreign(naming) for naming in foreign)]
    tried = [(_prefix(adapter, table), table) for table in tables]
    (prefix, missing), table = min(tried, key=lambda one: len(one[0][1]))
    if missing:
        name = prefix + missing[0] if prefix else missing[0]
        raise CheckpointError(
            f"{adapter.place} has a LoRA of {name} ({len(missing)} of its {len(adapter.updates)} modules are so), and {model.name} has "
            f"no such module: it is of another base{_named(adapter)}, or its modules are called otherwise now; "
            f"{nearest(missing[0], _some(table.weights, missing[0]))}"
        )
    weights = {path: table.weights[path.removeprefix(prefix)] for path in adapter.updates}
    ends = {path: path.removeprefix(prefix).replace(".base_layer.", ".") for path in adapter.updates}
    biases = {path: slot for path, end in ends.items() if (slot := table.bias(end)) is not None}
    whole = {name: table.tensors[end] for name in adapter.whole if (end := name.removeprefix(prefix)) in table.tensors}
    notes = [f"{adapter.place}: the prefix '{prefix}' was taken off."] * bool(prefix)
    notes += [f"{adapter.place}: read as {table.whose}."] * bool(table.whose)
    found = Located(adapter, state, weights, biases, whole, tuple(notes))
    _check_shapes(found, model.name)
    return found


def rows_of(slot: Slot, state: Mapping[str, Tensor]) -> Int[Tensor, " rows"]:
    """Which outputs of its parameter a slot has, in order; however it is cut, it is asked with numbered outputs."""
    shape = state[slot.parameter].shape
    numbers = torch.arange(shape[-1] if slot.transposed else shape[0])
    if len(shape) > 1:
        numbers = numbers[None, :] if slot.transposed else numbers[:, None]
        return slot.read({slot.parameter: numbers})[:, 0]
    return slot.read({slot.parameter: numbers})


@dataclass(frozen=True)
class _Table:
    """How somebody calls a model's modules and parameters, and where these lie in it."""

    whose: str
    weights: Mapping[str, Slot]
    """By module path."""
    tensors: Mapping[str, Slot]
    """By name of the parameter."""

    def bias(self, path: str) -> Slot | None:
        return next((self.tensors[n] for n in (f"{path}.bias", f"{path}.in_proj_bias") if n in self.tensors), None)


def _table(paths: Mapping[str, str], slots: Mapping[str, Slot], whose: str = "") -> _Table:
    spelt = spellings(paths, slots)
    return _Table(whose, {path: slots[name] for name, path in paths.items()}, {spelt[n]: s for n, s in slots.items()})


def spellings(paths: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """How adapters spell the parameters of a model: what `module_path` puts before a weight stands before its bias too.

    Arguments:
        paths: Module path of each weight.
        names: The model's own names.
    """
    stems = {n.rpartition(".")[0]: p.replace(".base_layer.", ".") for n, p in paths.items()}
    spelt = {}
    for name in names:
        stem, _, end = name.rpartition(".")
        spelt[name] = f"{stems.get(stem, stem)}.{end}" if stem else name
    return spelt


def _own_slots(model: Calibratable, state: Mapping[str, Tensor]) -> dict[str, Slot]:
    """Every tensor as a slot, in the orientation that its sites have."""
    turned = {site.weight.parameter: site.weight.transposed for site in model.sites}
    return {name: Slot(name, transposed=turned.get(name, False)) for name in state}


def _foreign(naming: Naming) -> _Table:
    slots: dict[str, Slot] = {}
    for ours, piece in naming.pieces.items():
        slots |= _slots_in(ours, piece)
    paths = {name: path for name in slots if (path := _rule(slots)(name)) is not None}
    return _table(paths, slots, naming.whose)


def _slots_in(ours: str, piece: Piece) -> dict[str, Slot]:
    """Where the tensors that a parameter is made of lie in it: stacked, turned, or it itself; found by joining small ones."""
    if len(piece.names) == 1:
        try:
            turned = piece.join([torch.zeros(1, 2)]).shape == (2, 1)
        except (RuntimeError, IndexError):
            return {}
        return {piece.names[0]: Slot(ours, transposed=turned)}
    parts = [torch.full((1, 1), float(n)) for n in range(len(piece.names))]
    if not torch.equal(piece.join(parts), torch.cat(parts)):
        return {}
    return {name: _Chunk(ours, index=n, of=len(parts)) for n, name in enumerate(piece.names)}


@dataclass(frozen=True)
class _Chunk(Slot):
    """One of several equal parts of a parameter."""

    index: int = 0
    of: int = 1

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        return state[self.parameter].chunk(self.of)[self.index]

    def write(self, state: dict[str, Tensor], value: Tensor) -> None:
        self.read(state).copy_(value)


def _prefix(adapter: Adapter, table: _Table) -> tuple[str, list[str]]:
    """The prefix behind which most of an adapter's modules are there, and those that are not, without it."""
    counts: Counter[str] = Counter({"": 0})
    for path in adapter.updates:
        parts = path.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in table.weights:
                counts["".join(f"{part}." for part in parts[:place])] += 1
    prefix = max(counts, key=lambda one: (counts[one], -len(one)))
    missing = [
        path.removeprefix(prefix)
        for path in adapter.updates
        if not path.startswith(prefix) or path.removeprefix(prefix) not in table.weights
    ]
    return prefix, missing


def _named(adapter: Adapter) -> str:
    return f" ({adapter.base})" if adapter.base else ""


def _some(paths: Iterable[str], like: str) -> list[str]:
    """A few paths to show: the nearest."""
    import difflib

    paths = list(paths)
    return difflib.get_close_matches(like, paths, n=3, cutoff=0.0) or paths[:3]


def _check_shapes(found: Located, name: str) -> None:
    adapter = found.adapter
    for path, update in adapter.modules.items():
        shape = tuple(found.weights[path].read(found.state).shape)
        if update.shape != shape:
            raise CheckpointError(
                f"{adapter.place}: its LoRA of {path} is of a map of shape {update.shape}, and {name} has one of {shape} there: it is "
                f"of another base{_named(adapter)}."
            )
    for path, update in adapter.embeddings.items():
        shape = tuple(found.weights[path].read(found.state).shape)
        if update.shape != shape[::-1]:
            raise CheckpointError(
                f"{adapter.place}: its LoRA of {path} is of {update.shape[1]} tokens in {update.shape[0]} features, and {name} has an "
                f"embedding of {shape[0]} in {shape[1]}: its vocabulary was padded or resized; give the base with the same."
            )
    for path, update in adapter.modules.items():
        if update.bias is not None and path not in found.biases:
            raise CheckpointError(
                f"{adapter.place}: its LoRA of {path} has a bias, and {name} has none there to add it to."
            )

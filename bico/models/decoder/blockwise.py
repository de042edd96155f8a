"""Decoders larger than memory: their weights stay on the disk, and one block at a time is in memory.

On the way forth transformers' own forward pass is run; hooks bring each block in before its turn and let go of it behind.
What each block was called with is left in files. On the way back each block is brought in again, run on what it was called
with, and differentiated: gradients of its input are those of the next one's output. The operations are those of the whole
model, and so are the numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bico.errors import CheckpointError, ConfigError
from bico.models.decoder.decoder import AT_ONCE, Decoder
from bico.models.protocol import Answers, Watching
from bico.models.shards import Shards
from bico.models.sites import Site
from bico.task_vector import check_same_architecture, summed

Noted = Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], None]
"""Told what a block is called with: its index, the stream, and the rest of its arguments."""


class BlockwiseDecoder(Decoder):
    """A decoder whose parameters are read block by block. Its `state()` tells shapes and dtypes alone."""

    def __init__(
        self, model: Any, tokenizer: Any, name: str, shards: Shards, stored: Mapping[str, str], device: torch.device
    ) -> None:
        """Arguments:
            model: Of transformers, its parameters without memory and its buffers in it (`without_memory`).
            shards: Where its weights are.
            stored: What each of its parameters is called there.
            device: Where blocks are brought to.

        Raises:
            CheckpointError: If the model's blocks are not those of its kind.
        """
        super().__init__(model, tokenizer, name)
        self._shards, self._stored, self._device = shards, stored, device
        for buffer in [*model.buffers()]:
            buffer.data = buffer.data.to(device)
        self._blocks: Sequence[nn.Module] = list(model.get_submodule(self.layout.blocks))
        self._homes = _homes(model)
        inside = [f"{self.layout.blocks}.{index}." for index in range(len(self._blocks))]
        self._of_block = [[n for n in self._homes if n.startswith(prefix)] for prefix in inside]
        within = {name for names in self._of_block for name in names}
        self._outside = [n for n in self._homes if n not in within]
        self._here: set[str] = set()
        self._update: tuple[Mapping[str, Tensor], float] = {}, 1.0

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._blocks)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters that a task vector has, each read when it is asked for."""
        return _Renamed(self._shards, {name: self._stored[name] for name in self.state()})

    def block_bytes(self, block: int | None) -> int:
        """Bytes that a block takes in memory; with None those of all that is outside of blocks, the head included."""
        names = self._outside if block is None else self._of_block[block]
        return sum(self._homes[name][0].nbytes for name in names)

    @property
    def loss_bytes(self) -> int:
        """Bytes of the scores that the loss keeps at once: as they are, as float32, their softmax and its gradient."""
        return AT_ONCE * (self._shards.dtype.itemsize + 3 * torch.float32.itemsize)

    def operations(self, inputs: Int[Tensor, "batch tokens fields"]) -> int:
        """Multiplications and additions of a forward pass of a batch with its loss: of its linear maps, its attention, and its
        head on the tokens that are asked for.
        """
        samples, tokens, _ = inputs.shape
        maps = sum(site.shape[0] * site.shape[1] for site in self.sites) * samples * tokens
        attention = 2 * samples * tokens**2 * self.heads.queries * self.heads.size * self.blocks
        head = self.model.get_output_embeddings().weight.numel() * int(inputs[:, 1:, 1].sum())
        return 2 * (maps + attention + head)

    @contextmanager
    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> Iterator[None]:
        """Adds a task vector, for the time of the context, to whatever is brought in.

        Raises:
            CheckpointError: If it names a parameter that the model lacks.
        """
        if strange := vector.keys() - self.state().keys():
            raise CheckpointError(f"The task vector has a parameter that {self.name} lacks: {min(strange)!r}.")
        before, self._update = self._update, (vector, alpha)
        try:
            yield
        finally:
            self._update = before

    def instrument(self) -> Any:
        raise ConfigError(f"{self.name} is read block by block, so that not all of its sites are there at once.")

    def loss(self, inputs: Tensor, labels: Tensor, head: Tensor | None = None) -> Float[Tensor, ""]:
        """The loss as a number: its gradients are those of a `trail`."""
        with torch.no_grad(), self.here(None):
            return super().loss(inputs, labels, head)

    def answers(self, inputs: Tensor) -> Answers:
        with torch.no_grad(), self.here(None):
            return super().answers(inputs)

    def choose(self, examples: Sequence[Any], answers: Sequence[str]) -> Answers:
        with torch.no_grad(), self.here(None), self._one_by_one(lambda *_: None):
            return super().choose(examples, answers)

    @contextmanager
    def here(self, block: int | None) -> Iterator[None]:
        """Brings a block into memory for the time of the context, or with None all that is outside of blocks; what is there
        already stays.

        Raises:
            CheckpointError: If its file is damaged, or a value is not finite.
        """
        names = [name for name in (self._outside if block is None else self._of_block[block]) if name not in self._here]
        if names:
            self._put(names)
        self._here.update(names)
        try:
            yield
        finally:
            self._here.difference_update(names)
            for name in names:
                empty, homes = self._homes[name]
                for module, leaf in homes:
                    module._parameters[leaf] = empty

    def forth(self, inputs: Tensor, labels: Tensor, head: Tensor | None, folder: Path, gradients: bool) -> "Trail":
        """Runs a batch through all blocks, and the loss back through what is behind them.

        Arguments:
            labels: Are not looked at, and neither is the head.
            folder: An empty one, for what the blocks read.
            gradients: Whether to take the loss, for a way back.
        """
        trail = Trail(self, folder)
        with self.here(None):
            last, _ = self._run(inputs, trail.note)
            if gradients:
                top = last.detach().requires_grad_()
                with torch.enable_grad():
                    hidden = self.model.get_submodule(self.layout.norm)(top)
                    self._told_from(hidden, inputs)[0].sum().backward()
                trail.gradient = top.grad
        return trail

    def _encode(self, inputs: Tensor) -> Float[Tensor, "batch tokens features"]:
        return self._run(inputs, lambda *_: None)[1]

    def _run(self, inputs: Tensor, note: Noted) -> tuple[Tensor, Tensor]:
        """What the last block gives, and what the norm makes of it."""
        with torch.no_grad(), self.here(None), self._one_by_one(note) as last:
            hidden = super()._encode(inputs)
        return last[0], hidden

    @contextmanager
    def _one_by_one(self, note: Noted) -> Iterator[list[Tensor]]:
        """Within it a pass brings in each block before its turn, and drops it behind it; gives what the last one gave."""
        last: list[Tensor] = []
        with ExitStack() as hooks:
            for index, block in enumerate(self._blocks):
                there = hooks.enter_context(ExitStack())

                def before(_: Any, args: Any, kwargs: Any, index: int = index, there: ExitStack = there) -> None:
                    note(index, args[0], args[1:], kwargs)
                    there.enter_context(self.here(index))

                def after(_: Any, _args: Any, output: Any, there: ExitStack = there) -> None:
                    there.close()
                    last[:] = [_stream(output)]

                hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            yield last

    def _put(self, names: Iterable[str]) -> None:
        vector, alpha = self._update
        read = self._shards.read([self._stored[name] for name in names], self._shards.dtype, self._device)
        for name in names:
            tensor = read.pop(self._stored[name])
            if name in vector:
                update = vector[name]
                check_same_architecture({name: update}, {name: tensor}, "The task vector")
                tensor = summed(tensor, update, alpha)
            for module, leaf in self._homes[name][1]:
                module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class Trail:
    """What a batch left on its way through a model: what each block read, and the gradient of what the last one gave that is
    still to be sent back.
    """

    def __init__(self, model: BlockwiseDecoder, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.gradient: Tensor | None = None
        """Of what the block gives that is next; None of a batch that is looked at without gradients."""

    def note(self, block: int, stream: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Masks and positions are shared by the blocks: what is large is the stream alone.
        save_file({_STREAM: stream.contiguous()}, self._file(block))
        self._calls.append((args, kwargs))

    def back(self, block: int, sites: Sequence[Site], watching: Watching) -> None:
        """Runs a block, which has to be in memory, once more, and takes the gradient through it: the last one first, each
        once. What it read is deleted.

        Arguments:
            sites: Those of the block that are opened for it.
            watching: Gives what is entered around it, from the modules of these sites by name.
        """
        model, (args, kwargs) = self._model, self._calls[block]
        stream = load_file(self._file(block), device=str(model.device))[_STREAM]
        self._file(block).unlink()
        gradients = self.gradient is not None
        # The first block's input is where no gradient is wanted, as in a pass of the whole model.
        stream.requires_grad_(gradients and block > 0)
        with model._opened(sites) as modules, watching(modules), torch.set_grad_enabled(gradients):
            given = _stream(model._blocks[block](stream, *args, **kwargs))
            if gradients and given.requires_grad:
                given.backward(self.gradient)
        self.gradient = stream.grad

    def _file(self, block: int) -> Path:
        return self._folder / f"{block}.safetensors"


_STREAM = "stream"


class _Renamed(Mapping[str, Tensor]):
    """Some tensors of a mapping by other names."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _stream(output: Any) -> Tensor:
    """Blocks of some kinds give more than the stream."""
    return output[0] if isinstance(output, tuple) else output


def _homes(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Of each parameter, by its first name, the empty one and all the places that it has; several where it is shared."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, leaf))
    return {name: (parameter, places[id(parameter)]) for name, parameter in model.named_parameters()}


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are made in it have parameters of a shape and dtype, and no memory; buffers, which no file holds, have
    theirs.
    """
    plain = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        plain(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


_OLDER = {"lm_head.weight": "embed_out.weight"}
"""What parameters are called in files that newer models read, by what they are called in these: GPT-NeoX' head."""


def names_in(model: Any, shards: Shards, place: str) -> dict[str, str]:
    """What each parameter of a model is called where it is stored: as in the model, or without the name of its base.

    Raises:
        CheckpointError: If one is not there, is of another shape, or is quantised.
    """
    base = f"{model.base_model_prefix}."
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        stored = next((n for n in (name, name.removeprefix(base), _OLDER.get(name, name)) if n in shards), None)
        if stored is None:
            raise CheckpointError(
                f"{place}: the weights lack {name}: they are not those of the {type(model).__name__} that the configuration "
                "describes, or are called in a way that is not read block by block."
            )
        if shards.shape(stored) != tuple(parameter.shape):
            raise CheckpointError(
                f"{place}: {stored} is of shape {shards.shape(stored)}, and by the configuration of {tuple(parameter.shape)}."
            )
        found[name] = stored
    shards.check_floats(found.values())
    return found

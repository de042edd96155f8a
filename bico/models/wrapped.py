"""Somebody's own module as a model: any `torch.nn.Module` whose linear maps are modules of their own.

Sites are `nn.Linear`, 1x1 convolutions (`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, one group) and the transposed `Conv1D` of
transformers' GPT-2. All else (other convolutions, embeddings, norms, recurrent layers) is no linear map of single rows and
stays as the target has it; so do buffers, such as the running means of a batch norm.

The first number in a module's path is its block, what stands before it is the stack that the block belongs to, and the path
with a `*` for the number is its role: `encoder.layers.3.mlp.fc1` is role `encoder.layers.*.mlp.fc1` in block 3 of the
stack `encoder.layers`. Two modules fit together if they have the same roles; width and depth may differ.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bico.errors import CalibrationError, CheckpointError, nearest
from bico.models.inputs import Inputs, each, twice
from bico.models.permutations import PermutationGroup
from bico.models.sites import Site, Slot
from bico.task_vector import StateDict, added, check_finite

Loss = Callable[[Any, Tensor], Tensor]
"""From the module's output and the labels to the loss, summed over the batch."""

_AXES = {nn.Conv1d: -2, nn.Conv2d: -3, nn.Conv3d: -4}
_TOLERANCE = 1e-2
"""How far, relatively, a summed loss of a repeated batch may be from twice the loss: rounding of half precision."""


class Wrapped:
    """A module, frozen and in eval mode, that calibration can look into; made by `wrap`."""

    modality = "sample"
    vocabulary = None
    grid = None
    permutations: tuple[PermutationGroup, ...] = ()

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        sites: tuple[Site, ...],
        name: str,
        mask: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.module, self.sites, self.name = module.eval().requires_grad_(False), sites, name
        self._loss, self._mask, self._loss_is_summed = loss, mask, False

    def __repr__(self) -> str:
        return f"{self.name}: {type(self.module).__name__} with {len(self.sites)} sites"

    def state(self) -> StateDict:
        return {name: p.detach() for name, p in self._parameters()}

    def trainable(self) -> list[nn.Parameter]:
        return [p for _, p in self._parameters()]

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.is_floating_point()]

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        """Adds a task vector for the time of the context; afterwards the weights are bit for bit as before."""
        return added(self.state(), vector, alpha)

    def mask(self, inputs: Inputs) -> Tensor | None:
        return None if self._mask is None else self._mask(inputs)

    @contextmanager
    def instrument(self) -> Iterator[dict[str, nn.Module]]:
        """Gives the modules of the sites. Activations in place are made to work out of place meanwhile: they would
        overwrite what is measured.
        """
        self.module.requires_grad_(False)
        in_place: list[Any] = [module for module in self.module.modules() if getattr(module, "inplace", False) is True]
        try:
            for module in in_place:
                module.inplace = False
            yield {site.name: self.module.get_submodule(_path(site)) for site in self.sites}
        finally:
            for module in in_place:
                module.inplace = True

    def __call__(self, inputs: Inputs) -> Any:
        """The module's output for one batch, which is moved to the module's device."""
        device = next(self.module.parameters()).device
        # Detached: calibration makes inputs a starting point of autograd, and the caller's own tensors stay out of it.
        return _call(self.module, each(inputs, lambda tensor: tensor.detach().to(device)))

    def loss(self, inputs: Inputs, labels: Tensor, head: Tensor | None = None) -> Tensor:
        """The loss of one batch, summed over its samples.

        Raises:
            CalibrationError: If the module was put back in training mode, if the loss is no single number or no sum over
                samples, or if a head is given.
        """
        if head is not None:
            raise CalibrationError(f"{self.name} takes no classification head: its own loss is all it needs.")
        if any(module.training for module in self.module.modules()):
            raise CalibrationError(f"{self.name} is in training mode, where dropout and batch norm act: call .eval().")
        try:
            output = self(inputs)
        except RuntimeError as error:
            if "in-place operation" not in str(error):
                raise
            raise CalibrationError(
                f"{self.name} changes the output of a site in place ({error}): compute it out of place (no `+=`)."
            ) from error
        labels = labels.to(next(self.module.parameters()).device)
        total = self._loss(output, labels)
        if not isinstance(total, Tensor) or total.ndim:
            what = (
                f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else f"a {type(total).__name__}"
            )
            raise CalibrationError(
                f"The loss of {self.name} gives {what}: it must give one number, as reduction='sum'."
            )
        if not self._loss_is_summed:
            self._check_summed(output, labels, float(total.detach()))
            self._loss_is_summed = True
        return total

    @torch.no_grad()
    def _check_summed(self, output: Any, labels: Tensor, once: float) -> None:
        """Of a batch repeated, a summed loss is twice the loss; a mean is the loss."""
        again = float(self._loss(twice(each(output, Tensor.detach)), twice(labels)))
        if abs(again - 2 * once) > _TOLERANCE * abs(2 * once):  # not for NaN, which is named where it arises
            raise CalibrationError(
                f"The loss of {self.name} is {once:.6g} for a batch and {again:.6g} for the batch repeated: it must be summed "
                "over samples, so that batches add up; use reduction='sum', or multiply the mean by the number of samples."
            )


def wrap(
    module: nn.Module,
    loss: Loss,
    *,
    name: str | None = None,
    sites: Iterable[str] | None = None,
    example: Inputs | None = None,
    mask: Callable[[Any], Tensor] | None = None,
) -> Wrapped:
    """Makes a module of your own something that `transfer` takes, as source or target.

    The module itself is used, not a copy: it is frozen and put in eval mode; train it on with
    `module.train().requires_grad_()`. It is called with a batch's inputs: `module(x)` for a tensor, `module(*inputs)` for a
    tuple or list, `module(**inputs)` for a dictionary; samples are the first axis of everything.

    Arguments:
        loss: From the module's output and the labels to the loss *summed* over the batch, as
            `nn.CrossEntropyLoss(reduction="sum")` gives. A mean is refused.
        name: How messages call it; the class's name by default.
        sites: Paths of the linear maps that take part (as `module.named_modules()` spells them); all by default. The
            others stay as they are.
        example: A small batch of inputs. One pass of it shows which maps are called, and which read the very same tensor
            (q, k and v, mostly): those share one covariance, which saves time and changes nothing. Give it for both models.
        mask: From a batch's inputs to which of its tokens are real (batch, tokens), if some are padding.

    Raises:
        CheckpointError: If the module has no linear map, or one whose update would act elsewhere too (shared or tied
            weights), or that cannot be updated or observed (quantised, not yet initialised, parametrised, fused
            attention); if a parameter is not finite, or `sites` names what is none.
        CalibrationError: If a map is called not at all or more than once in the pass of `example`.
    """
    name = type(module).__name__ if name is None else name
    if lazy := [key for key, parameter in module.named_parameters() if is_lazy(parameter)]:
        raise CheckpointError(f"{name}: {lazy[0]} has no shape yet: call the module once before wrapping it.")
    found = _linear_maps(module, name)
    chosen = list(found) if sites is None else list(dict.fromkeys(sites))
    for path in chosen:
        if path not in found:
            raise CheckpointError(f"{name} has no linear map {path!r}: {nearest(path, found)}")
    if not chosen:
        raise CheckpointError(
            f"{name} has no linear map that an update could be carried to: no nn.Linear and no 1x1 convolution."
        )
    _check_observable(module, name, chosen, everything=sites is None)
    check_finite(((key, p) for key, p in module.named_parameters() if p.is_floating_point()), name)
    reads = {path: path for path in chosen}
    if example is not None:
        reads = _what_reads_what(module.eval(), name, chosen, example)
    return Wrapped(module, loss, tuple(_site(path, found[path], reads[path]) for path in chosen), name, mask)


def _linear_maps(module: nn.Module, name: str) -> dict[str, nn.Module]:
    """All linear maps by path, in the order of registration.

    Raises:
        CheckpointError: If one module stands at two paths.
    """
    found: dict[str, nn.Module] = {}
    paths: dict[int, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if not _is_linear(part):
            continue
        if id(part) in paths:
            raise CheckpointError(
                f"{name}: {paths[id(part)]} and {path} are one and the same module, so that an update of one would act at "
                "both: give each a module of its own."
            )
        paths[id(part)] = path
        found[path] = part
    return found


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear) or hasattr(module, "_packed_params"):  # the latter: quantised, refused later
        return True
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1 and all(size == 1 for size in module.kernel_size)
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # of transformers, which is not imported here


def _check_observable(module: nn.Module, name: str, chosen: list[str], everything: bool) -> None:
    if everything:
        for path, part in module.named_modules():
            if isinstance(part, nn.MultiheadAttention):
                raise CheckpointError(
                    f"{name}: {path or 'it'} is an nn.MultiheadAttention, whose maps are fused where no hook can see them: "
                    "write its q, k, v and output as nn.Linear, or name the `sites` that shall take part without it."
                )
    owners: dict[int, list[str]] = defaultdict(list)
    for path, part in module.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append(f"{path}.{key}".lstrip("."))
    for path in chosen:
        part = module.get_submodule(path)
        for key in ("weight", "bias"):
            parameter = part._parameters.get(key)
            where = f"{path}.{key}".lstrip(".")
            if parameter is None:
                if key == "bias" and getattr(part, "bias", None) is None:
                    continue
                raise CheckpointError(
                    f"{name}: {where} is no parameter of its own (quantised, or parametrised): make it a plain floating-point "
                    "parameter, or leave the map out of `sites`."
                )
            if not parameter.is_floating_point():
                raise CheckpointError(
                    f"{name}: {where} is {parameter.dtype}, a quantised weight, which an update cannot be added to: "
                    "wrap the model in floating point, or leave the map out of `sites`."
                )
            if len(owners[id(parameter)]) > 1:
                raise CheckpointError(
                    f"{name}: {' and '.join(owners[id(parameter)])} are one tied parameter, so that an update of one would "
                    "act at both: untie them, or leave the map out of `sites`."
                )


def _what_reads_what(module: nn.Module, name: str, chosen: list[str], example: Inputs) -> dict[str, str]:
    """Which map is the first that reads the same tensor, by a pass of an example."""
    first: dict[tuple[int, int], str] = {}
    kept: list[Tensor] = []  # so that no other tensor gets the same id
    reads: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def look(path: str, inputs: tuple[Tensor, ...]) -> None:
        calls[path] += 1
        if inputs:
            kept.append(inputs[0])
            # Changed in place between two readers, it is no longer what the first one read.
            reads[path] = first.setdefault((id(inputs[0]), inputs[0]._version), path)

    handles = [
        module.get_submodule(path).register_forward_pre_hook(lambda _module, inputs, path=path: look(path, inputs))
        for path in chosen
    ]
    device = next(module.parameters()).device
    try:
        with torch.no_grad():
            _call(module, each(example, lambda tensor: tensor.to(device)))
    finally:
        for handle in handles:
            handle.remove()
    for path in chosen:
        if calls[path] != 1:
            how = "is not called" if not calls[path] else f"is called {calls[path]} times"
            raise CalibrationError(
                f"{name}: {path} {how} in a pass of the example, and an update can be carried only to a map that is called "
                "once: leave it out of `sites`" + (", or give each call a module of its own." if calls[path] else ".")
            )
        if path not in reads:
            raise CalibrationError(
                f"{name}: {path} is given its input by keyword, which no hook sees: call it by position."
            )
    return reads


def _site(path: str, module: Any, reads: str) -> Site:
    prefix = f"{path}." if path else ""
    stack, block, role = "", None, path
    if number := re.search(r"(?<![^.])\d+(?![^.])", path):
        before, behind = path[: number.start()], path[number.end() :]
        stack, block, role = before.rstrip("."), int(number.group()), f"{before}*{behind}"
    transposed = type(module).__name__ == "Conv1D"
    weight = module.weight
    shape = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight.shape[1])
    axis = next((axis for kind, axis in _AXES.items() if isinstance(module, kind)), -1)
    return Site(
        name=path or "module",
        block=block,
        role=role,
        weight=Slot(f"{prefix}weight", transposed=transposed),
        bias=None if module.bias is None else Slot(f"{prefix}bias"),
        reads=f"input of {reads or 'module'}",
        shape=shape,
        stack=stack,
        feature_axis=axis,
    )


def _path(site: Site) -> str:
    return site.weight.parameter.removesuffix("weight").rstrip(".")


def _call(module: nn.Module, inputs: Inputs) -> Any:
    match inputs:
        case Tensor():
            return module(inputs)
        case Mapping():
            return module(**inputs)
    return module(*inputs)

"""A few steps of training a LoRA on the calibration samples: an adapter retrained at matched data, or a carried one trained on."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bico.adapters.factors import factorised
from bico.errors import CalibrationError
from bico.finetune import FinetuneConfig, finetune
from bico.last_steps.protocol import StepContext, StepResult
from bico.last_steps.training import check_settings, rows_for, stacked
from bico.methods.evidence import Evidence, Needs
from bico.models.protocol import Model
from bico.models.sites import Site
from bico.task_vector import StateDict

FASTER = 10
"""A LoRA is trained at about so many times the rate of whole weights, whatever its rank (Schulman et al., 2025, LoRA Without
Regret); of the usual 2e-5 that makes QLoRA's 2e-4 (Dettmers et al., 2023, arXiv:2305.14314)."""


@dataclass(frozen=True)
class Lora:
    """Trains two thin factors per linear map, and nothing else, for a number of steps.

    From the carried task vector, of which each map's update is taken apart (and cut to the rank), in the maps that it
    changes; without transport from B = 0 as every LoRA, in the maps whose role the expert has changed.
    """

    r: int = 16
    """The rank; the pipeline takes that of the adapter."""
    steps: int = 30
    lr: float = 2e-5
    """Peak rate of whole weights; the pipeline takes the one that the target is fine-tuned with. Factors take ten times that."""
    batch_size: int = 16
    seed: int = 0
    """Of the start, and of the order of the samples."""

    name: ClassVar[str] = "lora"
    keeps_vocabulary: ClassVar[bool] = True
    told: ClassVar[frozenset[str]] = frozenset({"steps"})
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self, self.lr, self.seed, r=self.r, steps=self.steps, batch_size=self.batch_size)

    @property
    def label(self) -> str:
        return f"{self.steps} steps of a LoRA"

    @property
    def trained(self) -> str:
        return f"a LoRA of rank {self.r} was trained for {self.steps} AdamW steps at learning rate {FASTER * self.lr:g}"

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, source: Model, target: Model) -> None:
        """Any target with linear maps can be trained."""

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        rows = rows_for(self.name, context.samples.batches)
        target = context.target
        factors = self._start(vector, context)
        if not factors:
            raise CalibrationError(
                f"lora: nothing of {target.name} is to be trained, since the expert changes no linear map."
            )
        size = min(self.batch_size, len(rows))
        config = FinetuneConfig(
            steps=self.steps,
            batch_size=size,
            lr=FASTER * self.lr,
            warmup=self.steps // 10,
            weight_decay=0.0,
            seed=self.seed,
        )
        sites = {site.name: site for site in target.sites}
        weights = {site.weight.parameter for site in target.sites}
        # What is no weight of a linear map stays as it was carried.
        beside = {name: tensor for name, tensor in vector.items() if name not in weights}
        with target.updated(beside), _Adapted(target, factors).applied() as adapted:
            tuned = finetune(adapted, lambda chosen: stacked(target, rows, chosen), len(rows), context.heads[1], config)
        made: StateDict = dict(beside)
        for name in factors:
            slot = sites[name].weight
            if slot.parameter not in made:
                made[slot.parameter] = torch.zeros_like(target.state()[slot.parameter], dtype=torch.float32)
            slot.write(made, tuned[f"{name}.B"].float() @ tuned[f"{name}.A"].float())
        return StepResult(made)

    def _start(self, vector: Mapping[str, Tensor], context: StepContext) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of each linear map that is trained, by site, in float32."""
        generator = torch.Generator().manual_seed(self.seed)
        roles = {site.role for site in context.source.sites if _moves(site, context.tau)}
        factors = {}
        for site in context.target.sites:
            rank = min(self.r, *site.shape)
            if vector:
                if _moves(site, vector):
                    made, _ = factorised(site.weight.read(vector).float(), rank, float(rank))
                    factors[site.name] = made.down, made.up
            elif site.role in roles:
                bound = 1 / math.sqrt(site.shape[1])  # PEFT's start
                down = bound * (2 * torch.rand(rank, site.shape[1], generator=generator) - 1)
                factors[site.name] = down, torch.zeros(site.shape[0], rank)
        return factors


def _moves(site: Site, vector: Mapping[str, Tensor]) -> bool:
    return site.weight.parameter in vector and bool(site.weight.read(vector).any())


@dataclass
class _Adapted:
    """A model of which two factors per linear map are trainable: what `finetune` asks of one."""

    model: Model
    factors: Mapping[str, tuple[Tensor, Tensor]]
    _live: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = next(iter(self.model.state().values())).device
        for name, (down, up) in self.factors.items():
            self._live |= {f"{name}.A": down.clone().to(device), f"{name}.B": up.clone().to(device)}

    def state(self) -> StateDict:
        return {name: tensor.detach() for name, tensor in self._live.items()}

    def trainable(self) -> list[Any]:
        return list(self._live.values())

    def loss(self, inputs: Any, labels: Tensor, head: Any = None) -> Tensor:
        return self.model.loss(inputs, labels, head)

    @contextmanager
    def applied(self) -> Iterator["_Adapted"]:
        """Every linear map gives what its factors add, too, for the time of the context."""
        with ExitStack() as stack:
            modules = stack.enter_context(self.model.instrument())
            for name in self.factors:
                handle = modules[name].register_forward_hook(self._hook(name))
                stack.callback(handle.remove)
            yield self

    def _hook(self, name: str) -> Any:
        down, up = self._live[f"{name}.A"], self._live[f"{name}.B"]

        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            read = args[0].to(down.dtype)
            return output + ((read @ down.T) @ up.T).to(output.dtype)

        return add

"""Checks made before any work: every mistake that can be seen beforehand is seen here."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from bico.errors import ConfigError, NotEnoughSamplesError, OutputError
from bico.finetune import FinetuneConfig, default_config
from bico.memory import plan_memory
from bico.methods import Pair, get_method
from bico.methods.protocol import Method, no_maps
from bico.models.clip_vit import ClipViT
from bico.models.loading import ModelFiles, resolve
from bico.sites import match_sites
from flows.config import Settings, TransferConfig
from tasks.collect import ACTIVATIONS, GRADIENTS
from tasks.finetune import read_expert
from tasks.stage import TaskRef, Workspace, open_model


@dataclass(frozen=True)
class Plan:
    """A configuration whose names have been resolved and whose parts fit together."""

    config: TransferConfig
    space: Workspace
    source: ModelFiles
    target: ModelFiles
    tasks: dict[str, TaskRef]
    methods: dict[str, Method]
    recipes: tuple[FinetuneConfig, FinetuneConfig]
    """Fine-tuning of source and target."""

    @property
    def calibrated(self) -> list[str]:
        return [name for name, method in self.methods.items() if method.needs]


def make_plan(config: TransferConfig, settings: Settings) -> Plan:
    """Resolves a configuration.

    Raises:
        BicoError: The first thing that cannot work: an unknown name, a checkpoint that does not fit, more samples than
            data, a method that cannot serve the pair, an output folder that cannot be written.
    """
    if not math.isfinite(config.alpha):
        raise ConfigError(f"alpha={config.alpha} must be a finite number.")
    methods = {name: get_method(name) for name in config.methods}
    folders = tuple(str(folder.expanduser().resolve()) for folder in config.data)
    tasks = {name: TaskRef(name, folders) for name in config.tasks}
    check_writable(config.out)
    check_writable(settings.home)
    space = Workspace(settings.store, settings.resolved_device(), settings.memory)
    if any(method.needs for method in methods.values()):
        for ref in tasks.values():
            available = ref.open().sizes["train"]
            if config.samples[-1] > available:
                raise NotEnoughSamplesError(
                    f"{config.samples[-1]} calibration samples asked for, but task {ref.name!r} has {available} training "
                    f"samples: lower --samples to at most {available}."
                )
    for ref in tasks.values():
        ref.open()
    source, target = resolve(config.source), resolve(config.target)
    ours, theirs = open_model(source, space.device), open_model(target, space.device)
    match_sites(ours.sites, theirs.sites)
    check_methods(methods, ours, theirs)
    if any(method.needs for method in methods.values()):
        plan_memory(ours, theirs, ACTIVATIONS + GRADIENTS, config.batch_size, len(config.samples), settings.memory)
    if config.expert is not None:
        if len(tasks) > 1:
            raise ConfigError(
                f"--expert is an expert for one task, but {len(tasks)} tasks were given: {', '.join(tasks)}."
            )
        read_expert(space, source, str(config.expert))
    recipes = tuple(config.finetune or default_config(sum(p.numel() for p in m.trainable())) for m in (ours, theirs))
    return Plan(config, space, source, target, tasks, methods, recipes)


def check_methods(methods: dict[str, Method], source: ClipViT, target: ClipViT) -> None:
    """Raises MethodError if a method without calibration cannot serve the pair; a dry run on zeros tells."""
    pair = Pair(source.sites, target.sites, source.state(), target.state())
    zeros = {name: tensor.new_zeros(tensor.shape) for name, tensor in pair.source_state.items()}
    for method in methods.values():
        if not method.needs:
            method.transport(zeros, pair, no_maps)


def check_writable(folder: Path) -> None:
    """Creates a folder.

    Raises:
        OutputError: If it cannot be made or written.
    """
    try:
        folder.expanduser().mkdir(parents=True, exist_ok=True)
        probe = folder.expanduser() / f".bico-write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"Cannot write to {folder} ({error.strerror}): choose another folder or mend its permissions."
        ) from error

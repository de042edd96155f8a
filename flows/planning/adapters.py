"""Runs that write LoRA adapters: what is checked beforehand, and which stage carries."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bico.adapters.carry import find_in
from bico.adapters.folder import check_files, is_adapter, read_config
from bico.adapters.transport import check_moves
from bico.errors import ConfigError
from bico.last_steps.lora import Lora
from bico.last_steps.search import Search
from bico.methods.spec import Spec
from bico.methods.variant import Variant
from bico.models.depth import Depth
from bico.models.loading import ModelFiles
from bico.models.protocol import Model
from flows.config import TransferConfig
from storage.keys import Ref
from tasks.adapters import carry_key
from tasks.evidence import EvidenceRefs

if TYPE_CHECKING:
    from flows.planning.plan import Plan


def is_adaptable(variant: Variant) -> bool:
    """Whether what comes out is an adapter: a transport, and of last steps at most a strength."""
    return variant.method is not None and all(isinstance(step, Search) for step in variant.steps)


def is_retrained(variant: Variant) -> bool:
    """Whether it is the rival that trains an adapter on the same samples: measured, and not written."""
    return bool(variant.steps) and isinstance(variant.steps[-1], Lora)


def rank_of(config: TransferConfig) -> int | None:
    """The rank of a run's adapters; None where it writes none."""
    if config.write != "adapter":
        return None
    adapters = [place for place in config.expert_files if is_adapter(place)]
    if config.adapter_rank is None and adapters:
        return max(int(read_config(check_files(place)).get("r", 8)) for place in adapters)  # 8 is PEFT's default
    return config.adapter_rank


def check_adapters(
    config: TransferConfig, methods: Mapping[Spec, Variant], source: tuple[ModelFiles, Model], target: Model
) -> None:
    """Looks at what a run is to write adapters of, before any work.

    Raises:
        ConfigError: If a full fine-tune comes without a rank, a method ends in what no adapter holds, or strength is zero.
        MethodError: If an adapter changes nothing that is carried.
        CheckpointError: If an adapter is not of the source.
    """
    if config.write != "adapter":
        if config.adapter_rank is not None:
            raise ConfigError("adapter_rank is of adapters that are written: give write=adapter too, or leave it out.")
        return
    given = config.expert_files
    whole = [path for path in given if not is_adapter(path)]
    if (whole or not given) and config.adapter_rank is None:
        what = f"{whole[0]} is no LoRA" if whole else "Without --expert the source is fine-tuned whole"
        raise ConfigError(
            f"{what}, so that an adapter has no rank to keep: give one (--rank 16 of `bico rehome`, --adapter-rank), or write "
            "merged weights."
        )
    for spec in config.methods:
        if spec in methods and not is_adaptable(methods[spec]) and not is_retrained(methods[spec]):
            raise ConfigError(
                f"Method '{spec}' leaves what no adapter holds (classifiers, projections, trained weights): write merged weights, or "
                "take the method alone or with +search."
            )
        own = methods[spec].alpha if spec in methods else None
        if (config.alpha if own is None else own) == 0:
            raise ConfigError(f"Method '{spec}' at strength 0 changes nothing of the target: give another --alpha.")
    if not any(spec in methods and is_adaptable(methods[spec]) for spec in config.methods):
        raise ConfigError(
            f"None of {', '.join(map(str, config.methods))} leaves an adapter to write: take one that carries, such as bico."
        )
    files, opened = source
    depths = {getattr(methods[spec].method, "depth", Depth.ONE) for spec in config.methods if spec in methods}
    for path in given:
        if path not in whole:
            for depth in sorted(depths):
                check_moves(find_in(str(path), opened, files.family), opened, target, depth)


def carried_by(plan: "Plan", row: str, expert: Ref, variant: Variant, evidence: EvidenceRefs) -> tuple[Any, ...]:
    """What the stage that carries an adapter is called with, without the workspace.

    Arguments:
        row: The name of the expert's rows.
    """
    given = plan.carried[row].expert
    place = None if given is None else str(given)
    return plan.source, plan.target, expert, variant.method, evidence, place, plan.config.adapter_rank


def adapter_of(plan: "Plan", row: str, expert: Ref, variant: Variant, evidence: EvidenceRefs) -> Ref:
    """Where the adapter of a cell lies, before its last steps."""
    return plan.space.artefacts.ref(carry_key(plan.space, *carried_by(plan, row, expert, variant, evidence)))

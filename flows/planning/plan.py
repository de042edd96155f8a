"""Checks made before any work: every mistake that can be seen beforehand is seen here."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bico.calibration.budget import Budget
from bico.calibration.memory import plan_memory, sketches
from bico.calibration.pairing import pairs_beside
from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.pseudo_labels import PseudoLabels
from bico.calibration.sampling import Sampling, choose_samples, draw_samples, draw_unlabelled, set_sizes
from bico.calibration.shared_tokens import Between, check_shared, share
from bico.calibration.signals import Signal
from bico.errors import ConfigError, MethodError, NotEnoughSamplesError, OutputError
from bico.finetune import FinetuneConfig, default_config
from bico.last_steps.lora import Lora
from bico.last_steps.tune import Tune
from bico.linalg.procrustes import MapRule
from bico.methods.spec import Spec
from bico.methods.variant import Variant, get_variant
from bico.models.loading import ModelFiles
from bico.models.matching import match_sites
from bico.models.protocol import CLASSLESS, COMPLETION, PAIRS, TEXT, Completing, Model, Placed
from bico.models.sites import Site
from flows.config import TransferConfig
from flows.measures import measure_of
from flows.planning.adapters import check_adapters, rank_of
from flows.planning.blockwise import by_block
from flows.planning.experts import Carried
from flows.planning.inputs import find_files, loss_for, pose, task_refs, tell, with_head
from flows.planning.rivals import rivals
from flows.records.repeat import check_out, identity_of
from flows.settings import Settings
from tasks.cached_stage import Workspace
from tasks.finetune import read_expert
from tasks.inputs import TaskRef, open_model


class Kept(NamedTuple):
    """What is kept of the products of rows."""

    most: int | None
    """The strongest directions, so many; None for all."""
    grams: bool
    """With the Gram matrices of both sides."""


@dataclass(frozen=True)
class Plan:
    """A configuration whose names have been resolved and whose parts fit together."""

    config: TransferConfig
    space: Workspace
    source: ModelFiles
    target: ModelFiles
    tasks: dict[str, TaskRef]
    """By the name of their rows; experts of one task have one each, of the same task."""
    carried: dict[str, Carried]
    """The tasks and experts by these names."""
    methods: dict[Spec, Variant]
    """The baselines that the configuration asks for come last."""
    finetuning: tuple[FinetuneConfig, FinetuneConfig]
    """Fine-tuning of source and target."""
    loss: str
    """The loss that the tasks are posed in."""
    probed: bool
    """Whether models are measured by linear probes on the calibration samples; else by their own heads, or as pairs are."""
    shared_tokens: Mapping[str, float] = field(default_factory=dict)
    """Of a pair with two tokenizers, by task: the share of characters in tokens that end where one of the other's does."""
    notes: tuple[str, ...] = ()
    """What to tell: what was taken for granted of the models; of an expert how it was read, how far it is from the source,
    what of it is not carried."""
    identity: str = ""
    """Digest of all that determines the numbers (`flows.records.repeat`)."""

    @property
    def maps(self) -> list[tuple[Signal, MapRule]]:
        """What alignment maps the methods need, all together."""
        return sorted({need for method in self.methods.values() for need in method.needs.maps})

    @property
    def beside(self) -> list[tuple[Signal, MapRule]]:
        """What alignment maps sums over blocks need besides; none where every block has one counterpart."""
        needed = sorted({need for method in self.methods.values() for need in method.needs.beside})
        ours, theirs = self._sites
        return needed if pairs_beside(ours, theirs, theirs, {signal for signal, _ in needed}) else []

    @property
    def collected(self) -> dict[Kept, tuple[tuple[Signal, ...], tuple[Signal, ...]]]:
        """The signals of each pass, those of counterparts and those of pairs besides, by what is kept of them. Maps of other
        methods in the run thus change nothing in what a method gets.
        """
        kept = {rule: self.kept(rule) for rule in dict.fromkeys(rule for _, rule in self.maps)}
        return {
            how: (
                tuple(dict.fromkeys(signal for signal, rule in self.maps if kept[rule] == how)),
                tuple(dict.fromkeys(signal for signal, rule in self.beside if kept[rule] == how)),
            )
            for how in dict.fromkeys(kept.values())
        }

    def kept(self, rule: MapRule) -> Kept:
        """What is collected for maps of a rule: of the strongest directions all (None) where no layer is wide enough for a
        sketch to be worth it, so that there one pass serves all rules that whiten nothing.
        """
        most = rule.collected if sketches(*self._sites, rule.collected) else None
        return Kept(most, bool(rule.whiten))

    @property
    def _sites(self) -> tuple[Sequence[Site], Sequence[Site]]:
        ours, theirs = (open_model(files, self.space.device).sites for files in (self.source, self.target))
        return ours, theirs

    @property
    def measured_by(self) -> str:
        """What gives the numbers of the rows."""
        if self.loss in CLASSLESS:
            return ", ".join(sorted({measure_of(self.loss, task.open()) for task in self.tasks.values()}))
        return "probe" if self.probed else "head"

    @property
    def measure(self) -> str:
        """What the numbers of the rows are, in percent."""
        return self.measured_by if self.loss in CLASSLESS else "accuracy"

    @property
    def scales(self) -> bool:
        """Whether a method needs to know how large signals are."""
        return any(method.needs.scales for method in self.methods.values())

    @property
    def gradients(self) -> tuple[ParameterGradient, ...]:
        """What parameter gradients of the target the methods need, all together."""
        return tuple(sorted({kind for method in self.methods.values() for kind in method.needs.gradients}))

    @property
    def between(self) -> Between:
        """What becomes of tokens between shared ends; the default where one tokenizer leaves none."""
        return self.config.between if self.shared_tokens else Between.LAST

    @property
    def uses_samples(self) -> bool:
        return any(variant.uses_samples for variant in self.methods.values())

    def sized(self, task: str, budget: Budget) -> Budget:
        """A budget with the number of labelled samples that it makes on a task."""
        sizes = set_sizes(self.config.sampling, [budget.asked], len(self.tasks[task].open().class_names))
        return replace(budget, size=sizes[budget.asked])

    def strength(self, method: Spec) -> float:
        """How much of a method's outcome is added: last steps have seen α already."""
        return 1.0 if self.methods[method].steps else self.alpha(method)

    def alpha(self, method: Spec) -> float:
        """How much of a method's transport is added."""
        own = self.methods[method].alpha
        return self.config.alpha if own is None else own


def make_plan(config: TransferConfig, settings: Settings) -> Plan:
    """Resolves a configuration.

    Raises:
        BicoError: The first thing that cannot work: an unknown name, a checkpoint that does not fit, more samples than
            data, a method that cannot serve the pair, an output folder that cannot be written.
    """
    if not math.isfinite(config.alpha):
        raise ConfigError(f"alpha={config.alpha} must be a finite number.")
    carried = config.carried
    check_head(config)
    spelt = {spec: get_variant(spec) for spec in config.methods}  # a misspelt one shows before a model is fetched
    check_labels(config, spelt)
    config = config.model_copy(update={"loss": loss_for(config.loss, config.source, config.target)})
    check_classless(config, spelt)
    tasks = task_refs(config.tasks, config.data, config.reading, config.loss)
    check_writable(config.out)
    check_writable(settings.home)
    space = Workspace(settings.store, settings.resolved_device(), settings.memory, settings.allow_pickle)
    source, target = by_block(config, settings, find_files(config, settings), spelt)
    for ref in tasks.values():
        tell(*ref.open().notes)
        if config.rivals != "none" or any(variant.uses_samples for variant in spelt.values()):
            check_samples(config, ref)
    ours, theirs = open_model(source, space.device), open_model(target, space.device)
    match_sites(ours.sites, theirs.sites)
    for model in (ours, theirs):
        tasks = {name: pose(task, model, config.loss) for name, task in tasks.items()}
    for task in tasks.values():
        check_completions(config, task, (ours, theirs))
    finetuning = config.finetune or usual_finetuning(ours), config.finetune or usual_finetuning(theirs)
    # What a method leaves open follows the run: few-shot takes its step at the rate the target is fine-tuned with.
    asked = [*config.methods, *rivals(config)]
    defaults: dict[str, Any] = {"completion": config.completion, "rank": config.rank, "lr": finetuning[1].lr}
    if (r := rank_of(config)) is not None:
        defaults["r"] = r
    methods = {spec: get_variant(spec, **defaults) for spec in asked}
    methods = {spec: v for spec, v in methods.items() if config.labelled or not v.needs_labels}
    if config.loss in CLASSLESS:  # of the baselines, those that need no classes
        methods = {spec: v for spec, v in methods.items() if serves_classless(v)}
    methods, left_out = fitting(config, methods, ours, theirs)
    check_adapters(config, methods, (source, ours), theirs)
    probed = theirs.probed and config.loss not in CLASSLESS
    if probed and 0 in config.samples:
        raise ConfigError(
            f"--samples 0: {theirs.name} is measured by a probe, which learns from labelled samples: raise --samples."
        )
    loss = config.loss or theirs.losses[0]
    if loss == TEXT and config.unlabelled and config.pseudo_labels is PseudoLabels.SOFT:
        raise ConfigError(
            "pseudo_labels=soft: the loss of a class's words takes no probabilities; use pseudo_labels=hard or loss=probe."
        )
    shared = {name: part for name, task in tasks.items() if (part := tokens_shared(ours, theirs, task)) is not None}
    notes = (*left_out, *(note for model in (ours, theirs) for note in getattr(model, "notes", ())))
    by_row = {name: tasks[one.task] for name, one in carried.items()}
    shared = {name: shared[one.task] for name, one in carried.items() if one.task in shared}
    plan = Plan(config, space, source, target, by_row, carried, methods, finetuning, loss, probed, shared, notes)
    if plan.maps and not source.blockwise:
        shape = config.batch_size, len(config.samples), settings.memory
        for (most, grams), of in plan.collected.items():
            wanted, beside = (dict.fromkeys(signals, most) for signals in of)
            plan_memory(ours, theirs, wanted, *shape, beside, grams)
    for path in config.expert_files:
        told = read_expert(space, source, str(path), config.expert_farthest).notes
        about = f"{path.name}: " if len(config.expert_files) > 1 else ""
        plan = replace(plan, notes=(*plan.notes, *(f"{about}{note}" for note in told)))
    if config.expert_head is not None:
        ((name, task),) = plan.tasks.items()
        posed, source = with_head(space, source, task, config.expert_head)
        plan = replace(plan, tasks={name: posed}, source=source)
    plan = replace(plan, identity=identity_of(config, source, target, tasks))
    check_out(config.out, plan.identity)
    return plan


def check_head(config: TransferConfig) -> None:
    """Raises ConfigError if there is a classifier, and not one expert that it could be of."""
    if config.expert_head is None:
        return
    if not config.has_experts:
        raise ConfigError("--expert-head is the classifier of an expert: give --expert too.")
    if len(config.carried) > 1:
        raise ConfigError(
            f"--expert-head is the classifier of one expert, but {len(config.carried)} are carried: give one --expert with it."
        )


def tokens_shared(source: Model, target: Model, task: TaskRef) -> float | None:
    """How much of a task's texts two tokenizers cut alike, by the first training samples; None for one tokenizer.

    Raises:
        CalibrationError: If it is nothing.
    """
    if source.vocabulary == target.vocabulary or not (isinstance(source, Placed) and isinstance(target, Placed)):
        return None
    data = task.open().open("train")
    examples = [data.example(index) for index in range(min(len(data), LOOKED_AT))]
    found = share(source.places(source.prepare(examples)), target.places(target.prepare(examples)))
    check_shared(found, source.name, target.name)
    return found.part


LOOKED_AT = 256
"""Samples that tell how alike two tokenizers cut a task's texts."""


def fitting(
    config: TransferConfig, methods: Mapping[Spec, Variant], source: Model, target: Model
) -> tuple[dict[Spec, Variant], tuple[str, ...]]:
    """The methods that can serve a pair, and a line for each of the usual ones that cannot.

    Raises:
        MethodError: If one cannot that was asked for by name, or that is all there is.
    """
    serving, said = dict(methods), []
    for spec, variant in methods.items():
        try:
            variant.check(source, target)
        except MethodError as error:
            del serving[spec]
            if "methods" in config.model_fields_set or spec not in config.methods or not {*config.methods} & {*serving}:
                raise
            said.append(f"{spec} is left out of the usual methods, which were not asked for by name: {error}")
    return serving, tuple(said)


def usual_finetuning(model: Model) -> FinetuneConfig:
    """The protocol of the model's family, if it has one of its own; else that for a model of this size."""
    own: FinetuneConfig | None = getattr(model, "finetuning", None)
    return own or default_config(sum(p.numel() for p in model.trainable()))


def check_labels(config: TransferConfig, methods: Mapping[Spec, Variant]) -> None:
    """Raises ConfigError if a method that was asked for learns from labels, and there are none."""
    if config.labelled:
        return
    for spec, variant in methods.items():
        if variant.needs_labels:
            raise ConfigError(f"Method '{spec}' learns from labels, and --samples 0 gives none: raise --samples.")


def serves_classless(variant: Variant) -> bool:
    """Whether a method with its last steps can learn from texts alone: classifiers and projections cannot."""
    return all(isinstance(step, Tune | Lora) for step in variant.steps)


def check_classless(config: TransferConfig, methods: Mapping[Spec, Variant]) -> None:
    """Raises ConfigError if something is asked of texts without classes that only classes have."""
    if config.loss not in CLASSLESS:
        return
    if config.sampling is not Sampling.RANDOM and config.loss == PAIRS:
        raise ConfigError(
            f"sampling={config.sampling.value}: loss=pairs has no classes to choose by; use sampling=random."
        )
    if config.unlabelled:
        raise ConfigError(
            f"--unlabelled: an expert predicts no {PREDICTED[config.loss]}, so loss={config.loss} needs them; leave it out."
        )
    for spec, variant in methods.items():
        if not serves_classless(variant):
            raise ConfigError(
                f"Method '{spec}' ends in a step that needs classes, and loss={config.loss} has none: of steps use tune."
            )


PREDICTED = {PAIRS: "partners or scores", COMPLETION: "completions"}


def check_completions(config: TransferConfig, task: TaskRef, models: Sequence[Model]) -> None:
    """Looks at a task's first training samples as each model reads them, and says how many are cut.

    Raises:
        ConfigError: If a model reads no chats.
        DataError: If nothing is left of a completion.
    """
    if task.loss != COMPLETION:
        return
    data = task.open().open("train")
    examples = [data.example(row) for row in range(min(len(data), LOOKED_AT))]
    for model in models:
        model.prepare(examples)
        cut = sum(model.is_cut(example) for example in examples) if isinstance(model, Completing) else 0
        if cut:
            tell(
                f"{model.name} reads {model.tokens} tokens: of the first {len(examples)} samples of {task.name} {cut} are longer, "
                "and their ends are left out."
            )


def check_samples(config: TransferConfig, ref: TaskRef) -> None:
    """Makes sure that calibration sets can be drawn, by a dry run.

    Raises:
        NotEnoughSamplesError: If there are too few samples.
        ConfigError: If they are to be chosen by classes, and completions are too many to be some.
    """
    task, count = ref.open(), config.samples[-1]
    if ref.loss == COMPLETION and config.sampling is not Sampling.RANDOM and not task.class_names:
        raise ConfigError(
            f"sampling={config.sampling.value}: task {ref.name!r} has no few completions to choose by; use sampling=random."
        )
    try:
        if config.unlabelled:
            labelled = range(sum(set_sizes(config.sampling, config.labelled[-1:], len(task.class_names)).values()))
            draw_unlabelled(task.sizes["train"], labelled, config.unlabelled, 0)
        if not config.labelled:
            return
        if config.sampling is Sampling.RANDOM:
            draw_samples(task.sizes["train"], count, 0)
            return
        labels = task.open("train").labels
        for seed in config.seeds:
            choose_samples(config.sampling, labels, len(task.class_names), count, seed, labels.float())
    except NotEnoughSamplesError as error:
        raise NotEnoughSamplesError(f"Task {ref.name!r}: {error}") from None


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

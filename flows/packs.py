"""A calibration to go: made where the data are, used where they are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, runtime

from bico.calibration.budget import NOTHING, Budget
from bico.calibration.memory import covariance_shapes
from bico.calibration.pack import Pack, PackedDraw, PackedMaps, PackedModel
from bico.calibration.pairing import is_beside, pairs_beside
from bico.calibration.scales import Side
from bico.calibration.signals import Signal
from bico.errors import ConfigError, OutputError, at_home, nearest
from bico.methods import Needs
from bico.methods.spec import Spec
from bico.methods.variant import Variant, get_variant
from bico.models.loading import ModelFiles
from bico.models.protocol import CLASSLESS
from bico.reporting.packed import packed_card
from bico.reporting.rows import Cell, Row
from flows.collect import Collected, calibrate
from flows.config import TransferConfig, make_config
from flows.ledger import Ledger
from flows.measures import MEASURES
from flows.planning.experts import Carried, carried
from flows.planning.inputs import find_files, loss_for, pose, task_refs
from flows.planning.plan import Plan, check_writable, make_plan
from flows.records.repeat import RECORD
from flows.records.versions import versions
from flows.settings import Settings
from storage.keys import Ref
from tasks.artefacts import most_directions, read_accuracy
from tasks.cached_stage import Workspace, noted
from tasks.evaluate import evaluate_model
from tasks.evidence import EvidenceRefs
from tasks.export import export_model
from tasks.finetune import adopt_expert, read_expert
from tasks.inputs import TaskRef, open_model
from tasks.maps import SignalMaps
from tasks.pack import digest_of, files_of, read_pack, unpack, write_pack
from tasks.probe import probe_model
from tasks.transfer import transfer_vector

# Made ----------------------------------------------------------------------------------------------------------------


def plan_pack(config: TransferConfig, settings: Settings, small: bool = False) -> Plan:
    """Resolves what `bico calibrate` is asked for.

    Arguments:
        small: Also where a map may keep as many directions as there are samples.

    Raises:
        BicoError: The first thing that cannot work; of methods, what learns from more than maps and scales; of samples,
            fewer than a map may keep directions, unless somebody said that it may.
    """
    if config.unlabelled or config.has_experts:
        raise ConfigError(
            "A pack serves any expert, so none has a part in it: leave out unlabelled inputs and experts."
        )
    for spec in config.methods:
        variant = get_variant(spec)
        if variant.steps or variant.needs.gradients:
            raise ConfigError(
                f"Method '{spec}' learns from the samples or from gradients of parameters, which no pack holds: take methods "
                "that align, such as bico or theseus, without steps behind them."
            )
    plan = make_plan(config, settings)
    if not plan.maps:
        raise ConfigError("None of the methods calibrates, so a pack would be empty: take one that does, such as bico.")
    if not small:
        check_floor(plan)
    return plan


def check_floor(plan: Plan) -> None:
    """Raises ConfigError if some map may keep as many directions as there are samples (`Pack.is_small`): it keeps no more than
    its rule allows and the narrower side has.
    """
    models = (open_model(files, plan.space.device) for files in (plan.source, plan.target))
    source, target = (model.sites for model in models)
    directions = max(
        min(*shape, *([] if rule.most is None else [rule.most]))
        for signal, rule in plan.maps
        for shape in covariance_shapes(source, target, target, [signal]).values()
    )
    samples = min(
        plan.sized(task, Budget(count)).size or count for task in plan.tasks for count in plan.config.labelled
    )
    if samples <= directions:
        raise ConfigError(
            f"{samples} samples are too few for a pack: the richest map may keep {directions} directions, so it may expose the "
            f"samples themselves. Calibrate with more than {directions} (--samples), keep fewer directions (--rank), or say "
            "--small-pack."
        )


@flow(name="calibrate", flow_run_name="calibrate {config.title}")
def calibrate_flow(config: TransferConfig, settings: Settings, place: Path, small: bool) -> dict[str, Any]:
    """Calibrates a pair and writes the pack.

    Arguments:
        small: Also where a map keeps as many directions as there were samples.
    """
    plan, ledger = plan_pack(config, settings, small), Ledger(settings.stage_timeout)
    with noted(plan.space, str(runtime.flow_run.id)):
        collected = calibrate(plan, settings, ledger)
        write_pack(plan.space, _index(plan, collected), place)
    return {"pack": str(place), "stages": {stage: dict(counter) for stage, counter in ledger.counts.items()}}


def _index(plan: Plan, collected: Mapping[tuple[str, int], Collected]) -> Pack:
    draws = tuple(_packed(plan, *draw, found) for draw, found in collected.items())
    keys = [key for draw in draws for key in (*(one.key for one in draw.maps), *draw.scales.values())]
    return Pack(
        PackedModel(_name(plan.source.ref), plan.source.digest()),
        PackedModel(_name(plan.target.ref), plan.target.digest()),
        tuple(str(spec) for spec in plan.config.methods if spec in plan.methods),
        plan.config.completion.value,
        plan.config.rank,
        draws,
        files_of(plan.space, keys),
        versions(),
    )


def _name(ref: str) -> str:
    """A model's reference, if others can follow it; of a place on this machine the last part."""
    return Path(ref).name if Path(ref).expanduser().exists() else ref


def _packed(plan: Plan, task: str, seed: int, found: Collected) -> PackedDraw:
    labelled, parts = found.labelled, [part for block in found.blocks for part in block.parts]
    if labelled is None:
        raise AssertionError("a pack is made of labelled samples")
    counts = labelled.calibration.counts
    refs = [plan.space.artefacts.ref(part.key) for part in parts]
    return PackedDraw(
        task,
        digest_of(plan.tasks[task].identity),
        seed,
        plan.config.sampling.value,
        counts,
        tuple(_maps(part) for part in parts),
        {str(side): ref.key for side, ref in labelled.scales.items()},
        {count: max(most_directions(ref, count) for ref in refs) for count in counts},
    )


def _maps(part: SignalMaps) -> PackedMaps:
    if part.covariances is None:
        raise AssertionError("a pack is made of labelled samples")
    about = part.key, part.covariances.key, part.group, part.signal.value, part.tensors
    return PackedMaps(*about, part.rule.completion.value, part.rule.rank, part.rule.whiten)


# Used ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedPlan:
    """What is carried with a pack, resolved."""

    pack: Pack
    place: Path
    config: TransferConfig
    space: Workspace
    source: ModelFiles
    target: ModelFiles
    carried: Mapping[str, Carried]
    methods: Mapping[Spec, Variant]
    cells: tuple[Cell, ...]
    tasks: Mapping[str, TaskRef]
    """By name, those whose data were given."""
    notes: tuple[str, ...]


def plan_packed(place: Path, given: Mapping[str, Any], settings: Settings) -> PackedPlan:
    """Resolves what `bico transfer --pack` is asked for.

    Arguments:
        given: Fields of a transfer; models, methods, counts and seeds are the pack's unless they are said. Of counts the
            largest, of seeds and methods the first.

    Raises:
        BicoError: The first thing that cannot work: models that the pack is not of, methods or counts that it does not serve.
    """
    place = at_home(place).absolute()
    pack = read_pack(place)
    if not given.get("experts"):
        raise ConfigError("--pack carries an expert that is there: give --expert.")
    first = pack.draws[0]
    usual = {
        "source": pack.source.name,
        "target": pack.target.name,
        "tasks": _tasks_of(pack, given["experts"]),
        "methods": [pack.methods[0]],
        "samples": [max(first.sizes)],
        "seeds": [first.seed],
        "completion": pack.completion,
        "rank": pack.rank,
    }
    config = make_config(usual | dict(given), "bico transfer --pack")
    carried_by_row = carried(config.tasks, config.experts)
    source, target = find_files(config, settings)
    for option, files, packed in (("--source", source, pack.source), ("--target", target, pack.target)):
        if files.digest() != packed.digest:
            raise ConfigError(
                f"{option} {files.ref} is not the model that the pack was made with ({packed.name}, {packed.digest[:16]}): give "
                "that one."
            )
    space = Workspace(settings.store, settings.resolved_device(), settings.memory, settings.allow_pickle)
    check_writable(config.out)
    if (config.out / RECORD).exists():
        raise OutputError(f"--out {config.out} holds a run that had the data: give another folder.")
    methods = {}
    for spec in config.methods:
        variant = get_variant(spec, completion=config.completion, rank=config.rank)
        has = {(is_beside(one.tensors[0]), one.signal, one.rule) for one in first.maps}
        ours, theirs = (open_model(files, space.device).sites for files in (source, target))
        besides = variant.needs.beside if pairs_beside(ours, theirs, theirs, list(Signal)) else ()
        needed = {(False, signal.value, rule) for signal, rule in variant.needs.maps}
        needed |= {(True, signal.value, rule) for signal, rule in besides}
        lacks_scales = variant.needs.scales and not first.scales
        if variant.steps or variant.needs.gradients or variant.method is None or lacks_scales or not needed <= has:
            raise ConfigError(f"Method '{spec}' cannot be carried with this pack; {nearest(str(spec), pack.methods)}")
        variant.check(open_model(source, space.device), open_model(target, space.device))
        methods[spec] = variant
    notes = [
        note
        for path in config.expert_files
        for note in read_expert(space, source, str(path), config.expert_farthest).notes
    ]
    posed = _given_tasks(config, open_model(target, space.device))
    cells = tuple(_cells(pack, config, carried_by_row, methods))
    return PackedPlan(pack, place, config, space, source, target, carried_by_row, methods, cells, posed, tuple(notes))


def _tasks_of(pack: Pack, experts: Sequence[str]) -> list[str]:
    """The tasks that experts name, or else the only one that the pack is of."""
    from flows.planning.experts import tasks_named

    if (named := tasks_named(experts)) or len(pack.tasks) == 1:
        return named or pack.tasks
    raise ConfigError(
        f"The pack is of {len(pack.tasks)} tasks: say of which an expert is, --expert {pack.tasks[0]}=FILE."
    )


def _given_tasks(config: TransferConfig, target: Any) -> dict[str, TaskRef]:
    """The tasks that can be measured: those whose data were given."""
    if not config.data:
        return {}
    loss = loss_for(config.loss, config.source, config.target)
    found = task_refs(config.tasks, config.data, config.reading, loss)
    return {name: pose(task, target, loss) for name, task in found.items()}


def _cells(
    pack: Pack, config: TransferConfig, carried_by_row: Mapping[str, Carried], methods: Mapping[Spec, Variant]
) -> list[Cell]:
    cells = []
    for name, one in carried_by_row.items():
        for spec, variant in methods.items():
            if not variant.needs:
                cells.append(Cell(name, spec))
                continue
            for count in config.samples:
                for seed in config.seeds:
                    draw = _draw(pack, one.task, seed)
                    if count not in draw.sizes:
                        known = ", ".join(map(str, draw.sizes))
                        raise ConfigError(f"--samples {count}: the pack of {one.task} has {known}.")
                    cells.append(Cell(name, spec, Budget(count, size=draw.sizes[count]), seed))
    return cells


def _draw(pack: Pack, task: str, seed: int) -> PackedDraw:
    of = [draw for draw in pack.draws if draw.task == task]
    if not of:
        raise ConfigError(f"The pack is not of task {task!r}; {nearest(task, pack.tasks)}")
    found = next((draw for draw in of if draw.seed == seed), None)
    if found is None:
        raise ConfigError(f"--seeds {seed}: the pack of {task} has {', '.join(str(draw.seed) for draw in of)}.")
    return found


def evidence_of(plan: PackedPlan, draw: PackedDraw, needs: Needs, budget: Budget) -> EvidenceRefs:
    """What one method needs of a pack, under the very keys that a run with the data has.

    Raises:
        ConfigError: If this version would make maps of another key: they are not what it would solve.
    """
    store = plan.space.artefacts

    def maps(one: PackedMaps) -> SignalMaps:
        about = (
            store.ref(one.covariances),
            one.group,
            Signal(one.signal),
            one.tensors,
            tuple(sorted(draw.sizes)),
            one.rule,
        )
        found = SignalMaps(*about)
        if found.key != one.key:
            raise ConfigError(
                f"--pack {plan.place}: maps of {one.group} are of another version ({plan.pack.versions.get('bico', '?')}): make "
                "the pack again."
            )
        return found

    found = [maps(one) for one in draw.maps]
    wanted = tuple(part for part in found if (part.signal, part.rule) in (needs.beside if part.beside else needs.maps))
    scales = {Side(side): store.ref(key) for side, key in draw.scales.items()} if needs.scales else {}
    unpack(plan.space, plan.pack, plan.place, [*(part.key for part in wanted), *(ref.key for ref in scales.values())])
    return EvidenceRefs(budget, wanted, scales=scales)


@flow(name="transfer-packed", flow_run_name="carry with {place}", validate_parameters=False)
def transfer_packed_flow(place: Path, given: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Carries experts with a pack and writes a model for each cell; measures those whose task's data were given."""
    plan, ledger = plan_packed(place, given, settings), Ledger(settings.stage_timeout)
    models, rows = {}, []
    for note in plan.notes:
        ledger.log.info(note)
    with noted(plan.space, str(runtime.flow_run.id)):
        for cell in plan.cells:
            variant, about = plan.methods[cell.method], plan.carried[cell.task]
            needs = variant.needs
            expert = ledger.run(adopt_expert, plan.space, plan.source, str(about.expert)).ref
            evidence = EvidenceRefs(NOTHING)
            if needs and cell.seed is not None:
                evidence = evidence_of(plan, _draw(plan.pack, about.task, cell.seed), needs, cell.budget)
            models_of = plan.source, plan.target
            vector = ledger.run(
                transfer_vector, plan.space, *models_of, expert, variant.method, evidence, label=cell.label
            ).ref
            alpha = plan.config.alpha if variant.alpha is None else variant.alpha
            measured = None
            if about.task in plan.tasks:
                measured = tuple(_measure(plan, about.task, ref, alpha, ledger) for ref in (None, vector))
                rows.append(Row.of(cell, measured[1]))
            folder = plan.config.out.expanduser().absolute() / "models" / cell.folder
            card = packed_card(cell, plan.pack, alpha, plan.target.family, measured)
            folder.parent.mkdir(parents=True, exist_ok=True)
            export_model(plan.space, plan.target, vector, alpha, folder, None, partial(_said, card))
            models[cell.folder] = str(folder)
    stages = {stage: dict(counter) for stage, counter in ledger.counts.items()}
    return {"rows": [row.record() for row in rows], "outputs": {"models": models}, "stages": stages}


def _said(card: str, loaded_by: str) -> str:
    """The card, whatever class loads the model: it has no classifier."""
    return card


def _measure(plan: PackedPlan, name: str, weights: Ref | None, alpha: float, ledger: Ledger) -> float:
    """Test accuracy in percent, or what stands for it."""
    task, limit = plan.tasks[name], plan.config.test_limit
    about = plan.space, plan.target, task, weights, alpha
    if task.loss in CLASSLESS:
        done = ledger.run(MEASURES[task.loss], *about, limit)
    elif open_model(plan.target, plan.space.device).probed:
        done = ledger.run(probe_model, *about, None, limit)
    else:
        done = ledger.run(evaluate_model, *about, limit)
    return read_accuracy(done.ref)

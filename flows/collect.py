"""Gather what methods ask for, on every task with every seed, and find what one cell needs of it.

Covariances are a means: they are collected where a map is missing, and go when it is solved, unless they are to be kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from bico.calibration.budget import Budget
from bico.calibration.pairing import pairs_beside
from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Side
from bico.calibration.signals import Signal
from bico.linalg.procrustes import MapRule
from bico.methods import Needs
from bico.models.sites import Site
from bico.reporting.rows import Cell
from flows.ledger import Ledger
from flows.planning.plan import Kept, Plan
from flows.services.solving import Solver
from flows.settings import Settings
from storage.keys import Ref
from tasks.calibration import Calibration, PseudoLabelled
from tasks.collect import Pass, collect_activations, collect_gradients
from tasks.distances import class_distances
from tasks.evidence import EvidenceRefs
from tasks.gradients import collect_parameter_gradients, gradients_key
from tasks.inputs import TaskRef, open_model
from tasks.maps import BlockMaps, SignalMaps
from tasks.procrustes import solve_maps
from tasks.scales import collect_scales

Draw = tuple[str, int]
"""(task, calibration seed)."""


@dataclass(frozen=True)
class Gathered:
    """What was gathered from the samples of one draw, labelled or not."""

    calibration: Calibration
    passes: tuple[Pass, ...]
    """That leave what maps are solved from."""
    gradients: Mapping[ParameterGradient, Ref]
    scales: Mapping[Side, Ref]


@dataclass(frozen=True)
class Collected:
    """What one draw has left; no artefacts where no method asks for them."""

    labelled: Gathered | None = None
    unlabelled: Gathered | None = None
    blocks: tuple[BlockMaps, ...] = field(default=())
    """Alignment maps of all of it, once they are solved."""

    @property
    def calibrations(self) -> tuple[Calibration | None, Calibration | None]:
        """Labelled and unlabelled samples."""
        labelled, unlabelled = (None if one is None else one.calibration for one in (self.labelled, self.unlabelled))
        return labelled, unlabelled

    def evidence(self, needs: Needs, budget: Budget) -> EvidenceRefs:
        """What one method needs, of what all methods' needs have left."""
        labelled = self.labelled if budget.asked else None
        unlabelled = self.unlabelled if budget.unlabelled else None
        return EvidenceRefs(
            budget,
            self.maps(needs, budget),
            {kind: labelled.gradients[kind] for kind in needs.gradients} if labelled else {},
            {kind: unlabelled.gradients[kind] for kind in needs.gradients} if unlabelled else {},
            labelled.scales if labelled and needs.scales else {},
            unlabelled.scales if unlabelled and needs.scales else {},
        )

    def maps(self, needs: Needs, budget: Budget) -> tuple[SignalMaps, ...]:
        """The maps that are needed: of the labelled samples, or of those with the unlabelled ones."""
        parts = [part for block in self.blocks for part in block.parts]
        return tuple(
            part
            for part in parts
            if (part.pseudo_labelled is not None) == bool(budget.unlabelled)
            and (part.signal, part.rule) in (needs.beside if part.beside else needs.maps)
        )

    def known_to(self, cell: Cell) -> tuple[Calibration | None, Calibration | None]:
        """The samples that one cell may look at."""
        labelled, unlabelled = self.calibrations
        return labelled if cell.budget.asked else None, unlabelled if cell.budget.unlabelled else None


def calibrate(
    plan: Plan, settings: Settings, ledger: Ledger, experts: Mapping[str, Ref] | None = None
) -> dict[Draw, Collected]:
    """Maps, parameter gradients and scales by task and seed; only what some method asks for. Where models are probed, all
    need the samples. Experts of one task share one calibration.

    Arguments:
        experts: By task, to stand in for labels that inputs lack; without them, those inputs are left out.
    """
    found: dict[Draw, Collected] = {}
    made: dict[tuple[TaskRef, int, Ref | None], Collected] = {}
    with ExitStack() as stack:
        solver = stack.enter_context(Solver(settings))
        for name in plan.tasks if plan.uses_samples or plan.probed else ():
            with ledger.phase(f"calibrate on {name}"):
                # The expert has a part in it only where its predictions are labels.
                expert = experts[name] if experts is not None and plan.config.unlabelled else None
                about = {seed: (plan.tasks[name], seed, expert) for seed in plan.config.seeds}
                distances = None
                if plan.config.sampling.by_distance and not {*about.values()} <= made.keys():
                    distances = ledger.run(class_distances, plan.space, plan.target, plan.tasks[name]).ref
                for seed, draw in about.items():
                    if draw not in made:
                        collected = _collect_draw(plan, ledger, name, seed, distances, expert)
                        _solve(plan, settings, collected, solver, ledger)
                        made[draw] = collected
                    found[name, seed] = made[draw]
    return found


def _collect_draw(
    plan: Plan, ledger: Ledger, name: str, seed: int, distances: Ref | None, expert: Ref | None
) -> Collected:
    """All but the maps, of which it is known where they will be."""
    config, about = plan.config, (plan.source, plan.target, plan.tasks[name])
    labelled = unlabelled = None
    if config.labelled:
        budgets = tuple(plan.sized(name, Budget(asked)) for asked in config.labelled)
        drawn = Calibration(*about, budgets, seed, config.sampling, distances, config.batch_size, plan.between)
        labelled = _gather(plan, drawn, ledger)
    if config.unlabelled and expert is not None:
        known = labelled.calibration if labelled else None
        drawn = PseudoLabelled(
            *about,
            (Budget(unlabelled=config.unlabelled),),
            seed,
            batch_size=config.batch_size,
            between=plan.between,
            expert=expert,
            pseudo_labels=config.pseudo_labels,
            taken=tuple(known.indices) if known else (),
            labelled_head=known.head_indices if known else None,
        )
        unlabelled = _gather(plan, drawn, ledger)
    found = Collected(labelled, unlabelled)
    return replace(found, blocks=tuple(_blocks(plan, found)))


def _gather(plan: Plan, calibration: Calibration, ledger: Ledger) -> Gathered:
    """Runs the passes of one draw but those that maps are solved from."""
    passes = tuple(
        Pass(calibration, signals, kept.most, beside, kept.grams) for kept, (signals, beside) in plan.collected.items()
    )
    if plan.gradients:
        ledger.run(collect_parameter_gradients, plan.space, calibration, plan.gradients)
    refs = {kind: plan.space.artefacts.ref(gradients_key(calibration, kind)) for kind in plan.gradients}
    sides = Side if plan.scales else ()
    scales = {side: ledger.run(collect_scales, plan.space, calibration, side).ref for side in sides}
    return Gathered(calibration, passes, refs, scales)


def _solve(plan: Plan, settings: Settings, collected: Collected, solver: Solver, ledger: Ledger) -> None:
    """Makes sure of the maps of one draw."""
    missing = [block for block in collected.blocks if not block.is_complete(plan.space)]
    if missing:
        unsolved = [part for block in missing for part in block.parts if not plan.space.artefacts.is_complete(part.key)]
        inputs = {ref.key for part in unsolved for ref in part.inputs}
        passes = [
            one.only(inputs) for found in (collected.labelled, collected.unlabelled) if found for one in found.passes
        ]
        for one in passes:
            activations = ledger.run(collect_activations, plan.space, one) if one.of(gradients=False) else None
            if one.of(gradients=True):
                ledger.run(collect_gradients, plan.space, one, activations)
        ledger.solve(plan.space, missing, solver)
        if not settings.keep_covariances:
            # Another run that solves the same maps at this moment, and now misses them, collects again when it is run again.
            ledger.discard(plan.space, [key for one in passes for key in one.leaves])
    for block in collected.blocks:
        if block not in missing:
            ledger.run(solve_maps, plan.space, block)


def _blocks(plan: Plan, found: Collected) -> Iterator[BlockMaps]:
    sites = open_model(plan.target, plan.space.device).sites
    for group in dict.fromkeys(site.group for site in sites) if plan.maps else ():
        of_group = [site for site in sites if site.group == group]
        yield BlockMaps(group, tuple(_signal_maps(plan, found, of_group, group)))


def _covariances(plan: Plan, of: Gathered | None, beside: bool) -> dict[tuple[Signal, MapRule], Ref]:
    """Where the covariances that each map is solved from will lie; nothing of samples that there are none of."""
    passes = {} if of is None else {Kept(one.most, one.grams): one for one in of.passes}
    return {
        (signal, rule): plan.space.artefacts.ref(passes[plan.kept(rule)].key(signal, beside))
        for signal, rule in ((plan.beside if beside else plan.maps) if passes else ())
    }


def _signal_maps(plan: Plan, found: Collected, sites: Sequence[Site], group: str) -> Iterator[SignalMaps]:
    """All maps of one block: of the labelled samples, and of those with the unlabelled ones."""
    config = plan.config
    for beside in (False, True):
        labelled, unlabelled = (_covariances(plan, of, beside) for of in (found.labelled, found.unlabelled))
        for signal, rule in plan.beside if beside else plan.maps:
            others = _others(plan, sites, signal) if beside else ()
            if beside and not others:  # nothing in the block stands for more than its counterpart
                continue
            ours = labelled.get((signal, rule))
            if ours is not None:
                yield SignalMaps.of(ours, signal, sites, group, config.labelled, rule, None, others)
            if unlabelled:
                theirs = (unlabelled[signal, rule], config.unlabelled)
                yield SignalMaps.of(ours, signal, sites, group, config.samples, rule, theirs, others)


def _others(plan: Plan, sites: Sequence[Site], signal: Signal) -> tuple[str, ...]:
    """What the products of a signal at some of the target's sites with others than their counterparts' are called."""
    source, target = (open_model(files, plan.space.device).sites for files in (plan.source, plan.target))
    return tuple(tensor for tensor, _ in pairs_beside(source, target, sites, [signal]))

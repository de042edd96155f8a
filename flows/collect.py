"""Gather what methods ask for, on every task with every seed, and find what one cell needs of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from bico.calibration.budget import Budget
from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Side
from bico.calibration.signals import Signal
from bico.methods import Needs
from bico.models.sites import Site
from bico.reporting.rows import Cell
from flows.config import Settings
from flows.ledger import Ledger
from flows.plan import Plan
from storage.keys import Ref
from tasks.calibration import Calibration, PseudoLabelled
from tasks.collect import (
    ACTIVATIONS,
    GRADIENTS,
    INPUT_GRADIENTS,
    collect_activations,
    collect_gradients,
    collect_input_gradients,
)
from tasks.distances import class_distances
from tasks.evidence import EvidenceRefs
from tasks.gradients import collect_parameter_gradients, gradients_key
from tasks.inputs import open_model
from tasks.maps import BlockMaps, SignalMaps
from tasks.procrustes import solve_maps
from tasks.scales import collect_scales

Draw = tuple[str, int]
"""(task, calibration seed)."""


@dataclass(frozen=True)
class Gathered:
    """What was gathered from the samples of one draw, labelled or not."""

    calibration: Calibration
    covariances: Mapping[Signal, Ref]
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
            and (part.signal, part.completion) in needs.maps
        )

    def known_to(self, cell: Cell) -> tuple[Calibration | None, Calibration | None]:
        """The samples that one cell may look at."""
        labelled, unlabelled = self.calibrations
        return labelled if cell.budget.asked else None, unlabelled if cell.budget.unlabelled else None


def collect_all(plan: Plan, ledger: Ledger, experts: Mapping[str, Ref] | None = None) -> dict[Draw, Collected]:
    """Covariances and parameter gradients by task and seed; only what some method asks for. Where models are
    probed, all need the samples.

    Arguments:
        experts: By task, to stand in for labels that inputs lack; without them, those inputs are left out.
    """
    collected = {}
    for name in plan.tasks if plan.uses_samples or plan.probed else ():
        with ledger.phase(f"collect on {name}"):
            distances = None
            if plan.config.sampling.by_distance:
                distances = ledger.run(class_distances, plan.space, plan.target, plan.tasks[name]).ref
            for seed in plan.config.seeds:
                expert = None if experts is None else experts[name]
                collected[name, seed] = _collect_draw(plan, ledger, name, seed, distances, expert)
    return collected


def _collect_draw(
    plan: Plan, ledger: Ledger, name: str, seed: int, distances: Ref | None, expert: Ref | None
) -> Collected:
    config, about = plan.config, (plan.source, plan.target, plan.tasks[name])
    labelled = unlabelled = None
    if config.labelled:
        budgets = tuple(plan.sized(name, Budget(asked)) for asked in config.labelled)
        drawn = Calibration(*about, budgets, seed, config.sampling, distances, config.batch_size)
        labelled = gather(plan, drawn, ledger)
    if config.unlabelled and expert is not None:
        known = labelled.calibration if labelled else None
        drawn = PseudoLabelled(
            *about,
            (Budget(unlabelled=config.unlabelled),),
            seed,
            batch_size=config.batch_size,
            expert=expert,
            pseudo_labels=config.pseudo_labels,
            taken=tuple(known.indices) if known else (),
            labelled_head=known.head_indices if known else None,
        )
        unlabelled = gather(plan, drawn, ledger)
    return Collected(labelled, unlabelled)


def gather(plan: Plan, calibration: Calibration, ledger: Ledger) -> Gathered:
    """Runs the passes that one draw needs."""
    covariances: dict[Signal, Ref] = {}
    if plan.maps:
        activations = ledger.run(collect_activations, plan.space, calibration, plan.collected)
        gradients = ledger.run(collect_gradients, plan.space, calibration, activations)
        covariances |= dict.fromkeys(ACTIVATIONS, activations.ref) | dict.fromkeys(GRADIENTS, gradients.ref)
        if INPUT_GRADIENTS in plan.collected:
            inputs = ledger.run(collect_input_gradients, plan.space, calibration, activations)
            covariances |= dict.fromkeys(INPUT_GRADIENTS, inputs.ref)
    if plan.gradients:
        ledger.run(collect_parameter_gradients, plan.space, calibration, plan.gradients)
    refs = {kind: plan.space.artefacts.ref(gradients_key(calibration, kind)) for kind in plan.gradients}
    sides = Side if plan.scales else ()
    scales = {side: ledger.run(collect_scales, plan.space, calibration, side).ref for side in sides}
    return Gathered(calibration, covariances, refs, scales)


def solve_all(
    plan: Plan, settings: Settings, collected: Mapping[Draw, Collected], ledger: Ledger
) -> dict[Draw, Collected]:
    """Returns what was collected with its maps. A cluster is started only if a map is missing."""
    sites = open_model(plan.target, plan.space.device).sites
    groups = list(dict.fromkeys(site.group for site in sites)) if plan.maps else []
    solved = {
        draw: replace(
            found,
            blocks=tuple(BlockMaps(group, tuple(_signal_maps(plan, found, sites, group))) for group in groups),
        )
        for draw, found in collected.items()
    }
    everything = [block for found in solved.values() for block in found.blocks]
    missing = [block for block in everything if not block.is_complete(plan.space)]
    with ledger.phase("solve maps"):
        if missing:
            ledger.solve(plan.space, missing, settings)
        for block in everything:
            if block not in missing:
                ledger.run(solve_maps, plan.space, block)
    return solved


def _signal_maps(plan: Plan, found: Collected, sites: Iterable[Site], group: str) -> Iterator[SignalMaps]:
    """All maps of one block: of the labelled samples, and of those with the unlabelled ones."""
    config = plan.config
    for signal, completion in plan.maps:
        labelled = found.labelled.covariances[signal] if found.labelled else None
        if labelled is not None:
            yield SignalMaps.of(labelled, signal, sites, group, config.labelled, completion)
        if found.unlabelled is not None:
            theirs = (found.unlabelled.covariances[signal], config.unlabelled)
            yield SignalMaps.of(labelled, signal, sites, group, config.samples, completion, theirs)

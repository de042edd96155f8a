"""Every cached stage, run once on tiny models as a plain function, and a few numbers of what it leaves."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from prefect import Task
from prefect.client.schemas import State
from prefect.logging import disable_run_logger
from torch import Tensor

from bico.analysis import Measurement
from bico.calibration.budget import Budget
from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Side
from bico.calibration.signals import Signal
from bico.evaluation.held_out import HeldOut
from bico.finetune import FinetuneConfig
from bico.linalg.procrustes import Completion, MapRule
from bico.methods import Needs
from bico.methods.spec import Spec
from bico.methods.variant import get_variant
from bico.models.loading import ModelFiles, resolve
from bico.models.protocol import COMPLETION, PAIRS, PROBE
from bico.task_vector.merging import DENSITY, Merging
from storage.arrays import read_arrays, read_attrs
from storage.artefacts import folder_of
from storage.checkpoints import load_state, save_state
from storage.keys import Ref, file_digest
from tasks import (
    adapters,
    analyse,
    artefacts,
    collect,
    completions,
    distances,
    evaluate,
    finetune,
    gradients,
    last_steps,
    merge,
    pairs,
    probe,
    procrustes,
    scales,
    transfer,
    validate,
)
from tasks.cached_stage import Done, Workspace
from tasks.calibration import Calibration, PseudoLabelled
from tasks.collect import STAGES, Pass
from tasks.evidence import EvidenceRefs
from tasks.inputs import TaskRef, open_model
from tasks.maps import BlockMaps, SignalMaps
from tests.releases import write_release
from tests.tiny_completions import write_completions
from tests.tiny_decoder import write_decoder
from tests.tiny_pairs import write_all
from tests.tiny_t5 import write_colours, write_t5

DIGITS = TaskRef("digits")
RECIPE = FinetuneConfig(steps=30, batch_size=32, lr=2e-3, warmup=5, seed=1)
SAMPLES, UNLABELLED, LIMIT = (8, 24), 10, 200
BUDGETS = tuple(Budget(count, size=count) for count in SAMPLES)
TRACED = (1, 15, 30)
LR = 1e-3
METHODS = {
    "bico": ("a", "b"), "bico:completion=svd": ("a", "b"), "bico:strength=effect": ("a", "wide"),
    "theseus": ("a", "wide"), "gradient-only": ("a", "b"),
    "input-only": ("a", "b"), "output-only": ("a", "b"), "gradfix": ("a", "b"),
    "gradfix:mask=force:vote=mean": ("a", "b"), "transfusion": ("a", "b"), "few-shot": ("a", "b"),
    "naive": ("a", "b"), "zero-pad": ("a", "wide"), "crop": ("wide", "a"),
}  # fmt: skip
"""A pair of models for each."""
STEPS = (
    "bico+projection", "none+projection", "bico+head", "none+head:targets=labels", "none+head:fit=logistic",
    "bico+tune:steps=4", "bico+search",
)  # fmt: skip
Numbers = dict[str, float]


def summary(tensors: Mapping[str, Tensor]) -> Numbers:
    """Norm, largest entry, and the share of the norm along a fixed direction, which feels signs and places.

    Example:
        >>> summary({"x": torch.ones(4)})["norm"]
        2.0
    """
    flat = torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
    direction = torch.cos(torch.arange(len(flat), dtype=torch.float64) ** 1.5)
    norm = flat.norm().item()
    along = (flat @ direction).item() / (norm * direction.norm().item()) if norm else 0.0
    return {"norm": norm, "mean size": flat.abs().mean().item(), "along": along}


def without_noise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key biases have no gradient, so what optimisers and signs make of theirs is rounding."""
    return {name: _without_keys(tensor) if "in_proj_bias" in name else tensor for name, tensor in state.items()}


def _without_keys(bias: Tensor) -> Tensor:
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


@dataclass(frozen=True)
class Pinned(Calibration):
    """Samples that no draw changes, so that the numbers of the stages are of the stages alone; which samples a seed draws
    is pinned in tests/library/test_sampling.py.
    """

    @cached_property
    def indices(self) -> list[int]:
        return _plain_order(self)[: self.budgets[-1].samples]


@dataclass(frozen=True)
class PinnedUnlabelled(PseudoLabelled):
    @cached_property
    def indices(self) -> list[int]:
        return [index for index in _plain_order(self) if index not in self.taken][:UNLABELLED]


def _plain_order(calibration: Calibration) -> list[int]:
    size = calibration.task.open().sizes["train"]
    return torch.randperm(size, generator=torch.Generator().manual_seed(calibration.seed)).tolist()


@dataclass(frozen=True)
class Bench:
    """Runs stages as plain functions, each artefact once."""

    folder: Path
    space: Workspace

    @cached_property
    def files(self) -> dict[str, ModelFiles]:
        shapes = {"a": {}, "b": {}, "wide": {"width": 24, "layers": 3, "image": 16}}
        releases = {
            name: write_release(self.folder / name, seed, **shapes[name]) for seed, name in enumerate(shapes, 1)
        }
        return {name: resolve(str(path)) for name, path in releases.items()}

    def run(self, stage: Task, *args: Any) -> Done:
        with disable_run_logger():
            done = stage.fn(self.space, *args)
        return done.data if isinstance(done, State) else done

    def expert(self, name: str) -> Ref:
        return self.run(finetune.finetune_model, self.files[name], DIGITS, RECIPE).ref

    def calibration(self, pair: tuple[str, str]) -> Calibration:
        return Pinned(*(self.files[name] for name in pair), DIGITS, BUDGETS, seed=0, batch_size=16)

    def unlabelled(self, pair: tuple[str, str]) -> PseudoLabelled:
        known = self.calibration(pair)
        about = {"expert": self.expert(pair[0]), "taken": tuple(known.indices)}
        return PinnedUnlabelled(
            known.source, known.target, DIGITS, (Budget(unlabelled=UNLABELLED),), seed=0, batch_size=16, **about
        )

    def collected(self, calibration: Calibration) -> dict[Signal, Ref]:
        """Whole, whatever maps will keep: these models are too small for a sketch."""
        one = Pass(calibration, tuple(Signal), None)
        self.run(collect.collect_gradients, one, self.run(collect.collect_activations, one))
        return {signal: self.space.artefacts.ref(one.key(signal)) for signal in Signal}

    def maps(self, pair: tuple[str, str], needs: Needs, unlabelled: bool = False) -> tuple[SignalMaps, ...]:
        """Solved."""
        sites = open_model(self.files[pair[1]], "cpu").sites
        covariances = self.collected(self.calibration(pair))
        beside = {}
        if unlabelled:
            beside = {signal: (ref, UNLABELLED) for signal, ref in self.collected(self.unlabelled(pair)).items()}
        blocks = [
            BlockMaps(
                group,
                tuple(
                    SignalMaps.of(covariances[signal], signal, sites, group, SAMPLES, rule, beside.get(signal))
                    for signal, rule in sorted(needs.maps)
                ),
            )
            for group in dict.fromkeys(site.group for site in sites)
            if needs.maps
        ]
        for block in blocks:
            self.run(procrustes.solve_maps, block)
        return tuple(part for block in blocks for part in block.parts)

    def evidence(self, pair: tuple[str, str], needs: Needs) -> EvidenceRefs:
        if not needs:
            return EvidenceRefs()
        kinds = {kind: self.gradient(pair, kind).ref for kind in sorted(needs.gradients)}
        moved = {side: self.scales(pair, side).ref for side in (Side if needs.scales else ())}
        return EvidenceRefs(BUDGETS[1], self.maps(pair, needs), kinds, scales=moved)

    def scales(self, pair: tuple[str, str], side: Side) -> Done:
        return self.run(scales.collect_scales, self.calibration(pair), side)

    def gradient(self, pair: tuple[str, str], kind: ParameterGradient) -> Done:
        return self.run(gradients.collect_parameter_gradients, self.calibration(pair), (kind,))

    def transferred(self, method: str, pair: tuple[str, str]) -> Ref:
        made, files = get_variant(method, lr=LR).method, [self.files[name] for name in pair]
        evidence = self.evidence(pair, made.needs)
        return self.run(transfer.transfer_vector, *files, self.expert(pair[0]), made, evidence).ref

    def finished(self, text: str, pair: tuple[str, str] = ("a", "b")) -> Ref:
        variant, files = get_variant(text, lr=LR), tuple(self.files[name] for name in pair)
        method = str(Spec.parse(text).first)
        start = None if variant.method is None else self.transferred(method, pair)
        maps = self.maps(pair, variant.steps_need, unlabelled=not variant.needs_labels)
        count = 0 if variant.needs_labels else UNLABELLED
        evidence = EvidenceRefs(Budget(SAMPLES[1], count, SAMPLES[1]), maps)
        drawn = (self.calibration(pair), self.unlabelled(pair) if count else None)
        about = files, self.expert(pair[0]), start, 0.5, variant.steps, evidence, drawn
        return self.run(last_steps.take_last_steps, *about).ref


def measure(folder: Path) -> dict[str, Numbers]:
    """Runs every stage in an empty folder and returns a summary of what each has left, by name."""
    bench = Bench(folder, Workspace(str(folder / "store")))
    found: dict[str, Numbers] = {}
    for stage, part, numbers in everything(bench):
        found.setdefault(stage, {}).update({f"{part}, {name}" if name else part: v for name, v in numbers.items()})
    return found


def everything(bench: Bench) -> Iterator[tuple[str, str, Numbers]]:
    pair = ("a", "b")
    a, b = (bench.files[name] for name in pair)
    expert = bench.expert("a")
    vector = artefacts.read_task_vector(expert, open_model(a, "cpu").state())
    yield "fine-tune", "task vector", summary(without_noise(vector))
    checkpoint = bench.folder / "expert.safetensors"
    scaled = {name: 2 * tensor for name, tensor in load_state(artefacts.expert_file(expert)).items()}
    save_state(checkpoint, scaled)
    adopted = bench.run(finetune.adopt_expert, a, str(checkpoint))
    yield "adopt-expert", "parameters", summary(without_noise(load_state(artefacts.expert_file(adopted.ref))))

    far = bench.run(distances.class_distances, b, DIGITS)
    yield "class-distances", "of all samples", summary({"": artefacts.read_distances(far.ref)})
    for what, drawn in (("labelled", bench.calibration(pair)), ("unlabelled", bench.unlabelled(pair))):
        for signal, ref in bench.collected(drawn).items():
            yield STAGES[signal], f"{what}, {signal}", summary(read_arrays(folder_of(ref) / "covariances"))
    for kind in ParameterGradient:
        read = artefacts.read_parameter_gradients(bench.gradient(pair, kind).ref, SAMPLES[1])
        yield "collect-parameter-gradients", kind, summary(without_noise(read))
    for side in Side:
        found = artefacts.read_scales(bench.scales(pair, side).ref, SAMPLES[1])
        yield "collect-scales", side, summary({"": torch.tensor([scale.squares for _, scale in sorted(found.items())])})
    yield from _maps(bench, pair)

    for text, models in METHODS.items():
        numbers = summary(without_noise(artefacts.read_vector(bench.transferred(text, models))))
        # What a plain map does outside the calibrated span follows rounding; its size does not.
        yield "transfer", text, {"norm": numbers["norm"]} if "svd" in text else numbers
    for text in STEPS:
        ref = bench.finished(text)
        yield "last-steps", text, summary(without_noise(artefacts.read_vector(ref)))
        if (head := artefacts.read_linear_head(ref)) is not None:
            yield "last-steps", f"{text}, classifier", summary({"weight": head.weight, "bias": head.bias})

    cut = get_variant("bico").method
    adapter = bench.run(adapters.carry_adapter, a, b, expert, cut, bench.evidence(pair, cut.needs), None, 4)
    yield "carry-adapter", "of rank 4", summary(without_noise(artefacts.read_vector(adapter.ref)))
    files = [artefacts.vector_file(bench.transferred(text, pair)) for text in ("bico", "naive")]
    given = [merge.VectorFile(str(path), file_digest(path)) for path in files]
    for how in Merging:
        made = bench.run(merge.merge_vectors, b, given, (1.0, 0.5), how, DENSITY)
        yield "merge", how, summary(without_noise(artefacts.read_vector(made.ref)))
    judge = merge.Samples(DIGITS, tuple(range(40)))
    found = merge.read_strengths(bench.run(merge.choose_strengths, b, given, [judge], Merging.SUM, DENSITY).ref)
    yield "merge-strengths", "sum", {f"of vector {n}": strength for n, strength in enumerate(found)}

    moved, read_out = bench.transferred("bico", pair), bench.finished("bico+head:targets=labels")
    for what, files, weights, alpha in (
        ("bare", b, None, 1.0),
        ("expert", a, expert, 1.0),
        ("classifier", b, read_out, 1.0),
        ("classifier, too strong", b, read_out, 4.0),
    ):
        done = bench.run(evaluate.evaluate_model, files, DIGITS, weights, alpha, LIMIT)
        yield "evaluate", what, {"accuracy": artefacts.read_accuracy(done.ref)}
    unseen, known = HeldOut(tuple(range(100, 300)), True), HeldOut(tuple(range(100)), False)
    for what, weights, held in (("unseen", moved, unseen), ("classifier", read_out, unseen), ("known", moved, known)):
        done = bench.run(validate.validate_model, b, DIGITS, weights, 1.0, held)
        yield "validate", what, {"accuracy": artefacts.read_accuracy(done.ref)}
    words = resolve(str(write_t5(bench.folder / "words", 1, gated=True)))
    colours = TaskRef("colours", (str(write_colours(bench.folder / "colours")),), PROBE)
    read = bench.run(finetune.finetune_model, words, colours, RECIPE).ref
    for what, weights, indices in (("bare", None, None), ("few", None, range(12)), ("fine-tuned", read, range(24))):
        done = bench.run(probe.probe_model, words, colours, weights, 1.0, indices)
        yield "probe", what, {"accuracy": artefacts.read_accuracy(done.ref)}
    done = bench.run(
        validate.validate_model, words, colours, None, 1.0, HeldOut(tuple(range(12, 40)), True), tuple(range(12))
    )
    yield "validate", "probe", {"accuracy": artefacts.read_accuracy(done.ref)}
    folder = write_all(bench.folder / "pairs")
    encoder = resolve(str(folder / "a"))
    for name in ("faq", "sts"):
        task = TaskRef(name, (str(folder / name),), PAIRS)
        measured = artefacts.read_measures(bench.run(pairs.measure_model, encoder, task, None).ref)
        yield "measure-pairs", name, dict(measured.all)
    decoder = resolve(str(write_decoder(bench.folder / "decoder", 1)))
    for few in (True, False):
        name = "choose" if few else "free"
        task = TaskRef(name, (str(write_completions(bench.folder / name, few)),), COMPLETION)
        tuned = bench.run(finetune.finetune_model, decoder, task, RECIPE).ref
        for what, weights in (("bare", None), ("fine-tuned", tuned)):
            measured = artefacts.read_measures(bench.run(completions.measure_model, decoder, task, weights).ref)
            yield "measure-completions", f"{name}, {what}", dict(measured.all)
    yield from _analyses(bench, pair, moved)


def _maps(bench: Bench, pair: tuple[str, str]) -> Iterator[tuple[str, str, Numbers]]:
    """Spectra and ranks of all maps; a map itself where the data determine it, since elsewhere it follows rounding."""
    for completion in Completion:
        needs = Needs(maps=frozenset((signal, MapRule(completion)) for signal in Signal))
        for unlabelled in (False, True):
            maps, spectra, ranks = {}, {}, 0
            for part in bench.maps(pair, needs, unlabelled):
                place = bench.space.artefacts.folder(part.key) / "maps"
                arrays, names = read_arrays(place), read_attrs(place)["ranks"]
                ranks += sum(names.values())
                maps |= {f"{part.signal} {n}": arrays[f"{n}/left"] @ arrays[f"{n}/right"].T for n in names}
                spectra |= {f"{part.signal} {name}": t for name, t in arrays.items() if name.endswith("/spectrum")}
            what = f"{completion}, {'mixed' if unlabelled else 'labelled'}"
            yield "procrustes", f"{what}, spectra", summary(spectra)
            yield "procrustes", f"{what}, maps", {"norm": summary(maps)["norm"]}
            yield "procrustes", what, {"ranks": float(ranks)}


def _analyses(bench: Bench, pair: tuple[str, str], moved: Ref) -> Iterator[tuple[str, str, Numbers]]:
    a, b = (bench.files[name] for name in pair)
    aligned = bench.maps(pair, get_variant("bico").method.needs)
    inputs = [part for part in aligned if part.signal is Signal.INPUT]
    shown = bench.run(analyse.compare_inputs, a, b, DIGITS, "test", range(40), inputs, BUDGETS[1])
    yield "compare-inputs", "test", _means(artefacts.read_measurements(shown.ref))
    oracle = bench.expert("b")
    for what, weights in (("bare", None), ("bico", moved)):
        done = bench.run(analyse.compare_outputs, b, DIGITS, oracle, weights, what, 1.0, 40)
        yield "compare-outputs", what, _means(artefacts.read_measurements(done.ref))
    trace = bench.run(analyse.trace_finetuning, a, DIGITS, RECIPE, TRACED).ref
    states = [artefacts.read_checkpoint(trace, step) for step in TRACED]
    for before, after, step in zip(states, states[1:], TRACED[1:], strict=False):
        change = {name: after[name] - before[name] for name in after}
        yield "trace-fine-tuning", f"to step {step}", summary(without_noise(change))
    drift = bench.run(analyse.measure_drift, a, DIGITS, trace, TRACED, 40)
    yield "measure-drift", "test", _means(artefacts.read_measurements(drift.ref))
    described = bench.run(analyse.describe_maps, b, list(aligned))
    yield "describe-maps", "bico", _means(artefacts.read_measurements(described.ref))


def _means(records: Iterable[Measurement]) -> Numbers:
    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(f"{record.quantity} {record.series}".strip(), []).append(record.value)
    return {name: math.fsum(values) / len(values) for name, values in groups.items()}

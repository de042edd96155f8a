"""What every cached stage gives on tiny models, in a few numbers, beside the version that enters its keys.

The store serves an artefact for as long as its key stays, so a stage whose maths has changed has to raise its version.
`python -m tests.pipeline.golden` pins the numbers anew, and refuses to where the version is still the old one.
"""

import ast
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from prefect import Task
from prefect.client.schemas import State
from prefect.logging import disable_run_logger
from torch import Tensor

from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.signals import Signal
from bico.finetune import FinetuneConfig
from bico.linalg.procrustes import Completion
from bico.methods import Needs
from bico.methods.variant import get_variant
from bico.models.loading import ModelFiles, resolve
from bico.models.protocol import PROBE
from storage.arrays import read_arrays, read_attrs
from storage.checkpoints import load_state, save_state
from tasks import analyse, collect, distances, evaluate, finetune, gradients, last_steps, probe, procrustes, transfer
from tasks.cached_stage import Done, Workspace
from tasks.collect import ACTIVATIONS, GRADIENTS, INPUT_GRADIENTS, Calibration
from tasks.inputs import TaskRef, open_model
from tasks.procrustes import BlockMaps, SignalMaps
from tasks.pseudo_labelled import PseudoLabelled
from tests.releases import write_release
from tests.tiny_t5 import write_colours, write_t5

PINNED = Path(__file__).with_name("golden.json")
TASKS = Path(__file__).resolve().parents[2] / "tasks"
DIGITS = TaskRef("digits")
RECIPE = FinetuneConfig(steps=30, batch_size=32, lr=2e-3, warmup=5, seed=1)
SAMPLES, UNLABELLED, LIMIT = (8, 24), 10, 200
TRACED = (1, 15, 30)
LR = 1e-3
METHODS = {
    "bico": ("a", "b"), "bico:completion=svd": ("a", "b"), "theseus": ("a", "wide"), "gradient-only": ("a", "b"),
    "input-only": ("a", "b"), "output-only": ("a", "b"), "gradfix": ("a", "b"),
    "gradfix:mask=force:vote=mean": ("a", "b"), "transfusion": ("a", "b"), "few-shot": ("a", "b"),
    "naive": ("a", "b"), "zero-pad": ("a", "wide"), "crop": ("wide", "a"),
}  # fmt: skip
"""A pair of models for each."""
STEPS = (
    "bico+projection", "none+projection", "bico+head", "none+head:targets=labels", "none+head:fit=logistic",
    "bico+tune:steps=4",
)  # fmt: skip
VERSIONS: dict[str, tuple[ModuleType, str]] = {
    "fine-tune": (finetune, "FINETUNE_VERSION"),
    "adopt-expert": (finetune, "ADOPT_VERSION"),
    "class-distances": (distances, "VERSION"),
    "collect-activations": (collect, "VERSION"),
    "collect-gradients": (collect, "VERSION"),
    "collect-input-gradients": (collect, "VERSION"),
    "collect-parameter-gradients": (gradients, "VERSION"),
    "procrustes": (procrustes, "VERSION"),
    "transfer": (transfer, "VERSION"),
    "last-steps": (last_steps, "VERSION"),
    "evaluate": (evaluate, "VERSION"),
    "probe": (probe, "VERSION"),
    "compare-inputs": (analyse, "VERSION"),
    "compare-outputs": (analyse, "VERSION"),
    "trace-fine-tuning": (analyse, "VERSION"),
    "measure-drift": (analyse, "VERSION"),
    "describe-maps": (analyse, "VERSION"),
}
"""Where the version of each stage stands."""

COLLECTED = ("collect-activations", "collect-gradients", "collect-input-gradients", "collect-parameter-gradients")
BEFORE: dict[str, tuple[str, ...]] = {
    "adopt-expert": ("fine-tune",),
    **dict.fromkeys(COLLECTED[:3], ("fine-tune",)),  # for inputs without labels
    "procrustes": COLLECTED[:3],
    "transfer": ("fine-tune", "procrustes", *COLLECTED),
    "last-steps": ("transfer",),
    "evaluate": ("last-steps",),
    "probe": ("fine-tune",),
    "compare-inputs": ("procrustes",),
    "compare-outputs": ("transfer",),
    "measure-drift": ("trace-fine-tuning",),
    "describe-maps": ("procrustes",),
}
"""What each stage is measured on, and so follows: its keys change with theirs."""

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

    def expert(self, name: str) -> Done:
        return self.run(finetune.finetune_model, self.files[name], DIGITS, RECIPE)

    def calibration(self, pair: tuple[str, str]) -> Calibration:
        return Calibration(*(self.files[name] for name in pair), DIGITS, SAMPLES, seed=0, batch_size=16)

    def unlabelled(self, pair: tuple[str, str]) -> PseudoLabelled:
        known = self.calibration(pair)
        about = {"expert": self.expert(pair[0]).ref, "taken": tuple(known.indices)}
        return PseudoLabelled(known.source, known.target, DIGITS, (UNLABELLED,), seed=0, batch_size=16, **about)

    def collected(self, calibration: Calibration) -> dict[tuple[Signal, ...], Done]:
        groups = (ACTIVATIONS, GRADIENTS, INPUT_GRADIENTS)
        first = self.run(collect.collect_activations, calibration, groups)
        second = self.run(collect.collect_gradients, calibration, first)
        return dict(
            zip(groups, (first, second, self.run(collect.collect_input_gradients, calibration, first)), strict=True)
        )

    def maps(self, pair: tuple[str, str], needs: Needs, unlabelled: bool = False) -> tuple[SignalMaps, ...]:
        """Solved."""
        sites = open_model(self.files[pair[1]], "cpu").sites
        covariances = {s: d.ref for group, d in self.collected(self.calibration(pair)).items() for s in group}
        beside = {}
        if unlabelled:
            beside = {s: (d.ref, UNLABELLED) for g, d in self.collected(self.unlabelled(pair)).items() for s in g}
        blocks = [
            BlockMaps(
                group,
                tuple(
                    SignalMaps.of(covariances[signal], signal, sites, group, SAMPLES, completion, beside.get(signal))
                    for signal, completion in sorted(needs.maps)
                ),
            )
            for group in dict.fromkeys(site.group for site in sites)
            if needs.maps
        ]
        for block in blocks:
            self.run(procrustes.solve_maps, block)
        return tuple(part for block in blocks for part in block.parts)

    def evidence(self, pair: tuple[str, str], needs: Needs) -> transfer.EvidenceRefs:
        if not needs:
            return transfer.EvidenceRefs()
        kinds = {kind: self.gradient(pair, kind).ref for kind in sorted(needs.gradients)}
        return transfer.EvidenceRefs(SAMPLES[1], SAMPLES[1], self.maps(pair, needs), kinds)

    def gradient(self, pair: tuple[str, str], kind: ParameterGradient) -> Done:
        return self.run(gradients.collect_parameter_gradients, self.calibration(pair), (kind,))

    def transferred(self, method: str, pair: tuple[str, str]) -> Done:
        made, files = get_variant(method, lr=LR).method, [self.files[name] for name in pair]
        return self.run(transfer.transfer_vector, *files, self.expert(pair[0]), made, self.evidence(pair, made.needs))

    def finished(self, text: str, pair: tuple[str, str] = ("a", "b")) -> Done:
        variant, files = get_variant(text, lr=LR), tuple(self.files[name] for name in pair)
        method = text.partition("+")[0]
        start = None if variant.method is None else self.transferred(method, pair)
        maps = self.maps(pair, variant.steps_need, unlabelled=not variant.needs_labels)
        count = 0 if variant.needs_labels else UNLABELLED
        evidence = replace(transfer.EvidenceRefs(SAMPLES[1], SAMPLES[1], maps), unlabelled=count)
        drawn = (self.calibration(pair), self.unlabelled(pair) if count else None)
        return self.run(
            last_steps.take_last_steps, files, self.expert(pair[0]), start, 0.5, variant.steps, evidence, drawn
        )


def measure(folder: Path) -> dict[str, Numbers]:
    """Runs every stage in an empty folder and returns a summary of what each has left, by name."""
    bench = Bench(folder, Workspace(str(folder / "store")))
    found: dict[str, Numbers] = {}
    for stage, part, numbers in _all(bench):
        found.setdefault(stage, {}).update({f"{part}, {name}" if name else part: v for name, v in numbers.items()})
    return found


def _all(bench: Bench) -> Iterator[tuple[str, str, Numbers]]:
    pair = ("a", "b")
    a, b = (bench.files[name] for name in pair)
    expert = bench.expert("a")
    vector = finetune.task_vector_of(expert.ref, open_model(a, "cpu").state())
    yield "fine-tune", "task vector", summary(without_noise(vector))
    checkpoint = bench.folder / "expert.safetensors"
    scaled = {name: 2 * tensor for name, tensor in load_state(expert.ref.path / finetune.EXPERT).items()}
    save_state(checkpoint, scaled)
    adopted = bench.run(finetune.adopt_expert, a, str(checkpoint))
    yield "adopt-expert", "parameters", summary(without_noise(load_state(adopted.ref.path / finetune.EXPERT)))

    far = bench.run(distances.class_distances, b, DIGITS)
    yield "class-distances", "of all samples", summary({"": distances.read_distances(far.ref)})
    for group, done in bench.collected(bench.calibration(pair)).items():
        yield collect.STAGES[group], "labelled", summary(read_arrays(done.ref.path / "covariances"))
    for group, done in bench.collected(bench.unlabelled(pair)).items():
        yield collect.STAGES[group], "unlabelled", summary(read_arrays(done.ref.path / "covariances"))
    for kind in ParameterGradient:
        read = gradients.read_parameter_gradients(bench.gradient(pair, kind).ref, SAMPLES[1])
        yield "collect-parameter-gradients", kind, summary(without_noise(read))
    yield from _maps(bench, pair)

    for text, models in METHODS.items():
        done = bench.transferred(text, models)
        numbers = summary(without_noise(load_state(done.ref.path / transfer.VECTOR)))
        # What a plain map does outside the calibrated span follows rounding; its size does not.
        yield "transfer", text, {"norm": numbers["norm"]} if "svd" in text else numbers
    for text in STEPS:
        done = bench.finished(text)
        yield "last-steps", text, summary(without_noise(load_state(done.ref.path / transfer.VECTOR)))
        if (head := last_steps.read_linear_head(done)) is not None:
            yield "last-steps", f"{text}, classifier", summary({"weight": head.weight, "bias": head.bias})

    moved, read_out = bench.transferred("bico", pair), bench.finished("bico+head:targets=labels")
    for what, files, weights, alpha in (
        ("bare", b, None, 1.0),
        ("expert", a, expert, 1.0),
        ("classifier", b, read_out, 1.0),
        ("classifier, too strong", b, read_out, 4.0),
    ):
        done = bench.run(evaluate.evaluate_model, files, DIGITS, weights, alpha, LIMIT)
        yield "evaluate", what, {"accuracy": evaluate.read_accuracy(done)}
    words = resolve(str(write_t5(bench.folder / "words", 1, gated=True)))
    colours = TaskRef("colours", (str(write_colours(bench.folder / "colours")),), PROBE)
    read = bench.run(finetune.finetune_model, words, colours, RECIPE)
    for what, weights, indices in (("bare", None, None), ("few", None, range(12)), ("fine-tuned", read, range(24))):
        done = bench.run(probe.probe_model, words, colours, weights, 1.0, indices)
        yield "probe", what, {"accuracy": evaluate.read_accuracy(done)}
    yield from _analyses(bench, pair, moved)


def _maps(bench: Bench, pair: tuple[str, str]) -> Iterator[tuple[str, str, Numbers]]:
    """Spectra and ranks of all maps; a map itself where the data determine it, since elsewhere it follows rounding."""
    for completion in Completion:
        needs = Needs(maps=frozenset((signal, completion) for signal in Signal))
        for unlabelled in (False, True):
            maps, spectra, ranks = {}, {}, 0
            for part in bench.maps(pair, needs, unlabelled):
                place = bench.space.artefacts.ref(part.key).path / "maps"
                arrays = read_arrays(place)
                ranks += sum(read_attrs(place)["ranks"].values())
                maps |= {f"{part.signal} {name}": t for name, t in arrays.items() if name.endswith("/map")}
                spectra |= {f"{part.signal} {name}": t for name, t in arrays.items() if name.endswith("/spectrum")}
            what = f"{completion}, {'mixed' if unlabelled else 'labelled'}"
            yield "procrustes", f"{what}, spectra", summary(spectra)
            yield "procrustes", f"{what}, maps", {"norm": summary(maps)["norm"]}
            yield "procrustes", what, {"ranks": float(ranks)}


def _analyses(bench: Bench, pair: tuple[str, str], moved: Done) -> Iterator[tuple[str, str, Numbers]]:
    a, b = (bench.files[name] for name in pair)
    aligned = bench.maps(pair, get_variant("bico").method.needs)
    inputs = [part for part in aligned if part.signal is Signal.INPUT]
    shown = bench.run(analyse.compare_inputs, a, b, DIGITS, "test", range(40), inputs, SAMPLES[1])
    yield "compare-inputs", "test", _means(analyse.read_measurements(shown))
    oracle = bench.expert("b")
    for what, weights in (("bare", None), ("bico", moved)):
        done = bench.run(analyse.compare_outputs, b, DIGITS, oracle, weights, what, 1.0, 40)
        yield "compare-outputs", what, _means(analyse.read_measurements(done))
    trace = bench.run(analyse.trace_finetuning, a, DIGITS, RECIPE, TRACED)
    states = [load_state(trace.ref.path / f"step-{step}.safetensors") for step in TRACED]
    for before, after, step in zip(states, states[1:], TRACED[1:], strict=False):
        change = {name: after[name] - before[name] for name in after}
        yield "trace-fine-tuning", f"to step {step}", summary(without_noise(change))
    drift = bench.run(analyse.measure_drift, a, DIGITS, trace, TRACED, 40)
    yield "measure-drift", "test", _means(analyse.read_measurements(drift))
    described = bench.run(analyse.describe_maps, b, list(aligned))
    yield "describe-maps", "bico", _means(analyse.read_measurements(described))


def _means(records: Iterable[analyse.Measurement]) -> Numbers:
    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(f"{record.quantity} {record.series}".strip(), []).append(record.value)
    return {name: math.fsum(values) / len(values) for name, values in groups.items()}


def named_stages() -> set[str]:
    """Every stage whose key some module of `tasks` makes."""
    found = set(collect.STAGES.values())
    for path in TASKS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "artefact_key":
                if isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
                elif ast.unparse(node.args[0]) != "STAGES[signals]":
                    raise LookupError(f"{path.name}:{node.lineno}: which stage is {ast.unparse(node.args[0])}?")
    return found


def version_constants() -> set[tuple[str, str]]:
    """Every version that some module of `tasks` has, by the module's name."""
    return {
        (path.stem, target.id)
        for path in TASKS.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.endswith("VERSION")
    }


def current(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        stage: {"version": getattr(*VERSIONS[stage]), "numbers": numbers} for stage, numbers in measure(folder).items()
    }


def changes(pinned: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs by more than rounding, a line per stage; nothing if all is as it was."""
    lines = []
    for stage in sorted({*pinned, *found}):
        old, new = (side.get(stage, {"version": None, "numbers": {}}) for side in (pinned, found))
        moved = [
            f"{name} {old['numbers'].get(name)} → {new['numbers'].get(name)}"
            for name in sorted({*old["numbers"], *new["numbers"]})
            if not _alike(name, old["numbers"].get(name), new["numbers"].get(name))
        ]
        if moved or old["version"] != new["version"]:
            lines.append(f"{stage} (version {old['version']} → {new['version']}): {'; '.join(moved) or 'same numbers'}")
    return lines


def _alike(name: str, old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return False
    if name.endswith("accuracy"):
        return abs(old - new) <= 1 + 1e-9  # two samples may stand on the border of two classes
    if name.endswith("along"):
        return abs(old - new) <= ALONG
    return math.isclose(old, new, rel_tol=RELATIVE, abs_tol=1e-6)


ALONG, RELATIVE = 2e-4, 1e-3
"""More than another BLAS, thread count or batch size changes, and less than any change of the maths that was tried."""


def pin(pinned: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to pin.

    Raises:
        ValueError: If a stage gives other numbers though neither its version nor one before it is another.
    """
    raised = {name for name, new in found.items() if new["version"] != pinned.get(name, {}).get("version")}
    for stage, new in found.items():
        if changes({stage: pinned.get(stage, new)}, {stage: new}) and not raised & {stage, *_all_before(stage)}:
            module, name = VERSIONS[stage]
            raise ValueError(
                f"{stage} gives other numbers: raise {name} in {module.__name__.replace('.', '/')}.py first."
            )
    return dict(found)


def _all_before(stage: str) -> set[str]:
    return {name for before in BEFORE.get(stage, ()) for name in (before, *_all_before(before))}


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    return float(f"{content:.6g}") if isinstance(content, float) else content


def main() -> None:
    torch.set_num_threads(1)
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = _rounded(current(Path(folder)))
    for line in changes(pinned, found):
        print(line)
    try:
        PINNED.write_text(json.dumps(pin(pinned, found), indent=1, sort_keys=True) + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

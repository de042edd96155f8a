"""What a shallower target gets of the blocks that it skips, and what partial whitening does: accuracies beside their controls.

    python -m benchmarks.depth mini-l mini-a digits segments lamps
    python -m benchmarks.depth MODELS/all-MiniLM-L6-v2 MODELS/paraphrase-MiniLM-L3-v2 trec subj --data DATA/trec --data DATA/subj \
        --experts FOLDER --test 300
    python -m benchmarks.depth --table                 # the page of all that was measured

Models are those of the zoo, or folders. Pictures: experts are fine-tuned here on what calibration is not drawn from, and kept in
the folder of experts. Texts: experts lie there as `bico finetune` writes them, MODEL-TASK.safetensors. The control beside each
row is the expert of another task, carried by the same maps at the same strength. Rows go to benchmarks/results/depth.csv as they
come; a run that was stopped goes on where it was.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import date
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from benchmarks.beyond.sides import open_side
from benchmarks.measure import machine, table
from bico.calibration.covariances import Batch, collect_signals
from bico.calibration.meeting import real_rows
from bico.calibration.sampling import draw_samples
from bico.calibration.signals import Signal
from bico.data.tasks import Prepared, get_task
from bico.evaluation.accuracy import accuracy
from bico.evaluation.linear_head import LinearHead, read
from bico.evaluation.probe import as_head, fit_probe, probe_accuracy
from bico.methods import Pair, get_method
from bico.models.depth import Depth, take_sites
from bico.models.loading import load, resolve
from bico.models.protocol import Model
from bico.models.zoo import list_models
from bico.rehoming.in_memory import gather_needs
from bico.rehoming.subjects import Opened, vector_of
from bico.task_vector import StateDict

RESULTS = Path(__file__).parent / "results"
METHODS = (
    "bico",
    "bico:depth=sum",
    "bico:strength=effect",
    "bico:strength=effect:depth=sum",
    "bico:whiten=0.25",
    "bico:whiten=0.5",
    "bico:strength=effect:whiten=0.25",
    "bico:strength=effect:whiten=0.5",
)
UNRELATED = {"digits": "lamps", "segments": "lamps", "lamps": "digits", "trec": "subj", "subj": "trec"}
"""Whose expert is the control."""
UNTOUCHED, TUNED, CONTROL = "as it is", "fine-tuned", "unrelated: "
TOGETHER = "outputs together, "
WRITERS = ("out_proj", "c_proj", "o", "wo")
"""Roles whose outputs are added to the residual stream, of the families that are measured here."""
BATCH = 50


@dataclass(frozen=True)
class Row:
    pair: str
    task: str
    samples: int
    draw: int
    row: str
    value: float


class Ground(NamedTuple):
    """One pair on one task."""

    source: Model
    target: Model
    train: tuple[Prepared, Prepared]
    test: Prepared
    heads: tuple[Tensor, Tensor] | None
    """Zero-shot heads; None where models are probed."""
    pool: Tensor
    """Training samples that calibration is drawn from."""
    expert: StateDict
    unrelated: StateDict
    tuned: StateDict | None
    """Of the target, for reference."""
    classes: int


def pictures(source: str, target: str, task: str, given: argparse.Namespace) -> Ground:
    sides = [open_side(f"zoo:{name}", task, tuple(given.data), given.test) for name in (source, target)]
    other = open_side(f"zoo:{source}", UNRELATED[task], tuple(given.data), given.test)
    ours, theirs = sides
    vectors = (side.fine_tuned(0, given.experts) for side in (ours, other, theirs))
    expert, unrelated, tuned = vectors
    return Ground(
        ours.model, theirs.model, (ours.train, theirs.train), theirs.test, (ours.head, theirs.head), ours.pool,
        expert, unrelated, tuned, len(ours.task.class_names),
    )  # fmt: skip


def texts(source: str, target: str, task: str, given: argparse.Namespace) -> Ground:
    files = resolve(source)
    ours, theirs, opened = load(files), load(resolve(target)), get_task(task, given.data)
    name = Path(source).name
    expert, unrelated = (
        vector_of(given.experts / f"{name}-{of}.safetensors", Opened(ours, files), False, None)[0]
        for of in (task, UNRELATED[task])
    )
    train = opened.open("train")
    both = tuple(Prepared(train, model.prepare, model.stack) for model in (ours, theirs))
    test = Prepared(opened.open("test"), theirs.prepare, theirs.stack)
    pool = draw_samples(len(train), len(train), 0)
    return Ground(ours, theirs, both, test, None, pool, expert, unrelated, None, len(opened.class_names))


def measure(
    pair: str, task: str, ground: Ground, samples: int, draw: int, given: argparse.Namespace, first: bool
) -> Iterator[Row]:
    """The rows of some methods on one draw, behind the references if it is the first time."""
    picks = ground.pool[draw_samples(len(ground.pool), samples, draw)]
    inputs = [tuple(data.batch(part) for data in ground.train) for part in picks.split(BATCH)]
    batches = [Batch(ours, theirs, labels) for (ours, labels), (theirs, _) in inputs]
    labels = ground.train[1].split.labels[picks]

    def probe(model: Model, which: int) -> LinearHead:
        features = read(model, (one[which][0] for one in inputs)).features
        return fit_probe(features, labels, ground.classes)

    models = ground.source, ground.target
    heads = ground.heads or tuple(as_head(probe(model, n)) for n, model in enumerate(models))

    def right(vector: StateDict) -> float:
        with ground.target.updated(vector):
            tested = ground.test.batches(BATCH, given.test)
            if ground.heads is None:
                return probe_accuracy(ground.target, tested, probe(ground.target, 1))
            return accuracy(ground.target, tested, heads[1])

    def row(name: str, value: float) -> Row:
        return Row(pair, task, samples, draw, name, round(value, 3))

    methods = {name: get_method(name) for name in given.methods}
    evidence = gather_needs(*models, batches, heads, reduce(or_, (method.needs for method in methods.values())))
    about = Pair.of(*models)
    if first:
        for role, share in together(ground.source, ground.target, batches[0], heads[0]).items():
            yield row(f"{TOGETHER}{role}", share)
        yield row(UNTOUCHED, right({}))
        if ground.tuned is not None:
            yield row(TUNED, right(ground.tuned))
    for prefix, tau in (("", ground.expert), (CONTROL, ground.unrelated)):
        for name, method in methods.items():
            yield row(prefix + name, right(method.transport(tau, about, evidence)))


def together(source: Model, target: Model, batch: Batch, head: Tensor) -> Mapping[str, float]:
    r"""By role, :math:`\|\sum y\|^2 / \sum \|y\|^2` of what the blocks that one block of the target stands for add to the stream: one
    where they have nothing to do with each other, their number where they add the same.
    """
    taken = take_sites(source.sites, target.sites, Depth.SUM)
    groups = [(site.role, one.sites) for site in target.sites if len((one := taken[site.name]).sites) > 1]
    sites = [site for role, of in groups if role in WRITERS for site in of]
    seen = collect_signals(source, batch.source, batch.labels, head, sites, [Signal.OUTPUT])
    rows = {key[0]: real_rows(signal, source.mask(batch.source)).double() for key, signal in seen.items()}
    found: dict[str, list[float]] = defaultdict(list)
    for role, of in groups:
        if role in WRITERS:
            parts = [rows[site.name] for site in of]
            found[role].append(float(sum(parts).square().sum() / sum(part.square().sum() for part in parts)))
    return {role: statistics.fmean(shares) for role, shares in found.items()}


def run(given: argparse.Namespace) -> None:
    source, target = given.source, given.target
    pair = f"{Path(source).name} → {Path(target).name}"
    opened = pictures if source in list_models() else texts
    for task in given.tasks:
        done = {
            (row.samples, row.draw, row.row) for row in read_rows(given.out) if (row.pair, row.task) == (pair, task)
        }
        asked = [(n, draw) for draw in given.draws for n in given.samples]
        todo = [at for at in asked if any((*at, name) not in done for name in given.methods)]
        if not todo:
            continue
        ground = opened(source, target, task, given)
        for samples, draw in todo:
            first = (samples, draw, UNTOUCHED) not in done
            rows = list(measure(pair, task, ground, samples, draw, given, first))
            new = not given.out.is_file()
            with given.out.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([[field.name for field in fields(Row)]] * new + [astuple(row) for row in rows])
            print(f"{pair}, {task}, N={samples}, draw {draw}: {len(rows)} rows", flush=True)


def read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            Row(r["pair"], r["task"], int(r["samples"]), int(r["draw"]), r["row"], float(r["value"]))
            for r in csv.DictReader(file)
        ]


def page(rows: Sequence[Row]) -> str:
    """Mean and spread over the draws, the unrelated expert's mean behind it; a table per pair."""
    lines = [
        "# Blocks that are summed, rows that are whitened",
        "",
        f"`python -m benchmarks.depth` (its docstring has the commands); {date.today()}; {machine()}.",
        "",
        "Accuracy in percent on the test samples, mean ± sd over draws of calibration samples; in brackets the control, an expert of "
        "another task carried by the same maps. Average: mean over the tasks, sd over draws of that mean.",
    ]
    for pair in dict.fromkeys(row.pair for row in rows):
        of_pair = [row for row in rows if row.pair == pair]
        columns = list(dict.fromkeys((row.samples, row.task) for row in of_pair))
        columns.sort()
        counts = sorted({n for n, _ in columns})
        cells: dict[tuple[str, int, str], dict[int, float]] = defaultdict(dict)
        for row in of_pair:
            cells[row.row, row.samples, row.task][row.draw] = row.value
        header = ["", *(f"{task}, N={n}" for n, task in columns), *(f"average, N={n}" for n in counts)]
        body = []
        for name in (UNTOUCHED, TUNED, *METHODS):
            found = [cells.get((name, *column)) for column in columns]
            if any(found):
                controls = [cells.get((CONTROL + name, *column)) for column in columns]
                shown = [told(a, b) for a, b in zip(found, controls, strict=True)]
                averages = [
                    told(*(average([cells.get((kind + name, n, task)) for m, task in columns if m == n]) for kind in ("", CONTROL)))
                    for n in counts
                ]  # fmt: skip
                body.append([f"`{name}`" if name in METHODS else name, *shown, *averages])
        lines += ["", f"## {pair}", "", table(header, body)]
        shares = sorted({row.row for row in of_pair if row.row.startswith(TOGETHER)})
        for name in shares:
            values = [row.value for row in of_pair if row.row == name]
            lines += ["", f"Of `{name.removeprefix(TOGETHER)}`, ‖Σy‖² / Σ‖y‖² over the blocks that one of the target's stands for: "
                      f"{statistics.fmean(values):.2f} (1 where they are orthogonal)."]  # fmt: skip
    return "\n".join(lines) + "\n"


def average(cells: Sequence[Mapping[int, float] | None]) -> dict[int, float] | None:
    """Over tasks, by draw; of draws that all tasks have."""
    known = [cell for cell in cells if cell]
    if not known or len(known) < len(cells):
        return None
    return {draw: statistics.fmean(cell[draw] for cell in known) for draw in set.intersection(*map(set, known))}


def told(values: Mapping[int, float] | None, control: Mapping[int, float] | None) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values.values()):.1f}" if len(values) > 1 else ""
    beside = f" ({statistics.fmean(control.values()):.1f})" if control else ""
    return f"{statistics.fmean(values.values()):.1f}{spread}{beside}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("target", nargs="?")
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--experts", type=Path, default=Path("out/beyond"))
    parser.add_argument("--samples", type=lambda text: [int(n) for n in text.split(",")], default=[20, 100])
    parser.add_argument("--draws", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS)
    parser.add_argument("--test", type=int, default=500, help="test samples")
    parser.add_argument("--out", type=Path, default=RESULTS / "depth.csv")
    parser.add_argument("--table", action="store_true", help="write the page of what was measured")
    given = parser.parse_args()
    if given.table:
        (text := page(read_rows(given.out))) and given.out.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text)
    elif not given.tasks:
        parser.error("which pair, on which tasks?")
    else:
        run(given)


if __name__ == "__main__":
    main()

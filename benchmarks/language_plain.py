"""Table 2 in miniature by the library alone, for a machine that has PyTorch and transformers but none of the pipeline.

    python -m benchmarks.language_plain dump --data DATA/trec --data DATA/subj ... --into FOLDER    where the data are
    python -m benchmarks.language_plain run FOLDER [--device cuda]                                  anywhere
    python -m benchmarks.language_plain show FOLDER --made "..."                                    where the project is

`dump` leaves tokens and labels; `run` writes a file of rows (loss, task, method, samples, seed, accuracy) per task and
loss, in one process per task; `show` writes benchmarks/results/losses.md, which sets both losses side by side, and
table2-mini.md and .csv, with the family's default. Draws, fine-tuning, maps and probes are those of `bico reproduce table2
--mini`.
"""

import argparse
import csv
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bico.calibration import Batch, cross_covariances, split_at
from bico.claims import Kind, differences, evaluate
from bico.data.base import Prepared, Split
from bico.finetune import FinetuneConfig, finetune
from bico.methods import Gathered, Pair, get_method
from bico.models.base import PROBE, TEXT
from bico.models.files import T5, ModelFiles
from bico.models.t5 import T5Encoder
from bico.models.t5_loading import load_t5
from bico.probe import as_head, fit_probe
from bico.readout import Readout, read
from bico.report import Row, headlines, markdown_table, method_label
from bico.sampling import draw_samples
from bico.signals import Signal
from bico.task_vector import subtract

COLUMNS = ("loss", "task", "method", "samples", "seed", "accuracy")
SIGNALS = (Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD)
SHARED = ("target-probe", "source-probe", "full-data")
ORDER = ("target-probe", "source-probe", "bico", "theseus", "full-data", "fine-tuned", "expert")
RESULTS = Path(__file__).parent / "results"


class Work:
    """One model with one task's tokens."""

    def __init__(self, model: T5Encoder, data: dict[str, Any], limit: int) -> None:
        self.model, self.classes = model, data["classes"]
        self.train, self.test = (self._prepared(*data[split]) for split in ("train", "test"))
        self.limit = limit

    def _prepared(self, rows: list[Tensor], labels: Tensor) -> Prepared:
        return Prepared(Split(labels, rows.__getitem__), self.model.stack, self.model.stack)

    def features(self, data: Prepared, indices: Tensor) -> tuple[Tensor, Tensor]:
        found = read(self.model, (data.batch(part)[0] for part in indices.split(250))).features
        return found, data.split.labels[indices].to(found.device)

    def probe(self, indices: Tensor | None = None) -> Readout:
        chosen = torch.arange(len(self.train)) if indices is None else indices
        features, labels = self.features(self.train, chosen)
        return fit_probe(features.cpu(), labels.cpu(), len(self.classes))  # many small steps: no work for a GPU

    def accuracy(self, indices: Tensor | None = None) -> float:
        """Of a probe fitted on some training samples, or on all, in percent."""
        probe = self.probe(indices)
        features, labels = self.features(self.test, torch.arange(min(self.limit, len(self.test))))
        scores = probe.scores(features.to(probe.weight.device))
        return 100 * float((scores.argmax(1) == labels.to(scores.device)).double().mean())

    def head(self, loss: str, indices: Tensor | None = None) -> Tensor:
        if loss != PROBE:
            return self.model.head(self.classes)
        return as_head(self.probe(indices)).to(self.model.device)

    def fine_tuned(self, loss: str, config: FinetuneConfig) -> dict[str, Tensor]:
        """The task vector."""
        head = self.head(loss)
        tuned = finetune(self.model, self.train.batch, len(self.train), head, config, progress=False)
        return subtract(tuned, self.model.state())


def run_task(folder: Path, name: str, device: str, out: Path) -> None:
    """Writes NAME-LOSS.csv for each loss; what does not depend on it goes with the first."""
    torch.set_num_threads(1 if device == "cpu" else 2)
    about, data = json.loads((folder / "about.json").read_text()), torch.load(folder / f"{name}.pt", weights_only=True)
    ours, theirs = (Work(load(folder / end, device), data, about["test_limit"]) for end in ("source", "target"))
    config, counts = FinetuneConfig(**about["finetune"]), about["samples"]
    draws = {seed: draw_samples(len(ours.train), counts[-1], seed) for seed in about["seeds"]}
    for loss in about["losses"]:
        started, rows = time.perf_counter(), []
        for work, method in ((theirs, "target-probe"), (ours, "source-probe")) if loss == about["losses"][0] else ():
            rows += [(loss, name, method, n, s, work.accuracy(d[:n])) for n in counts for s, d in draws.items()]
        tau, oracle = ours.fine_tuned(loss, config), theirs.fine_tuned(loss, config)
        for seed, drawn in draws.items():
            rows += carry(loss, name, seed, drawn, counts, ours, theirs, tau, about["methods"])
        write(out / f"{name}-{loss}.csv", rows)
        if loss == about["losses"][0]:
            rows.append((loss, name, "full-data", 0, "", theirs.accuracy()))
        for work, vector, method in ((theirs, oracle, "fine-tuned"), (ours, tau, "expert")):
            with work.model.updated(vector):
                rows.append((loss, name, method, 0, "", work.accuracy()))
        write(out / f"{name}-{loss}.csv", rows)
        print(f"{name}, {loss}: {time.perf_counter() - started:.0f} s", flush=True)


def write(path: Path, rows: list[tuple]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def carry(
    loss: str,
    name: str,
    seed: int,
    drawn: Tensor,
    counts: list[int],
    ours: Work,
    theirs: Work,
    tau: dict,
    methods: list,
) -> list[tuple]:
    """Rows of one calibration draw."""
    heads = tuple(work.head(loss, drawn[: counts[0]]) for work in (ours, theirs))
    batches = [
        Batch(ours.train.batch(drawn[s])[0], *theirs.train.batch(drawn[s])) for s in split_at(len(drawn), 32, counts)
    ]
    pair, rows = Pair.of(ours.model, theirs.model), []
    here = {key: tensor.cpu() for key, tensor in tau.items()}
    for n, sums in cross_covariances(ours.model, theirs.model, batches, heads, SIGNALS, counts):
        evidence = Gathered(n, {key: value.cpu() for key, value in sums.items()})
        for method in methods:
            with theirs.model.updated(get_method(method).transport(here, pair, evidence)):
                rows.append((loss, name, method, n, seed, theirs.accuracy(drawn[:n])))
    return rows


def load(folder: Path, device: str) -> T5Encoder:
    weights = folder / "model.safetensors"
    return load_t5(ModelFiles(folder.name, f"local-dir:{folder}", weights, (weights,), family=T5), device)


def dump(folders: list[Path], into: Path) -> None:
    import shutil

    from bico import zoo
    from bico.data.tasks import get_task
    from flows.recipes import read_recipe

    config = read_recipe("table2").configs(True, folders)["pair"]
    into.mkdir(parents=True, exist_ok=True)
    for end, ref in (("source", config.source), ("target", config.target)):
        shutil.copytree(zoo.resolve(ref.removeprefix("zoo:")), into / end, dirs_exist_ok=True)
    model = load(into / "source", "cpu")
    for name in config.tasks:
        task, splits = get_task(name, folders), {}
        for split in ("train", "test"):
            opened = task.open(split)
            rows = [model.prepare([opened.example(n)])[0].short() for n in range(len(opened))]
            splits[split] = ([row.long() for row in rows], opened.labels)
        torch.save(splits | {"classes": list(task.class_names)}, into / f"{name}.pt")
    about = {key: getattr(config, key) for key in ("tasks", "methods", "samples", "seeds", "test_limit")}
    about |= {"losses": list(T5Encoder.losses), "finetune": vars(config.finetune)}
    (into / "about.json").write_text(json.dumps(about))


def read_rows(folder: Path) -> dict[str, list[Row]]:
    """By loss; what does not depend on it is in both."""
    rows: dict[str, list[Row]] = {loss: [] for loss in T5Encoder.losses}
    for path in sorted(folder.glob("*-*.csv")):
        for record in csv.DictReader(path.read_text().splitlines()):
            row = Row.parse(record)
            for loss in T5Encoder.losses if row.method in SHARED else [record["loss"]]:
                rows[loss].append(row)
    order = {method: place for place, method in enumerate(ORDER)}
    return {loss: sorted(group, key=lambda row: order[row.method]) for loss, group in rows.items()}


def compared(title: str, ours: list[Row], theirs: list[Row], method: str, other: str, counts: list[int]) -> list[str]:
    """Verdicts on whether one side's rows are above the other's, a line per N."""
    lines = []
    for n in counts:
        sides = [[r for r in rows if (r.method, r.samples) == (m, n)] for rows, m in ((ours, method), (theirs, other))]
        o = evaluate(differences(*sides), Kind.MORE)
        lines.append(
            f"| {title} | {n} | {o.mean:+.2f} | {o.sd:.2f} | {o.in_favour}/{o.tasks} | {o.p:.3f} | {o.verdict} |"
        )
    return lines


def show(folder: Path, made: str) -> None:
    from flows.config import make_config
    from flows.recipes import read_recipe
    from flows.reproduce import heading, section

    rows, recipe = read_rows(folder), read_recipe("table2")
    default, counts = T5Encoder.losses[0], recipe.shared["samples"]
    values = {key: value for key, value in (recipe.mini | recipe.shared).items() if key != "data"}
    config = make_config(values | {"tasks": list(dict.fromkeys(row.task for row in rows[default]))}, "table2")
    parts = [
        "# losses: which loss of a text model is aligned",
        made,
        "Accuracy in %, mean ± sd over the calibration seeds. Whatever is chosen here was chosen on these test texts, which "
        "flatters it a little on them.",
    ]
    for loss, group in rows.items():
        parts += [f"## {loss}", markdown_table(group), "\n".join(headlines(group))]
    table = [
        "| claim | N | mean | sd over tasks | in favour | p | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    table += compared(f"BiCo: {default} above {TEXT}", rows[default], rows[TEXT], "bico", "bico", counts)
    for loss, group in rows.items():
        for other in ("theseus", "target-probe", "source-probe"):
            table += compared(f"{loss}: BiCo above {method_label(other)}", group, group, "bico", other, counts)
    parts += [
        "## Verdicts",
        "Points, averaged over seeds and tested over tasks as `bico claims` does.",
        "\n".join(table),
    ]
    (RESULTS / "losses.md").write_text("\n\n".join(parts) + "\n")
    text = [heading(recipe, True, {"pair": config}), made, section(recipe, "pair", config, rows[default])]
    (RESULTS / "table2-mini.md").write_text("\n\n".join(text) + "\n")
    with (RESULTS / "table2-mini.csv").open("w", newline="") as stream:
        records = [{"transfer": "pair"} | asdict(row) for row in rows[default]]
        writer = csv.DictWriter(stream, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("dump")
    verb.add_argument("--data", action="append", type=Path, required=True)
    verb.add_argument("--into", type=Path, required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--out", type=Path)
    verb = verbs.add_parser("show")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--made", required=True, help="a sentence about when, where and by what")
    given = parser.parse_args()
    if given.verb == "show":
        show(given.folder, given.made)
        return
    if given.verb == "dump":
        dump(given.data, given.into)
        return
    tasks = json.loads((given.folder / "about.json").read_text())["tasks"]
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(tasks) if given.device != "cpu" else 1, context) as pool:
        for done in [
            pool.submit(run_task, given.folder, name, given.device, given.out or given.folder) for name in tasks
        ]:
            done.result()


if __name__ == "__main__":
    main()

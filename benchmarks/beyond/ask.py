"""Asks one question of the study, cell by cell.

    python -m benchmarks.beyond.ask QUESTION [--tasks digits,segments,...] [--data FOLDER ...] [--experts 0,1] [--seeds 0,1,2]

Cells go to benchmarks/beyond/QUESTION.csv as they come; those that the file holds are skipped, so a run that was stopped
goes on where it was. `python -m benchmarks.beyond.table QUESTION` makes the table and the plot. Experts are kept in
out/beyond, and the weaker models that the question of quality asks for are looked for in out/beyond/zoo:

    bico zoo build mini-b --steps 250 --out out/beyond/zoo      # and 1000; mini-a 550
"""

import argparse
import csv
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.beyond.cells import Cell, Draw, Place, append, lines_of
from benchmarks.beyond.ideas import DEPTH_IDEAS, IDEAS
from benchmarks.beyond.setting import Expert, open_side
from bico.finetune import MINI
from bico.models.zoo import list_models

HERE = Path(__file__).parent
Recipes = list[tuple[str, str]]
"""(method, data) pairs."""

LABELS = [
    "theseus",
    "bico",
    "bico+projection",
    "none+projection",
    "none+head:targets=labels",
    "none+head:targets=labels:fit=logistic",
    "bico+head:targets=labels",
    "none+head",
    "bico+head",
    "few-shot",
    "none+tune:steps=30",
    "bico+tune:steps=30",
]
"""At N labelled samples."""
MIXED = [
    "theseus",
    "bico",
    "bico+projection",
    "none+projection",
    "none+head",
    "none+head:fit=logistic",
    "bico+head",
    "bico+head:targets=labels",
    "none+tune:steps=30",
    "bico+tune:steps=30",
]
"""At N labelled samples and U unlabelled ones."""
CHIEF = [
    "theseus",
    "bico",
    "bico+projection",
    "none+projection",
    "none+head:targets=labels",
    "bico+head:targets=labels",
    "none+head",
    "bico+head",
]
"""Without what needs training."""


def labelled(methods: list[str]) -> Recipes:
    return [(method, "labels") for method in methods]


def mixed(methods: list[str]) -> Recipes:
    return [(method, "mixed") for method in methods]


@dataclass(frozen=True)
class Question:
    """The cells of one question: the product of its axes, with its recipes in each."""

    recipes: tuple[tuple[str, str], ...]
    axis: str = ""
    """What is varied: a field of `Place`, and but for the pair of this too."""
    pairs: tuple[tuple[str, str], ...] = (("mini-a", "mini-b"),)
    """Models by name, of the zoo or of the folder with weaker ones."""
    strength: tuple[int, ...] = (MINI.steps,)
    labels: tuple[int, ...] = (100,)
    unlabelled: tuple[int, ...] = (500,)


QUESTIONS = {
    "regimes": Question((*labelled(LABELS), ("bico", "pseudo_labels"), *mixed(MIXED))),
    "labels": Question(tuple(labelled([*CHIEF, "none+tune:steps=30", "bico+tune:steps=30"])), "labels",
                       labels=(5, 10, 20, 50, 300), unlabelled=(0,)),
    "unlabelled": Question(tuple(mixed(CHIEF)), "unlabelled", unlabelled=(0, 100, 2000)),
    "strength": Question(tuple(mixed(CHIEF)), "strength", strength=(10, 30, 300)),
    "shapes": Question(tuple(mixed(CHIEF)), "target",
                       pairs=(("mini-a", "mini-b-plus"), ("mini-a", "mini-l"), ("mini-b-plus", "mini-a"))),
    "quality": Question(tuple(mixed(CHIEF)), "target",
                        pairs=(("mini-a", "mini-b-250"), ("mini-a", "mini-b-1000"), ("mini-a-550", "mini-b-1000"))),
    "ideas": Question(
        tuple(
            mixed(
                [name + step for name in ("bico", *IDEAS) for step in ("", "+projection", "+head")]
                + ["none+tune:steps=30+head", "bico+tune:steps=30+head"]
            )
        )
    ),
    "merged": Question(tuple(mixed(["bico", "bico-merged", "none+head", "bico+head", "bico-merged+head"]))),
    "depth": Question(
        tuple(mixed([name + step for name in ("bico", *DEPTH_IDEAS) for step in ("", "+head")] + ["none+head"])),
        pairs=(("mini-a", "mini-l"), ("mini-l", "mini-a")),
    ),
}  # fmt: skip


def places(question: Question, tasks: list[str], experts: list[int], seeds: list[int]) -> Iterator[Place]:
    """Cells of a question; those that share an expert come one after the other."""
    for (source, target), task, strength, expert in itertools.product(
        question.pairs, tasks, question.strength, experts
    ):
        for seed, labels, unlabelled in itertools.product(seeds, question.labels, question.unlabelled):
            yield Place(source, target, task, strength, expert, seed, labels, unlabelled)


def measured(path: Path) -> set[Place]:
    """Cells that a file holds."""
    if not path.is_file():
        return set()
    with path.open(newline="") as file:
        return {place_of(row) for row in csv.DictReader(file)}


def place_of(row: Mapping[str, str]) -> Place:
    """The cell of a line in a file."""
    return Place(*(row[f.name] if f.type is str else int(row[f.name]) for f in fields(Place)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--out", type=Path, help="default: benchmarks/beyond/QUESTION.csv")
    parser.add_argument("--experts-in", type=Path, default=Path("out/beyond"))
    parser.add_argument("--zoo", type=Path, default=Path("out/beyond/zoo"), help="models beside those of the zoo")
    parser.add_argument("--tasks", default="digits,segments,lamps")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--experts", default="0,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", help="SOURCE:TARGET,... in place of the question's own")
    parser.add_argument("--values", help="on the question's axis, in place of its own: 10,50")
    parser.add_argument("--test", type=int, default=500, help="test samples")
    given = parser.parse_args()
    question, out = QUESTIONS[given.question], given.out or HERE / f"{given.question}.csv"
    if given.pairs:
        question = replace(question, pairs=tuple(tuple(pair.split(":")) for pair in given.pairs.split(",")))
    if given.values:
        question = replace(question, **{question.axis: tuple(int(value) for value in given.values.split(","))})
    numbers = ([int(number) for number in text.split(",")] for text in (given.experts, given.seeds))
    run(question, out, list(places(question, given.tasks.split(","), *numbers)), given)


def run(question: Question, out: Path, wanted: list[Place], given: argparse.Namespace) -> None:
    folders = tuple(given.data)
    for (source_name, target_name, task, strength, seed), group in itertools.groupby(
        wanted, lambda p: (p.source, p.target, p.task, p.strength, p.expert)
    ):
        done = measured(out)  # another process may be at work on the same question
        todo = [place for place in group if place not in done]
        if not todo:
            continue
        source, target = (
            open_side(ref(name, given.zoo), task, folders, given.test) for name in (source_name, target_name)
        )
        started = time.process_time()
        expert = Expert.of(source, seed, given.experts_in, strength)
        print(f"{source_name} → {target_name}, {task}: expert {seed}, {strength} steps, "
              f"{time.process_time() - started:.0f} s CPU", flush=True)  # fmt: skip
        for place in todo:
            started = time.process_time()
            pool = len(source.pool)
            if place.labels + place.unlabelled > pool:
                print(f"  {place}: skipped, its pool holds {pool}", flush=True)
                continue
            draw = Draw.of(pool, place.labels, place.unlabelled, place.seed)
            lines = list(lines_of(Cell(expert, target, draw), place, question.recipes))
            append(out, lines)
            print(f"  N={place.labels}, U={place.unlabelled}, draw {place.seed}: {len(lines)} lines, "
                  f"{time.process_time() - started:.0f} s CPU", flush=True)  # fmt: skip


def ref(name: str, beside: Path) -> str:
    """A model of the zoo, or of a folder beside it, by its name."""
    return f"zoo:{name}" if name in list_models() else str(beside / name)


if __name__ == "__main__":
    main()

"""The questions of the study: what each varies, and what it measures in each of its cells."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.beyond.ideas import DEPTH_IDEAS, IDEAS
from benchmarks.beyond.setting import Data, Setting
from bico.finetune import MINI
from bico.methods.spec import Spec

HERE = Path(__file__).parent
"""Where files, pages and plots of the questions lie."""
DEVELOPMENT = ("digits", "mnist", "segments")
"""Tasks that choices were made on."""
CONFIRMATION = ("lamps", "fashion_mnist", "gtsrb", "cifar10")
"""Tasks that were named before looking at them."""
PAIRS, NUMBERS = "target", ("labels", "unlabelled", "strength")
"""Axes: pairs of models, or numbers by their name in a setting."""

OPEN = ["theseus", "bico", "bico+projection", "none+projection"]
"""What keeps the open vocabulary, without training."""
LABELLED = [
    *OPEN,
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
    *OPEN,
    "none+head",
    "none+head:fit=logistic",
    "bico+head",
    "bico+head:targets=labels",
    "none+tune:steps=30",
    "bico+tune:steps=30",
]
"""At N labelled samples and U unlabelled ones."""
CHIEF = [
    *OPEN,
    "none+head:targets=labels",
    "bico+head:targets=labels",
    "none+head",
    "bico+head",
]
"""Without what needs training."""


@dataclass(frozen=True)
class Arm:
    """What is measured in a cell: a recipe, and which of the cell's samples it looks at."""

    method: Spec
    """Of the library, or an idea (`ideas.py`), with its last steps."""
    data: Data


def arms(methods: Iterable[str], data: Data) -> tuple[Arm, ...]:
    return tuple(Arm(Spec.parse(method), data) for method in methods)


@dataclass(frozen=True)
class Question:
    """The cells of one question: the product of its axes, with its arms in each."""

    arms: tuple[Arm, ...]
    axis: str = ""
    """What is varied: one of `NUMBERS`, or `PAIRS`; the regimes are one cell each and have none."""
    pairs: tuple[tuple[str, str], ...] = (("mini-a", "mini-b"),)
    """Models by name, of the zoo or of the folder with weaker ones."""
    strength: tuple[int, ...] = (MINI.steps,)
    labels: tuple[int, ...] = (100,)
    unlabelled: tuple[int, ...] = (500,)

    def settings(self, tasks: Iterable[str], experts: Iterable[int], seeds: Iterable[int]) -> Iterator[Setting]:
        """Its cells; those that share an expert come one after the other."""
        seeds = list(seeds)
        for (source, target), task, strength, expert in itertools.product(self.pairs, tasks, self.strength, experts):
            for seed, labels, unlabelled in itertools.product(seeds, self.labels, self.unlabelled):
                yield Setting(source, target, task, strength, expert, seed, labels, unlabelled)


def _with_steps(names: Iterable[str], *steps: str) -> list[str]:
    return [name + step for name in names for step in steps]


QUESTIONS = {
    "regimes": Question(
        (*arms(LABELLED, Data.LABELLED), *arms(["bico"], Data.UNLABELLED), *arms(MIXED, Data.MIXED)),
    ),
    "labels": Question(
        arms([*CHIEF, "none+tune:steps=30", "bico+tune:steps=30"], Data.LABELLED),
        "labels",
        labels=(5, 10, 20, 50, 300),
        unlabelled=(0,),
    ),
    "unlabelled": Question(arms(CHIEF, Data.MIXED), "unlabelled", unlabelled=(0, 100, 2000)),
    "strength": Question(arms(CHIEF, Data.MIXED), "strength", strength=(10, 30, 300)),
    "shapes": Question(
        arms(CHIEF, Data.MIXED),
        PAIRS,
        pairs=(("mini-a", "mini-b-plus"), ("mini-a", "mini-l"), ("mini-b-plus", "mini-a")),
    ),
    "quality": Question(
        arms(CHIEF, Data.MIXED),
        PAIRS,
        pairs=(("mini-a", "mini-b-250"), ("mini-a", "mini-b-1000"), ("mini-a-550", "mini-b-1000")),
    ),
    "ideas": Question(
        arms(
            [
                *_with_steps(["bico", *IDEAS], "", "+projection", "+head"),
                "none+tune:steps=30+head",
                "bico+tune:steps=30+head",
            ],
            Data.MIXED,
        )
    ),
    "merged": Question(arms(["bico", "bico-merged", "none+head", "bico+head", "bico-merged+head"], Data.MIXED)),
    "depth": Question(
        arms([*_with_steps(["bico", *DEPTH_IDEAS], "", "+head"), "none+head"], Data.MIXED),
        pairs=(("mini-a", "mini-l"), ("mini-l", "mini-a")),
    ),
}

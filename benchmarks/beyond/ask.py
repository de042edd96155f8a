"""Asks one question of the study, cell by cell.

    python -m benchmarks.beyond.ask QUESTION [--tasks digits,segments,...] [--data FOLDER ...] [--experts 0,1] [--seeds 0,1,2]

Cells go to benchmarks/beyond/QUESTION.csv as they come; those that the file holds are skipped, so a run that was stopped
goes on where it was. `python -m benchmarks.beyond.table QUESTION` makes the table and the plot. Experts are kept in
out/beyond, and the weaker models that the question of quality asks for are looked for in out/beyond/zoo:

    bico zoo build mini-b --steps 250 --out out/beyond/zoo      # and 1000; mini-a 550
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.beyond.cell import StudyCell
from benchmarks.beyond.measured import Line, Regime, append, read_cells
from benchmarks.beyond.questions import HERE, NUMBERS, QUESTIONS, Arm, Question
from benchmarks.beyond.setting import Draw, Setting
from benchmarks.beyond.sides import Expert, Side, open_side
from bico.finetune import MINI
from bico.methods.spec import Spec
from bico.models.zoo import list_models
from bico.reporting.references import EXPERT, FINE_TUNED, ZERO_SHOT
from bico.task_vector import StateDict

PREDICTED = (Spec.parse("bico"), Spec.parse("theseus"))
"""Recipes whose gain is predicted, too."""


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
        if question.axis not in NUMBERS:
            parser.error(f"--values goes with questions about {', '.join(NUMBERS)}")
        question = replace(question, **{question.axis: tuple(map(int, given.values.split(",")))})
    experts, seeds = ([int(number) for number in text.split(",")] for text in (given.experts, given.seeds))
    run(question, out, list(question.settings(given.tasks.split(","), experts, seeds)), given)


def run(question: Question, out: Path, wanted: Sequence[Setting], given: argparse.Namespace) -> None:
    """Measures the cells that a file has not, and adds them to it."""
    folders = tuple(given.data)
    for (source_name, target_name, task, strength, seed), group in itertools.groupby(
        wanted, lambda s: (s.source, s.target, s.task, s.strength, s.expert)
    ):
        done = {cell.setting for cell in read_cells(out)}  # another process may be at work on the same question
        todo = [setting for setting in group if setting not in done]
        if not todo:
            continue
        source, target = (
            open_side(ref(name, given.zoo), task, folders, given.test) for name in (source_name, target_name)
        )
        started = time.process_time()
        expert = Expert.of(source, seed, given.experts_in, strength)
        print(f"{source_name} → {target_name}, {task}: expert {seed}, {strength} steps, "
              f"{time.process_time() - started:.0f} s CPU", flush=True)  # fmt: skip
        for setting in todo:
            started = time.process_time()
            pool = len(source.pool)
            if setting.labels + setting.unlabelled > pool:
                print(f"  {setting}: skipped, its pool holds {pool}", flush=True)
                continue
            draw = Draw.of(pool, setting.labels, setting.unlabelled, setting.seed)
            lines = list(lines_of(StudyCell(expert, target, draw), setting, question.arms))
            append(out, lines)
            print(f"  N={setting.labels}, U={setting.unlabelled}, draw {setting.seed}: {len(lines)} lines, "
                  f"{time.process_time() - started:.0f} s CPU", flush=True)  # fmt: skip


def lines_of(cell: StudyCell, setting: Setting, arms: Sequence[Arm]) -> Iterator[Line]:
    """Measures a question's arms in a cell, after its references."""
    source, target, expert = cell.source, cell.target, cell.expert
    tuned = target.fine_tuned(0, expert.folder)
    for reference, accuracy in (
        (ZERO_SHOT, target.zero_shot(target.test_before.features)),
        (FINE_TUNED, _accuracy(target, tuned, (0, MINI.steps))),
        (EXPERT, _accuracy(source, expert.tau, (expert.seed, expert.steps))),
    ):
        yield Line(setting, Regime(reference.spec), accuracy)
    for arm in arms:
        predicted = cell.predicted(arm.method, arm.data) if arm.method in PREDICTED else None
        regime = Regime(arm.method, arm.data.budget(setting))
        yield Line(setting, regime, cell.measure(arm.method, arm.data), predicted)


_accuracies: dict[tuple, float] = {}


def _accuracy(side: Side, vector: StateDict, which: tuple[int, int]) -> float:
    """Accuracy of a fine-tuned model, measured once per process."""
    key = (side.ref, side.task.name, *which)
    if key not in _accuracies:
        _accuracies[key] = side.zero_shot(side.on_test(vector).features)
    return _accuracies[key]


def ref(name: str, beside: Path) -> str:
    """A model of the zoo, or of a folder beside it, by its name."""
    return f"zoo:{name}" if name in list_models() else str(beside / name)


if __name__ == "__main__":
    main()

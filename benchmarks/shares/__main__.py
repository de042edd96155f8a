"""Shares of a skill that arrive, on minis and real encoders: at which strength, and by maps of which rank.

    python -m benchmarks.shares strength PAIR [TASK ...] [--data DIR] [--models DIR]
    python -m benchmarks.shares rank PAIR [TASK ...] ...
    python -m benchmarks.shares strength table                # of what is there, as Markdown

Tasks of development are those that choices were made on; the others were named before any of them was looked at. A cell is one
`bico transfer` per task and expert, cached as every run is; its rows go to benchmarks/results/QUESTION/PAIR-TASK-EXPERT.json.
What a fine-tuned target would reach is measured likewise: zero-shot where models have a vocabulary, else by a probe of the
same labels, for which a copy of the target's own fine-tuning is carried to the target itself.
"""

import argparse
from pathlib import Path

from benchmarks.shares.ask import folder_of, run
from benchmarks.shares.pairs import PAIRS, QUESTIONS
from benchmarks.shares.table import table

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("pair", choices=[*PAIRS, "table"])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder that holds a folder per task")
    parser.add_argument("--models", type=Path, default=Path("out/real-models"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="holds a folder per question")
    given = parser.parse_args()
    if given.pair == "table":
        print(table(given.question, folder_of(given)))
    else:
        run(given.pair, given.tasks, given)


if __name__ == "__main__":
    main()

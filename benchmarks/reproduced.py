"""One page over the tables that `bico reproduce` has left in benchmarks/results: a line per transfer, at its largest N.

    python -m benchmarks.reproduced DATA/mnist DATA/fashion_mnist DATA/gtsrb DATA/cifar10 \
        DATA/trec DATA/subj DATA/rte DATA/snli DATA/qqp DATA/mrpc > benchmarks/results/README.md

The folders are those that the tables were made with; what lies in them is not read.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bico.reporting.report import Row, cell, method_label, summarise

from flows.recipes import list_recipes, read_recipe
from flows.reproduce import models, read_transfers

RESULTS = Path(__file__).parent / "results"
HEADING = """# The paper's tables in miniature

Average accuracy in % over {picture}, and of texts over {text}:
mean ± sd over calibration seeds, at the largest N (or K) of each table. `as it is` is the untouched target: zero-shot, or
for texts its probe on the same N samples. The last column is how much of the way from there to the fine-tuned target BiCo
goes. Commands, dates, machine and versions stand in each table's own file.
"""
OWN_COLUMN = ("zero-shot", "target-probe", "bico", "theseus", "fine-tuned", "expert")


def line(name: str, pair: str, rows: Sequence[Row]) -> str:
    """One transfer in one line of Markdown."""
    found = {(s.method, s.samples): s for s in summarise(rows)}
    most = max(samples for _, samples in found)
    start, tuned = found.get(("zero-shot", 0)) or found["target-probe", most], found.get(("fine-tuned", 0))
    zero = start.average[0]
    others = [
        f"{method_label(s.method)} {cell(s.average, s.seeds)}"
        for (method, samples), s in found.items()
        if method not in OWN_COLUMN and samples in (0, most)
    ]
    bico, theseus = found["bico", most], found.get(("theseus", most))
    share = "" if tuned is None else f"{100 * (bico.average[0] - zero) / (tuned.average[0] - zero):.0f} %"
    cells = [
        f"[{name}]({name}.md)",
        pair,
        str(most),
        cell(start.average, start.seeds),
        cell(bico.average, bico.seeds),
        "" if theseus is None else cell(theseus.average, theseus.seeds),
        "; ".join(others),
        "" if tuned is None else cell(tuned.average, tuned.seeds),
        share,
    ]
    return f"| {' | '.join(cells)} |"


def main(data: Sequence[Path]) -> None:
    lines, tasks = [], {"picture": [], "text": []}
    for name in list_recipes():
        recipe = read_recipe(name)
        if recipe.kind != "table" or recipe.mini is None:
            continue
        configs = recipe.configs(True, data)
        for title, rows in (read_transfers(recipe, True, configs, RESULTS) or {}).items():
            lines.append(line(recipe.label(True), models(title, configs[title]), rows))
            tasks[recipe.shows] = configs[title].tasks
    print(HEADING.format(**{shows: ", ".join(names) for shows, names in tasks.items()}))
    print("| table | pair | N, K | as it is | BiCo | THESEUS | others | fine-tuned | of the gap |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    print("\n".join(lines))


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])

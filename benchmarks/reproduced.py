"""One page over the tables that `bico reproduce` has left in benchmarks/results: a line per transfer, at its largest N.

    python -m benchmarks.reproduced DATA/mnist DATA/fashion_mnist DATA/gtsrb DATA/cifar10 \
        DATA/trec DATA/subj DATA/rte DATA/snli DATA/qqp DATA/mrpc > benchmarks/results/README.md

The folders are those that the tables were made with: each table is checked against the tasks that they give.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bico.calibration.budget import NOTHING, Budget
from bico.methods.spec import Spec
from bico.reporting.names import label_of
from bico.reporting.references import EXPERT, FINE_TUNED, TARGET_PROBE, ZERO_SHOT
from bico.reporting.rows import Row, summarise
from flows.recipes import list_recipes, read_recipe
from flows.reproduce import models, read_transfers

RESULTS = Path(__file__).parent / "results"
HEADING = """# The paper's tables in miniature

Average accuracy in % over {picture}, and of texts over {text}:
mean ± sd over calibration seeds, at the largest N (or K) of each table. `as it is` is the untouched target: zero-shot, or
for texts its probe on the same N samples. The last column is how much of the way from there to the fine-tuned target BiCo
goes. Commands, dates, machine and versions stand in each table's own file.
"""
BICO, THESEUS = map(Spec.parse, ("bico", "theseus"))
OWN_COLUMN = (ZERO_SHOT.spec, TARGET_PROBE.spec, BICO, THESEUS, FINE_TUNED.spec, EXPERT.spec)


def line(name: str, pair: str, rows: Sequence[Row]) -> str:
    """One transfer in one line of Markdown."""
    found = {(s.method, s.budget): s for s in summarise(rows)}
    most = Budget(max(budget.asked for _, budget in found))
    start = found.get((ZERO_SHOT.spec, NOTHING)) or found[TARGET_PROBE.spec, most]
    tuned, zero = found.get((FINE_TUNED.spec, NOTHING)), start.average[0]
    others = [
        f"{label_of(method)} {s.average}"
        for (method, budget), s in found.items()
        if method not in OWN_COLUMN and budget in (NOTHING, most)
    ]
    bico, theseus = found[BICO, most], found.get((THESEUS, most))
    share = "" if tuned is None else f"{100 * (bico.average[0] - zero) / (tuned.average[0] - zero):.0f} %"
    cells = [
        f"[{name}]({name}.md)",
        pair,
        str(most.asked),
        str(start.average),
        str(bico.average),
        "" if theseus is None else str(theseus.average),
        "; ".join(others),
        "" if tuned is None else str(tuned.average),
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

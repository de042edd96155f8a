"""What orchestration costs: fanning blocks out on Dask, and running a finished flow again.

    python -m benchmarks.orchestration [--blocks 12] [--workers 1] [--skip-demo | --skip-blocks]

In CPU seconds of this process and of all that it starts (the API, the scheduler, the workers), which a busy machine
changes least, and by the wall. First the maps of some blocks of ViT-B/16 shape (the inputs and output gradients of a
block, 1970 rows as from ten pictures): solved by as many bare processes as there are workers, then by the flow that the
product uses, which also reads covariances from the store and writes maps to it, and then by the same flow with nothing left
to do, which is what orchestration costs alone: its start, and its tasks. Then `bico demo` in an empty home, and again in the
same one.

What takes seconds to import is imported where it is used: Dask's workers import this module again, as they do the command
line's in a real run.
"""

# This sets the environment that Prefect and Dask read when they are imported.
import flows.cli  # noqa: F401, I001

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.blocks import Cost


def beside(costs: dict[str, "Cost"]) -> list[list[str]]:
    """A line each, with its share of the first."""
    first = next(iter(costs.values()))
    return [
        [name, *(f"{value:.1f} ({100 * value / whole:.0f} %)" for value, whole in zip(found, first, strict=True))]
        for name, found in costs.items()
    ]


def demos(home: Path) -> dict[str, "Cost"]:
    from benchmarks.blocks import cost

    def demo() -> None:
        command = [sys.executable, "-m", "flows.cli", "demo", "--home", str(home), "--out", str(home / "out")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return {"`bico demo`, empty home": cost(demo), "`bico demo` again": cost(demo)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--skip-demo", action="store_true")
    parser.add_argument("--skip-blocks", action="store_true")
    given = parser.parse_args()
    from benchmarks.blocks import measured
    from benchmarks.measure import machine, scratch, table

    print(f"{machine()}. {given.workers} workers of one thread; one run.\n", flush=True)
    rows = []
    with scratch() as folder:
        home = Path(folder).absolute()
        if not given.skip_blocks:
            rows += beside(dict(measured(given.blocks, given.workers, home / "blocks")))
        if not given.skip_demo:
            rows += beside(demos(home / "demo"))
    print(table(["", "CPU s", "s by the wall"], rows))


if __name__ == "__main__":
    main()

"""What calibration leaves in the store, from shapes alone: with whole matrices that are kept, and as it is.

    python -m benchmarks.disk [--pair vitb16-vitb16plus] [--draws 24] [--counts 4] [--rank 128]

The defaults are table 1 of the paper on its real models: eight tasks with three seeds each, at four sample counts, BiCo and
THESEUS. Models have random weights; only their shapes count.
"""

import argparse

from benchmarks.measure import PAIRS, random_pair, table
from bico.calibration.memory import FLOAT32, covariance_bytes, covariance_shapes
from bico.calibration.signals import Signal
from bico.linalg.procrustes import MAP_RANK

SIGNALS = (Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD)
"""What BiCo and THESEUS align by."""
FLOAT64 = 2 * FLOAT32
GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=list(PAIRS), default="vitb16-vitb16plus")
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--counts", type=int, default=4)
    parser.add_argument("--rank", type=int, default=MAP_RANK)
    given = parser.parse_args()
    models = random_pair(given.pair)
    sites = models[0].sites, models[1].sites, models[1].sites
    shapes = covariance_shapes(*sites, SIGNALS).values()
    squares = FLOAT32 * sum(a * b for a, b in shapes)
    spectra = FLOAT64 * sum(min(a, b) for a, b in shapes)
    factors = sum(FLOAT32 * (a + b) * min(a, b, given.rank) + FLOAT64 * min(a, b) for a, b in shapes)
    passing = covariance_bytes(*sites, dict.fromkeys(SIGNALS, given.rank))
    times = given.draws * given.counts
    before, now = times * (2 * squares + spectra), times * factors
    rows = [
        ["covariances, kept", f"{times * squares / GB:.1f}", ""],
        ["maps", f"{times * (squares + spectra) / GB:.1f}", f"{now / GB:.1f}"],
        ["covariances of one draw, while its maps are solved", "", f"{given.counts * passing / GB:.1f}"],
        ["all that stays", f"{before / GB:.1f}", f"{now / GB:.1f}"],
    ]
    print(f"{given.pair}: {given.draws} draws at {given.counts} sample counts, {given.rank} directions a map\n")
    print(table(["GB", "whole matrices", "factors"], rows))
    print(f"\nFactors take {now / before:.3f} of it.")


if __name__ == "__main__":
    main()

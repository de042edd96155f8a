"""How time grows with samples, width and depth, beside what the operation counts of `bico/reporting/cost.py` say.

    python -m benchmarks.scaling [--samples 8,16,32,64] [--widths 192,384,768] [--depths 3,6,12] [--repeats 3] [--clock cpu]

Each line varies one number and keeps the others at the middle of their lists. The exponent is the slope of a line fitted
to logarithms: of the measured seconds, and of the operations counted for the very same models. Solving is counted as in
the paper (2 min² max), which leaves out that small problems run at a lower speed.
"""

import argparse
import statistics

import numpy as np
import torch

from benchmarks.measure import Clock, head, line, machine, random_head, random_model, random_pictures, table
from benchmarks.transfer import SIGNALS, Work, fast
from bico.reporting.cost import transfer_cost

PHASES = ("collect", "maps", "apply")
HEAD_WIDTH = 64


def architecture(width: int, depth: int) -> dict:
    vision = {"image_size": 96, "layers": depth, "width": width, "head_width": HEAD_WIDTH, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    return {"embed_dim": width // 2, "vision_cfg": vision, "text_cfg": text}


def build(width: int, depth: int, samples: int, clock: Clock) -> Work:
    models = [random_model(architecture(width, depth), seed) for seed in (1, 2)]
    pictures = tuple(random_pictures(model, samples) for model in models)
    heads = tuple(random_head(model) for model in models)
    return Work(*models, heads, pictures, torch.arange(samples) % 10, clock, batch_size=32)


def exponent(sizes: list[int], values: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="8,16,32,64")
    parser.add_argument("--widths", default="192,384,768")
    parser.add_argument("--depths", default="3,6,12")
    parser.add_argument("--repeats", type=int, default=3)
    Clock.add_option(parser)
    given = parser.parse_args()
    clock = Clock(given.clock)
    lists = {name: [int(n) for n in getattr(given, name).split(",")] for name in ("samples", "widths", "depths")}
    middle = {name: values[(len(values) - 1) // 2] for name, values in lists.items()}
    print(f"{machine()}. {clock}, medians of {given.repeats} runs.\n", flush=True)
    print(head([f"others at {middle}", *(f"{phase}, s" for phase in PHASES)]))
    slopes = []
    for name, values in lists.items():
        measured, counted = {phase: [] for phase in PHASES}, {phase: [] for phase in PHASES}
        for value in values:
            chosen = middle | {name: value}
            work = build(chosen["widths"], chosen["depths"], chosen["samples"], clock)
            runs = [fast(work, chosen["samples"]) for _ in range(given.repeats + 1)][1:]  # the first run warms up
            cost = transfer_cost(work.source, work.target, SIGNALS, chosen["samples"])
            counts = (cost.forward + cost.backward + cost.covariances, cost.decompositions, cost.applying)
            for phase, count in zip(PHASES, counts, strict=True):
                measured[phase].append(statistics.median(run[phase] for run in runs))
                counted[phase].append(count)
            print(line([f"{name} = {value}", *(f"{measured[phase][-1]:.3f}" for phase in PHASES)]), flush=True)
        fits = [f"{exponent(values, measured[p]):.2f} / {exponent(values, counted[p]):.2f}" for p in PHASES]
        slopes.append([name, *fits])
    print()
    print(table(["exponent, measured / counted", *PHASES], slopes))


if __name__ == "__main__":
    main()

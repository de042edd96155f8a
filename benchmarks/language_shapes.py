"""What one block of T5-3B to T5-Large costs, and how groups of blocks keep a calibration within a memory budget.

    python -m benchmarks.language_shapes [--blocks 2] [--samples 32] [--tokens 64] [--budget 12] [--clock cpu]

Encoders of the published shapes with random weights, cut to a few blocks; the decoder has one. Each pass serves one block
here; the last lines say what the budget allows for all 24. Writes benchmarks/results/language-shapes.md.
"""

import argparse
import gc
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from benchmarks.measure import Clock, PeakMemory, head, line, machine
from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.memory import covariance_bytes, signal_bytes
from bico.calibration.signals import Signal, SignalKey
from bico.linalg.procrustes import AlignmentMap, procrustes
from bico.methods.bico import BiCo
from bico.models.matching import match_sites
from bico.models.sites import Site
from bico.models.t5.encoder import T5Encoder

RESULT = Path(__file__).parent / "results" / "language-shapes.md"
SHAPES = {
    "T5-3B": {"d_model": 1024, "d_kv": 128, "num_heads": 32, "d_ff": 16384},
    "T5-Large": {"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 4096},
}
DEPTH = 24
"""Of both."""
RULE = BiCo().rule
SIGNALS = BiCo().needs.signals
"""What the pipeline collects; BiCo uses the first and the last."""
BATCH = 8
GB = 10**9


def random_t5(name: str, blocks: int, seed: int) -> T5Encoder:
    torch.manual_seed(seed)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(128)}, unk_token="w2"))
    config = T5Config(vocab_size=128, num_layers=blocks, num_decoder_layers=1, decoder_start_token_id=0, **SHAPES[name])
    return T5Encoder(T5ForConditionalGeneration(config), PreTrainedTokenizerFast(tokenizer_object=words), name)


def groups(sites: Iterable[Site]) -> Iterator[list[Site]]:
    for _, members in groupby(sites, key=lambda site: site.group):
        yield list(members)


def random_batches(samples: int, tokens: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 128, (samples, tokens), generator=generator)
    return [Batch(ids[s], ids[s], torch.arange(samples)[s] % 2) for s in split_at(samples, BATCH, [samples])]


def carried(source: T5Encoder, target: T5Encoder, sites: list[Site], maps: dict[SignalKey, AlignmentMap]) -> float:
    """Carries each site's own weight, as large as a task vector, and returns the norm of what arrived."""
    matched, state, total = match_sites(source.sites, target.sites), source.state(), 0.0
    for site in sites:
        q_out, q_in = maps[site.name, Signal.OUTPUT_GRAD], maps[site.reads, Signal.INPUT]
        total += float(q_out.forward(q_in.forward(matched[site.name].weight.read(state)).T).square().sum())
    return total**0.5


def all_blocks(source: T5Encoder, target: T5Encoder, covariances: int, budget: float, blocks: int) -> list[str]:
    """The arithmetic for both encoders whole."""
    weights = sum(t.numel() * 4 for m in (source, target) for t in m.state().values()) * DEPTH // blocks
    batch = (
        BATCH * (signal_bytes(source, SIGNALS) + signal_bytes(target, (Signal.INPUT, Signal.OUTPUT))) * DEPTH // blocks
    )
    room = int(budget * GB) - weights - batch
    at_once = max(room // covariances, 0)
    lines = [
        f"All {DEPTH} blocks of both encoders: weights {weights / GB:.1f} GB; one batch of {BATCH} texts of {source.tokens} "
        f"tokens {batch / GB:.1f} GB; covariances {DEPTH} x {covariances / GB:.2f} = {DEPTH * covariances / GB:.1f} GB at once.",
    ]
    if at_once:
        passes = -(-DEPTH // at_once)
        return [*lines, f"Within {budget:g} GB there is room for {at_once} blocks at a time: {passes} passes."]
    return [*lines, f"{budget:g} GB do not hold one block: {(weights + batch + covariances) / GB:.1f} GB would."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--budget", type=float, default=32.0, help="GB")
    Clock.add_option(parser)
    given = parser.parse_args()
    clock = Clock(given.clock)
    source, target = (random_t5(name, given.blocks, seed) for seed, name in enumerate(SHAPES, 1))
    heads = tuple(
        torch.randn(2, m.model.config.d_model + 1, generator=torch.Generator().manual_seed(0)) for m in (source, target)
    )
    batches = random_batches(given.samples, given.tokens)
    rows = [f"{machine()}. {clock}; {given.samples} texts of {given.tokens} tokens, {given.blocks} blocks.", ""]
    rows += [head(["block", "covariances, GB", "collect, s", "maps, s", "apply, s", "peak memory, GB"])]
    for members in groups(target.sites):
        peak, size = PeakMemory(), covariance_bytes(source.sites, target.sites, members, SIGNALS)

        def collect(members: list[Site] = members) -> dict:
            ((_, sums),) = cross_covariances(source, target, batches, heads, SIGNALS, [given.samples], members)
            return sums

        def solve(sums: dict) -> dict[SignalKey, AlignmentMap]:
            return {key: procrustes(sums.pop(key), RULE) for key in list(sums)}

        collecting, sums = clock.timed(collect)
        solving, maps = clock.timed(lambda sums=sums: solve(sums))
        applying, _ = clock.timed(lambda maps=maps, members=members: carried(source, target, members, maps))
        numbers = (size / GB, collecting, solving, applying, peak.read() / GB)
        rows.append(line([members[0].group, *(f"{n:.2f}" for n in numbers)]))
        print(rows[-1], flush=True)
        del sums, maps
        gc.collect()
    rows += ["", *all_blocks(source, target, size, given.budget, given.blocks)]
    text = "\n".join(["# T5-3B to T5-Large, block by block", "", *rows])
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

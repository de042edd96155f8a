"""`bico rehome` between models of published shapes, block by block: seconds, memory and disk, beside the plan.

    python -m benchmarks.rehome_shapes [tiny|1b|7b] [--layers N] [--samples 16] [--tokens 128] [--threads 2] [--keep]

Folders of random weights in bfloat16 with a tokenizer each, a LoRA of all linear maps, and texts from this project's documents are
made in a scratch folder under out/, the command is run on them in a process of its own, and all of its processes are watched.
What comes out means nothing here; that the whole command runs, in what time and memory, does. `--layers` cuts the source to so
many blocks, and the target in proportion. Whole shapes are written to benchmarks/results/rehome-shapes-PAIR.md.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.measure import machine, scratch, table
from bico.models.decoder.blockwise import without_memory
from flows.planning.disk import size_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
GB = 10**9
RANK, ANSWER = 16, 32
"""Of the LoRA; tokens of a completion."""
LLAMA_1B = {
    "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True, "rope_theta": 500000.0,
}  # fmt: skip
QWEN_1B = {
    "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1000000.0,
}  # fmt: skip
LLAMA_7B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_8B = LLAMA_7B | {
    "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
}  # fmt: skip

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8000,
}


@dataclass(frozen=True)
class Pair:
    names: tuple[str, str]
    shapes: tuple[dict[str, Any], dict[str, Any]]
    seconds: float
    """What is asked of it."""
    memory: float
    """GB."""


PAIRS = {
    "tiny": Pair(("tiny-llama", "tiny-qwen2"), (LLAMA_1B | TINY | {"head_dim": 16}, QWEN_1B | TINY), 60, 2),
    "1b": Pair(("Llama-3.2-1B", "Qwen2.5-1.5B"), (LLAMA_1B, QWEN_1B), 600, 10),
    "7b": Pair(("Llama-2-7B", "Llama-3.1-8B"), (LLAMA_7B, LLAMA_8B), float("inf"), 24),
}


# What the command is given ---------------------------------------------------------------------------------------------


def documents() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]


def write_tokenizer(folder: Path, size: int) -> PreTrainedTokenizerFast:
    """Byte pairs of this project's documents; of the model's tokens it uses the first ones."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(documents(), trainer)
    about = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 4096}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **about)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(folder: Path, shape: dict[str, Any], seed: int) -> Any:
    """Random weights in bfloat16, in a file per block and one for the rest; no more than one of them is in memory."""
    about = {name: value for name, value in shape.items() if name != "model_type"}
    config = AutoConfig.for_model(shape["model_type"], max_position_embeddings=4096, pad_token_id=0, **about)
    config.architectures, config.dtype = [f"{shape['model_type'].capitalize()}ForCausalLM"], torch.bfloat16
    with without_memory():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.tie_weights()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        parts.setdefault(part, {})[name] = parameter.shape
    index: dict[str, str] = {}
    for number, (_, shapes) in enumerate(parts.items(), start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {
            name: torch.ones(size, dtype=torch.bfloat16)
            if "norm" in name
            else torch.randn(size, generator=generator).mul_(0.02).bfloat16()
            for name, size in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return model


def write_lora(folder: Path, model: Any, base: str) -> None:
    """A LoRA of all linear maps with random factors, in PEFT's layout."""
    generator, tensors, roles = torch.Generator().manual_seed(5), {}, set()
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or path == "lm_head":
            continue
        roles.add(path.rpartition(".")[2])
        out, into = module.weight.shape
        down, up = torch.randn(RANK, into, generator=generator), torch.randn(out, RANK, generator=generator)
        tensors[f"base_model.model.{path}.lora_A.weight"] = (down / into**0.5).bfloat16()
        # Twice their product, by the scale, has a tenth of the norm of weights of 0.02 each.
        tensors[f"base_model.model.{path}.lora_B.weight"] = (0.001 * (into / RANK) ** 0.5 * up).bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(roles), "base_model_name_or_path": base, "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_texts(file: Path, tokenizer: PreTrainedTokenizerFast, count: int, tokens: int) -> None:
    """Prompts and completions of so many tokens of the source's tokenizer."""
    ids = tokenizer("\n".join(documents()), verbose=False)["input_ids"]
    inside = tokens - 1  # behind them stands the token for the end
    if len(ids) < count * inside:
        raise SystemExit(f"The documents have {len(ids)} tokens: ask for fewer samples, or shorter ones.")
    with file.open("w", encoding="utf-8") as lines:
        for start in range(0, count * inside, inside):
            part = ids[start : start + inside]
            prompt, completion = tokenizer.decode(part[:-ANSWER]), tokenizer.decode(part[-ANSWER:])
            print(json.dumps({"prompt": prompt, "completion": completion}), file=lines)


# What is watched ------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A command's processes, from its start to its end."""

    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of user and system time of all processes, as far as they were seen."""
    memory: int = 0
    """Resident bytes of all processes together, at most."""
    largest: int = 0
    """Of the largest one."""
    disk: int = 0
    """Bytes in the scratch folder beyond what it held before, at most."""
    out: str = ""
    err: str = ""
    _used: dict[int, float] = field(default_factory=dict)

    def look(self, process: psutil.Process) -> None:
        sizes = []
        for one in _tree(process):
            try:
                sizes.append(one.memory_info().rss)
                times = one.cpu_times()
                self._used[one.pid] = times.user + times.system
            except psutil.Error:
                continue
        self.memory, self.largest = max(self.memory, sum(sizes)), max(self.largest, *sizes, 0)
        self.cpu = sum(self._used.values())


def _tree(process: psutil.Process) -> Iterator[psutil.Process]:
    yield process
    try:
        yield from process.children(recursive=True)
    except psutil.Error:
        return


def watch(command: list[str], environment: dict[str, str], folder: Path) -> Watched:
    found, before, done = Watched(), size_of(folder), threading.Event()
    started = time.perf_counter()
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = psutil.Process(running.pid)

    def keep_looking() -> None:
        turn = 0
        while not done.wait(0.2):
            found.look(process)
            turn += 1
            if turn % 10 == 0:
                found.disk = max(found.disk, _size(folder) - before)

    looking = threading.Thread(target=keep_looking)
    looking.start()
    found.out, found.err = running.communicate()
    done.set()
    looking.join()
    found.seconds, found.disk = time.perf_counter() - started, max(found.disk, _size(folder) - before)
    if running.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {running.returncode}:\n{found.out[-1000:]}{found.err[-3000:]}"
        )
    return found


def _size(folder: Path) -> int:
    try:
        return size_of(folder)
    except OSError:  # files go while they are looked at
        return 0


def cut(shape: dict[str, Any], layers: int) -> dict[str, Any]:
    return shape | {"num_hidden_layers": layers}


def phases_of(out: Path) -> dict[str, float]:
    """Seconds of the run's own phases."""
    found = json.loads((out / "run.json").read_text(encoding="utf-8")).get("phases", [])
    return {str(name): float(seconds) for name, seconds in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="?", choices=PAIRS, default="1b")
    parser.add_argument("--layers", type=int, help="blocks of the source; whole without it")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", help="as `bico rehome --methods`; its own usual ones without it")
    parser.add_argument("--blockwise", default="always")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder")
    given = parser.parse_args()
    pair, kept = PAIRS[given.pair], scratch()
    shapes = list(pair.shapes)
    if given.layers:
        ratio = given.layers / shapes[0]["num_hidden_layers"]
        shapes = [cut(shapes[0], given.layers), cut(shapes[1], round(ratio * shapes[1]["num_hidden_layers"]))]
    with kept as name:
        folder = Path(name).absolute()
        measured = run(pair, shapes, folder, given)
        if given.keep:
            folder.rename(folder.with_name(f"rehome-shapes-{given.pair}"))
            folder.mkdir()  # for the scratch folder's own end
    print(measured)
    if not given.layers and given.pair != "tiny":
        (RESULTS / f"rehome-shapes-{given.pair}.md").write_text(measured + "\n", encoding="utf-8")


def run(pair: Pair, shapes: list[dict[str, Any]], folder: Path, given: argparse.Namespace) -> str:
    source, target = (folder / name for name in pair.names)
    model = write_model(source, shapes[0], seed=1)
    write_model(target, shapes[1], seed=2)
    tokenizer = write_tokenizer(source, 6000)
    write_tokenizer(target, 8000)
    write_lora(folder / "lora", model, pair.names[0])
    count = -(-(given.samples + 4) * 5 // 4)  # a fifth is kept for measuring, and some judge what is written
    write_texts(folder / "texts.jsonl", tokenizer, count, given.tokens)
    scratch_files = folder / "tmp"
    scratch_files.mkdir()
    environment = os.environ | {
        "BICO_HOME": str(folder / "home"),
        "TMPDIR": str(scratch_files),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(given.threads)),
    }
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "rehome",
        str(folder / "lora"),
        "--from",
        str(source),
        "--to",
        str(target),
    ]
    command += ["--data", str(folder / "texts.jsonl"), "--samples", str(given.samples), "--blockwise", given.blockwise]
    command += ["--out", str(folder / "results"), *(["--methods", given.methods] if given.methods else [])]
    planned = json.loads(watch([*command, "--dry-run", "--json"], environment, folder).out)
    done = watch([*command, "--json"], environment, folder)
    result = json.loads(done.out)
    disk = planned["disk"]
    rows = [
        ["seconds", f"{planned['seconds']:.0f}", f"{done.seconds:.0f}", f"{pair.seconds:.0f}"],
        ["memory, GB", f"{planned['memory'] / GB:.1f}", f"{done.memory / GB:.1f}", f"{pair.memory:.0f}"],
        ["disk, GB", f"{(disk['store'] + disk['results'] + disk['passing']) / GB:.1f}", f"{done.disk / GB:.1f}", ""],
    ]
    layers = ", ".join(f"{name} {shape['num_hidden_layers']}" for name, shape in zip(pair.names, shapes, strict=True))
    sizes = ", ".join(f"{size_of(place) / GB:.2f}" for place in (source, target))
    losses = {label: f"{numbers['loss']:.3f}" for label, numbers in result["outputs"]["measures"].items()}
    stages = {stage: one["seconds"] for stage, one in planned["stages"]["by_stage"].items()}
    return "\n".join(
        [
            f"# bico rehome, {' to '.join(pair.names)} shapes, block by block",
            "",
            f"{machine()}; {given.threads} threads of the command.",
            f"Blocks: {layers}; files {sizes} GB; {given.samples} samples of {given.tokens} tokens; LoRA of rank {RANK} on all linear "
            f"maps; methods {', '.join(planned['methods'])}.",
            "",
            table(["", "planned", "measured", "asked for, of the whole"], rows),
            "",
            f"CPU seconds of all processes: {done.cpu:.0f}. Largest process: {done.largest / GB:.1f} GB.",
            "",
            table(["phase", "seconds"], [[name, f"{s:.1f}"] for name, s in phases_of(folder / "results").items()]),
            "",
            f"Planned by stage (s): {stages}.",
            f"Losses (random weights, so they say nothing): {losses}.",
        ]
    )


if __name__ == "__main__":
    main()

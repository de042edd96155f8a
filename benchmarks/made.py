"""What somebody brings, made on the spot: an ImageFolder, a table of texts, small decoders with an adapter.

python -m benchmarks.made pictures FOLDER    # or texts, or decoders
"""

import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.tasks_apart import EIGHT, Part

SYLLABLES = ("ba", "do", "ke", "li", "mu", "na", "po", "ra", "su", "ti", "vo", "ze")
KINDS = 6
"""Classes of texts."""


LAMPS = Part("lamps")


def pictures(folder: Path, part: Part = LAMPS, train: int = 600, test: int = 300) -> Path:
    """Writes pictures of an embedded task as an ImageFolder: SPLIT/CLASS/NUMBER.png.

    Arguments:
        part: The classes that are taken.
        train: How many pictures of the training split at most.
    """
    from bico.data.tasks import get_task

    task = get_task(part.task)
    for name, most in (("train", train), ("test", test)):
        split, count = task.open(name), Counter[str]()
        for row, label in enumerate(split.labels.tolist()):
            shown = task.class_names[label]
            if shown in part.classes(task.class_names) and count.total() < most:
                place = folder / name / shown
                place.mkdir(parents=True, exist_ok=True)
                split.example(row).save(place / f"{count[shown]:04}.png")
                count[shown] += 1
    return folder


def texts(folder: Path, train: int = 400, test: int = 200) -> Path:
    """Writes train.csv and test.csv: made-up words, of which half are the class's own."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices(SYLLABLES, k=drawn.choice((2, 3)))) for _ in range(400)]
    own = [drawn.sample(words, 20) for _ in range(KINDS)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for row in range(count):
                kind = row % KINDS
                chosen = drawn.choices(own[kind], k=5) + drawn.choices(words, k=drawn.randint(5, 12))
                drawn.shuffle(chosen)
                writer.writerow([" ".join(chosen), f"kind {kind}"])
    return folder


def decoders(folder: Path, steps: int = 30) -> Path:
    """Writes `old` and `new`, two small decoders of Llama's kind with random weights, `texts.jsonl`, and `lora`, an adapter of
    the old one that PEFT has trained on it.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    drawn = random.Random(1)
    words = ["".join(drawn.choices(SYLLABLES, k=2)) for _ in range(60)]
    rows = [(" ".join(drawn.choices(words, k=8)) + ":", f" {words[n % 2]}") for n in range(300)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in rows))
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        [p + c for p, c in rows], 512, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 128}
    known = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for seed, (name, width, layers) in enumerate((("old", 256, 4), ("new", 320, 6))):
        torch.manual_seed(seed)
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
        model = LlamaForCausalLM(LlamaConfig(**shape, **known, **sizes))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    base = LlamaForCausalLM.from_pretrained(folder / "old")
    adapted = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        chosen = [p + c + "</s>" for p, c in rows[16 * step % 256 :][:16]]
        batch = tokenizer(chosen, return_tensors="pt", padding=True)
        optimiser.zero_grad()
        adapted(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["input_ids"]).loss.backward()
        optimiser.step()
    adapted.save_pretrained(folder / "lora")
    return folder


def eight_tasks(folder: Path) -> Path:
    """Writes eight tasks (`tasks_apart.EIGHT`) below `data`, and an expert of mini-a for each; what is there is not made again."""
    for name, part in EIGHT.items():
        if not (folder / "data" / name).exists():
            pictures(folder / "data" / f".{name}", part, train=500, test=200).rename(folder / "data" / name)
    for name in EIGHT:
        _expert(folder / f"{name}.safetensors", name, 0, [folder / "data" / one for one in EIGHT])
    return folder


def eight_seeds(folder: Path) -> Path:
    """Writes eight experts of mini-a for lamps, fine-tuned with other seeds; what is there is not made again."""
    for seed in range(8):
        _expert(folder / f"lamps-seed-{seed}.safetensors", "lamps", seed, [])
    return folder


def _expert(file: Path, of: str, seed: int, folders: Sequence[Path]) -> None:
    if file.exists():
        return
    from safetensors.torch import save_file

    from bico.data.tasks import Prepared, get_task
    from bico.finetune import FinetuneConfig, finetune
    from bico.models.loading import load, resolve

    model, task = load(resolve("zoo:mini-a")), get_task(of, folders)
    data = Prepared(task.open("train"), model.prepare)
    config = FinetuneConfig(steps=60, batch_size=48, lr=5e-4, warmup=6, seed=seed)
    tuned = finetune(model, data.batch, len(data), model.head(task.class_names, task.prompts), config)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tuned.items()}, unfinished := file.with_suffix(".new"))
    unfinished.rename(file)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "pictures": pictures,
    "texts": texts,
    "decoders": decoders,
    "eight-tasks": eight_tasks,
    "eight-seeds": eight_seeds,
}

if __name__ == "__main__":
    print(MAKERS[sys.argv[1]](Path(sys.argv[2])))

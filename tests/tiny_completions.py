"""Tiny folders of texts to be completed, beside two tiny decoders."""

import json
from pathlib import Path
from typing import Any

from tests.tiny_decoder import examples, write_decoder

ANSWERS = (" bake", " limo")


def write_completions(folder: Path, few: bool, train: int = 40, test: int = 20) -> Path:
    """Words that are completed by words, or by one of two."""
    folder.mkdir()
    for split, count, seed in (("train", train, 1), ("test", test, 3)):
        drawn = enumerate(examples(count, seed))
        rows = [{"prompt": e.prompt, "completion": ANSWERS[n % 2] if few else e.completion} for n, e in drawn]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_all(folder: Path) -> Path:
    """Two decoders of different kinds, widths and heads, completions to choose from, and free ones."""
    folder.mkdir(exist_ok=True)
    write_decoder(folder / "a", 1)
    write_decoder(folder / "b", 2, "qwen3", width=24, heads=6, keys=3)
    write_completions(folder / "choose", few=True)
    write_completions(folder / "free", few=False)
    return folder


def settings(folder: Path, task: str = "choose", **changes: Any) -> dict[str, Any]:
    models = {"source": str(folder / "a"), "target": str(folder / "b")}
    asked = {"tasks": [task], "data": [folder / task], "methods": ["bico"], "samples": [12, 24]}
    return models | asked | {"test_limit": None} | changes

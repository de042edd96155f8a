"""Tiny folders of text pairs without classes."""

import json
from pathlib import Path
from typing import Any

from tests.tiny_encoder import texts, write_encoder


def write_pairs(folder: Path, scored: bool, train: int = 40, test: int = 20) -> Path:
    folder.mkdir()
    for split, count, seed in (("train", train, 1), ("test", test, 3)):
        drawn = enumerate(zip(texts(count, seed), texts(count, seed + 1), strict=True))
        rows = [{"sentence1": a, "sentence2": b} | ({"score": n / count} if scored else {}) for n, (a, b) in drawn]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_all(folder: Path) -> Path:
    """Two encoders of different kinds and widths, pairs that belong together, and pairs with scores."""
    folder.mkdir(exist_ok=True)
    write_encoder(folder / "a", 1)
    write_encoder(folder / "b", 2, "mpnet", width=16)
    write_pairs(folder / "faq", scored=False)
    write_pairs(folder / "sts", scored=True)
    return folder


def settings(folder: Path, task: str = "faq", **changes: Any) -> dict[str, Any]:
    models = {"source": str(folder / "a"), "target": str(folder / "b")}
    asked = {"tasks": [task], "data": [folder / task], "methods": ["bico"], "samples": [12, 24], "loss": "pairs"}
    return models | asked | {"test_limit": None} | changes

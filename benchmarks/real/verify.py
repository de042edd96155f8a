"""Compares fetched models, read by the product, with their own references on fixed sentences.

python -m benchmarks.real.verify out/real-models [FOLDER ...]    (in the environment that `models.py` makes)

The references: sentence-transformers for the folders, and for what the product writes of them; ONNX Runtime for the model
that came as ONNX. Further folders are models that a transfer wrote, compared with sentence-transformers likewise.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from benchmarks.real.models import MINILM, MPNET, ONNX, SMALL
from bico.models.families import get_family
from bico.models.loading import load, resolve

SENTENCES = (
    "How far is it from Denver to Aspen ?",
    "A soccer game with multiple males playing.",
    "Some men are playing a sport, and nobody (not even the 2nd referee) seems to mind it: they go on until half past nine!",
    "Äpfel & Birnen, naïve café — 12.5% of tokenization",
    "x",
)
CLOSE = 1e-5
"""The largest distance of two normalised features that counts as rounding."""


def features(folder: Path) -> Tensor:
    model = load(resolve(str(folder)))
    with torch.no_grad():
        return F.normalize(model.features(model.prepare(SENTENCES)), dim=1)


def theirs(folder: Path) -> Tensor:
    from sentence_transformers import SentenceTransformer  # of the environment that `models.py` makes

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return F.normalize(torch.as_tensor(model.encode(list(SENTENCES))).float(), dim=1)


def of_onnx(file: Path, tokens_of: Path) -> Tensor:
    import onnxruntime  # of the environment that `models.py` makes

    model, session = (
        load(resolve(str(tokens_of))),
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]),
    )
    rows = []
    for sentence in SENTENCES:
        ids = model.prepare([sentence])[..., 0].numpy()
        asked = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found = {one.name: value for one, value in zip(session.get_outputs(), session.run(None, asked), strict=True)}
        [pooled] = [
            value for value in found.values() if value.ndim == 2 and value.shape[-1] == 384 and len(value) == 1
        ][:1]
        rows.append(torch.from_numpy(pooled[0]))
    return F.normalize(torch.stack(rows), dim=1)


def written(folder: Path) -> Tensor:
    """What sentence-transformers gives for a folder that the product has written."""
    files = resolve(str(folder))
    with tempfile.TemporaryDirectory() as made:
        get_family(files.family).save(load(files), files, Path(made))
        return theirs(Path(made))


def main(out: Path, transferred: list[Path]) -> None:
    worst = 0.0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in (MINILM, SMALL, MPNET):
        ours = features(out / name)
        compared = {"sentence-transformers": theirs(out / name), "written again": written(out / name)}
        if name == SMALL:
            compared["ONNX Runtime"] = of_onnx(out / ONNX, out / name)
        for reference, wanted in compared.items():
            distance, cosine = float((ours - wanted).abs().max()), float((ours * wanted).sum(1).min())
            worst = max(worst, distance)
            print(f"{name}: {reference}: largest distance {distance:.1e}, smallest cosine {cosine:.7f}")
    for folder in transferred:
        distance = float((features(folder) - theirs(folder)).abs().max())
        worst = max(worst, distance)
        print(f"{folder.name}: sentence-transformers: largest distance {distance:.1e}")
    if worst > CLOSE:
        sys.exit(f"error: features differ by {worst:.1e} from their references.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]])

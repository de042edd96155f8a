"""What the manifest says about a text model: measured here, never typed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from bico.data.layouts import parquet_files
from bico.errors import CheckpointError, DataError
from bico.evaluation.predictions import predicted
from bico.evaluation.probe import fit_probe
from bico.models import zoo
from bico.models.loading import load, resolve
from bico.models.t5.encoder import T5Encoder
from zoo_build.span_corruption import Corruption, corrupt, draw_spans
from zoo_build.t5 import T5Pretraining, build
from zoo_build.text_corpus import batches, encode, find_corpus, read_passages, sentinel_ids

HELD_OUT_SEED = 1_000_003
"""Added to a recipe's seed for the spans that are hidden in the held-out text."""


@torch.no_grad()
def held_out_loss(
    model: T5ForConditionalGeneration,
    passages: Sequence[Tensor],
    sentinels: Tensor,
    recipe: T5Pretraining,
    count: int = 16,
) -> float:
    """Returns the mean loss, in nats per target token, on texts of books that no model was trained on.

    Arguments:
        model: The model.
        passages: Ids of the held-out passages.
        sentinels: As `sentinel_ids` returns them.
        recipe: Its recipe: says what is hidden.
        count: How many batches.
    """
    generator = torch.Generator().manual_seed(recipe.seed + HELD_OUT_SEED)
    stream = batches(passages, recipe.length, 64, generator)
    losses = []
    for _ in range(count):
        hidden = draw_spans(64, recipe.length, Corruption(recipe.density, recipe.span), generator)
        inputs, targets = corrupt(next(stream), hidden, sentinels, model.config.eos_token_id)
        losses.append(model(input_ids=inputs, labels=targets, use_cache=False).loss.item())
    return round(sum(losses) / count, 4)


def sentence_features(model: T5Encoder, texts: Sequence[str], size: int = 250) -> tuple[Tensor, Tensor]:
    """Returns the means over each text's tokens of the embeddings and of the encoder's output, each (texts, width)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one length waste little on padding
    bags = torch.zeros(len(texts), model.model.config.d_model)
    states = torch.zeros_like(bags)
    with torch.inference_mode():
        for begin in range(0, len(texts), size):
            rows = order[begin : begin + size]
            inputs = model.prepare([texts[i] for i in rows])
            mask = model.mask(inputs)[..., None]
            bags[rows] = (model.model.shared(inputs) * mask).sum(1) / mask.sum(1)
            states[rows] = model.features(inputs)
    return bags, states


def read_texts(folder: Path, split: str) -> tuple[list[str], Tensor]:
    """Reads the texts and labels of a split of single sentences.

    Raises:
        DataError: If files or columns are missing.
    """
    import pyarrow.parquet as pq

    files = parquet_files(folder, split)
    if not files:
        raise DataError(f"--data {folder}: no {split}.parquet there.")
    tables = [pq.read_table(path) for path in files]
    if not {"text", "label"} <= set(tables[0].column_names):
        found = ", ".join(tables[0].column_names)
        raise DataError(f"{files[0]}: a text task needs the columns `text` and `label`, this file has {found}.")
    texts = [text for table in tables for text in table["text"].to_pylist()]
    return texts, torch.tensor([label for table in tables for label in table["label"].to_pylist()])


def probes(model: T5Encoder, folder: Path) -> tuple[float, float]:
    """Returns the probe accuracy, in percent, of a model's mean embeddings and of its mean encoder states on a task."""
    (texts, labels), (test, test_labels) = read_texts(folder, "train"), read_texts(folder, "test")
    percent = []
    for known, new in zip(sentence_features(model, texts), sentence_features(model, test), strict=True):
        probe = fit_probe(known, labels, int(labels.max()) + 1)
        right = predicted(probe.scores(new), model.name) == test_labels
        percent.append(round(100 * float(right.float().mean()), 2))
    return percent[0], percent[1]


def entry(recipe: T5Pretraining, model: Path, record: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Measures a model and returns its entry in the manifest; accuracies are in percent.

    Arguments:
        recipe: What the model was built from.
        model: Its directory.
        record: How the building went, as `pretrain_text.run` returns it.
        folders: The corpus, whose test split gives the held-out loss, and folders of text tasks to probe on.
    """
    trained = load(resolve(str(model)))
    if not isinstance(trained, T5Encoder):
        raise CheckpointError(f"{model} holds no T5: it cannot be measured by this recipe.")
    tokenizer = trained.tokenizer
    untrained = T5Encoder(build(recipe, len(tokenizer)), tokenizer)
    corpus = find_corpus(recipe.corpus, folders)
    passages, sentinels = encode(tokenizer, read_passages(corpus, "test")), sentinel_ids(tokenizer)
    measured = {}
    for folder in folders:
        if folder != corpus:
            (bag, states), (raw_bag, raw_states) = (probes(m, folder) for m in (trained, untrained))
            measured[folder.name] = {
                "encoder": states, "embeddings": bag, "untrained_encoder": raw_states, "untrained_embeddings": raw_bag,
            }  # fmt: skip
    return {
        "recipe": asdict(recipe),
        "sha256": zoo.digest(model),
        "bytes": sum(path.stat().st_size for path in model.iterdir()),
        **record,
        "held_out_loss": held_out_loss(trained.model, passages, sentinels, recipe),
        "untrained_loss": held_out_loss(untrained.model, passages, sentinels, recipe),
        "probe": measured,
    }

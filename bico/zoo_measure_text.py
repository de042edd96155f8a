"""What the manifest says about a text model: measured here, never typed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from bico import zoo
from bico.data.folders import parquet_files
from bico.data.span_corruption import Corruption, corrupt, draw_spans
from bico.data.text_corpus import batches, encode, find_corpus, read_passages, sentinel_ids
from bico.errors import DataError
from bico.pretrain_text import TextRecipe, build

HELD_OUT_SEED = 1_000_003
"""Added to a recipe's seed for the spans that are hidden in the held-out text."""
STRENGTHS = (0.003, 0.03, 0.3)
"""Inverse regularisation of the probe, of which cross-validation chooses."""


@torch.no_grad()
def held_out_loss(
    model: T5ForConditionalGeneration,
    passages: Sequence[Tensor],
    sentinels: Tensor,
    recipe: TextRecipe,
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
    return round(float(np.mean(losses)), 4)


@torch.no_grad()
def pooled(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], size: int = 250
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means over each text's tokens of the embeddings and of the encoder's output, each (texts, width)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one length waste little on padding
    bags = np.zeros((len(texts), model.config.d_model), dtype=np.float32)
    states = np.zeros_like(bags)
    for begin in range(0, len(texts), size):
        rows = order[begin : begin + size]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = batch.attention_mask[..., None].float()
        out = model.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        for into, values in ((bags, model.shared(batch.input_ids)), (states, out)):
            into[rows] = ((values * mask).sum(1) / mask.sum(1)).numpy()
    return bags, states


def probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Returns the test accuracy, in percent, of logistic regression; cross-validation on `train` sets its strength."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, cv=3)
    return round(100 * float(search.fit(train, train_labels).score(test, test_labels)), 2)


def read_texts(folder: Path, split: str) -> tuple[list[str], np.ndarray]:
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
    return texts, np.concatenate([table["label"].to_numpy() for table in tables])


def probes(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[float, float]:
    """Returns the probe accuracy, in percent, of a model's mean embeddings and of its mean encoder states on a task."""
    (train, labels), (test, test_labels) = read_texts(folder, "train"), read_texts(folder, "test")
    before, after = pooled(model, tokenizer, train), pooled(model, tokenizer, test)
    bag, states = (probe(x, labels, y, test_labels) for x, y in zip(before, after, strict=True))
    return bag, states


def load_plain(model: Path) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """Loads a model and its tokenizer with transformers alone, in float32."""
    loaded = T5ForConditionalGeneration.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    return loaded.eval(), PreTrainedTokenizerFast.from_pretrained(model, local_files_only=True)


def entry(recipe: TextRecipe, model: Path, record: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Measures a model and returns its entry in the manifest; accuracies are in percent.

    Arguments:
        recipe: What the model was built from.
        model: Its directory.
        record: How the building went, as `pretrain_text.run` returns it.
        folders: The corpus, whose test split gives the held-out loss, and folders of text tasks to probe on.
    """
    trained, tokenizer = load_plain(model)
    untrained = build(recipe, len(tokenizer)).eval()
    corpus = find_corpus(recipe.corpus, folders)
    passages, sentinels = encode(tokenizer, read_passages(corpus, "test")), sentinel_ids(tokenizer)
    measured = {}
    for folder in folders:
        if folder != corpus:
            (bag, states), (raw_bag, raw_states) = (probes(m, tokenizer, folder) for m in (trained, untrained))
            measured[folder.name] = {
                "encoder": states, "embeddings": bag, "untrained_encoder": raw_states, "untrained_embeddings": raw_bag,
            }  # fmt: skip
    return {
        "recipe": asdict(recipe) | {"books": list(recipe.books)},
        "sha256": zoo.digest(model),
        "bytes": sum(path.stat().st_size for path in model.iterdir()),
        **record,
        "held_out_loss": held_out_loss(trained, passages, sentinels, recipe),
        "untrained_loss": held_out_loss(untrained, passages, sentinels, recipe),
        "probe": measured,
    }

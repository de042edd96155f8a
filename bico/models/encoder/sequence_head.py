"""A linear classifier of pooled features in the form of transformers' own heads, so that `...ForSequenceClassification` loads it.

These heads have a dense map and an activation before their last one. A linear classifier goes through them unharmed: where
tanh is straight, as two halves that rectifiers pass on in turn, or beside two numbers so large that a norm divides by
nothing else. What comes out is compared with the classifier before it is written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from bico.evaluation.linear_head import LinearHead
from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.family import WEIGHTS
from bico.models.files import ModelFiles

_TWO_STEPS = ("classifier.dense", "classifier.out_proj")
_PLACES: dict[str, tuple[str, str, str]] = {
    "bert": ("bert.pooler.dense", "classifier", "tanh"),
    "roberta": (*_TWO_STEPS, "tanh"),
    "xlm-roberta": (*_TWO_STEPS, "tanh"),
    "camembert": (*_TWO_STEPS, "tanh"),
    "mpnet": (*_TWO_STEPS, "tanh"),
    "electra": (*_TWO_STEPS, "gelu"),
    "distilbert": ("pre_classifier", "classifier", "relu"),
    "deberta-v2": ("pooler.dense", "classifier", "linear"),
    "modernbert": ("head.dense", "classifier", "norm"),
}
"""By kind of encoder: the dense map, the last map, and what is between them. Where the configuration names an activation, it
is set to the linear one."""
_MORE: dict[str, dict[str, Any]] = {
    "deberta-v2": {"pooler_hidden_act": "linear"},
    "modernbert": {"classifier_activation": "linear", "classifier_bias": True},
}
_STRAIGHT = 2.0**-14
"""Scores are brought down so far that tanh bends those of 30 by less than rounding does; a power of two rounds nothing."""
_TOLERANCE = 1e-3
"""Of the largest score of a few texts."""
_TEXTS = ("", "a", "one two three four five", "What is it, and where? Nobody knows.")


def save_sequence_classifier(
    model: TextEncoder, files: ModelFiles, folder: Path, head: LinearHead, classes: Sequence[str]
) -> str:
    """Writes weights and configuration of a model with its classifier, in place of those of the bare encoder.

    Arguments:
        model: At the weights that are written.
        folder: Has been written by the family's `save`.

    Returns:
        The class of transformers that loads it; empty where no head of transformers says the same: another pooling, Dense
        modules behind it, text that is prepared beforehand, or too many classes.
    """
    kind, recipe = model.model.config.model_type, model.recipe
    pooled = recipe.pooling == ("cls",) or (kind == "modernbert" and recipe.pooling == ("mean",))
    if not pooled or model.dense or recipe.prompt or recipe.lower or recipe.encoder != files.folder:
        return ""
    named = {"id2label": dict(enumerate(classes)), "label2id": {name: n for n, name in enumerate(classes)}}
    more = {"classifier_pooling": recipe.pooling[0]} if kind == "modernbert" else {}
    config = AutoConfig.from_pretrained(
        recipe.encoder, local_files_only=True, dtype=torch.float32, **named, **_MORE.get(kind, {}), **more
    )
    whole: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    getattr(whole, whole.base_model_prefix).load_state_dict(model.model.state_dict(), strict=False)
    if not _fill(whole, *_PLACES[kind], head) or not _agrees(whole, model, head):
        return ""
    config.architectures = [type(whole).__name__]
    config.save_pretrained(folder)
    tensors = {name: tensor.contiguous().clone() for name, tensor in whole.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return type(whole).__name__


@torch.no_grad()
def _fill(whole: Any, dense_at: str, last_at: str, between: str, head: LinearHead) -> bool:
    """Puts a classifier into a head; False if the head is too narrow."""
    dense: nn.Linear = whole.get_submodule(dense_at)
    last: nn.Linear = whole.get_submodule(last_at)
    weight, bias = head.weight.T.float().cpu(), head.bias.float().cpu()
    count, halves = len(weight), between in ("gelu", "relu", "norm")
    if count * (1 + halves) + 2 * (between == "norm") > dense.out_features:
        return False
    for tensor in (dense.weight, dense.bias, last.weight, last.bias):
        tensor.zero_()
    scale = _STRAIGHT if between == "tanh" else 1.0
    dense.weight[:count], dense.bias[:count] = scale * weight, scale * bias
    last.weight[:, :count] = torch.eye(count) / scale
    if halves:  # f(z) - f(-z) = z, of gelu as of relu; the sum of all is zero, which a norm takes away
        dense.weight[count : 2 * count], dense.bias[count : 2 * count] = -weight, -bias
        last.weight[:, count : 2 * count] = -torch.eye(count)
    if between == "norm":
        width, bound = dense.out_features, weight.norm(dim=1).max() * weight.shape[1] ** 0.5 + bias.abs().max()
        large = 256 * bound
        dense.bias[2 * count : 2 * count + 2] = torch.stack([large, -large])
        last.weight *= 0.5 * large * (2 / width) ** 0.5 / whole.head.norm.weight[0]
    return True


@torch.no_grad()
def _agrees(whole: Any, model: TextEncoder, head: LinearHead) -> bool:
    inputs = model.prepare(_TEXTS)
    scores = head.scores(model.features(inputs)).float().cpu()
    given = whole(**{name: tensor.cpu() for name, tensor in model.model_inputs(inputs).items()}).logits
    return bool((given - scores).abs().max() <= _TOLERANCE * scores.abs().max())

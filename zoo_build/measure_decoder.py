"""What the manifest says about a decoder: measured here, never typed."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError
from bico.evaluation.completions import BITS, LOSS, PERPLEXITY, measure_completions
from bico.models import zoo
from bico.models.decoder.decoder import Decoder
from bico.models.loading import load, resolve
from zoo_build.decoder import DecoderPretraining, build
from zoo_build.text_corpus import find_corpus, read_passages

PASSAGES, BATCH = 200, 8
"""How many texts of held-out books are measured on, and how many are read at once."""


def held_out(model: Decoder, texts: Sequence[str]) -> dict[str, float]:
    """Returns the loss in nats per token, the perplexity, and the bits per character of plain texts, cut to what is read."""
    batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    found = measure_completions(model, batches).all
    return {name: round(found[name], 4) for name in (LOSS, PERPLEXITY, BITS)}


def entry(recipe: DecoderPretraining, model: Path, record: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Measures a model and returns its entry in the manifest.

    Arguments:
        recipe: What the model was built from.
        model: Its directory.
        record: How the building went, as `zoo_build.decoder.run` returns it.
        folders: The corpus, whose test split is of books that no model was trained on.

    Raises:
        CheckpointError: If the directory holds another kind of model.
    """
    trained = load(resolve(str(model)))
    if not isinstance(trained, Decoder):
        raise CheckpointError(f"{model} holds no decoder: it cannot be measured by this recipe.")
    untrained = Decoder(build(recipe, len(trained.tokenizer)), trained.tokenizer)
    passages = read_passages(find_corpus(recipe.corpus, folders), "test")[:PASSAGES]
    texts = [passage.text for passage in passages]
    return {
        "recipe": asdict(recipe),
        "sha256": zoo.digest(model),
        "bytes": sum(path.stat().st_size for path in model.iterdir()),
        **record,
        "held_out": held_out(trained, texts),
        "untrained": held_out(untrained, texts),
        "of_chance": round(math.log(len(trained.tokenizer)), 4),
    }

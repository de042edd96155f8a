"""A later release of a mini decoder: the same model, read on in other books. What was fine-tuned for it is nearly of this one."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bico.models import zoo
from zoo_build.decoder import DecoderPretraining, save, train
from zoo_build.text_corpus import choose_books, encode, find_corpus, read_passages

READ_ON = {
    "books": (0.8, 1.0), "steps": 150, "warm_up": 15, "learning_rate": 0.002, "embedding_rate": 0.001, "seed": 311,
}  # fmt: skip
"""What differs from its recipe: books that it has not read, at half the rate or less, for a fifth of the steps."""


def read_on(name: str, data: Path, folder: Path) -> Path:
    """Writes the later release, unless it is there, and returns its folder.

    Arguments:
        name: A decoder of the zoo.
        data: A folder that holds the corpus of its recipe.
    """
    if (folder / ".done").is_file():
        return folder
    place = zoo.resolve(name)
    recipe = replace(DecoderPretraining.load(zoo.recipe(name)), **READ_ON)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place)
    passages = choose_books(read_passages(find_corpus(recipe.corpus, [data / recipe.corpus]), "train"), *recipe.books)
    train(model, encode(tokenizer, passages), recipe, progress=False)
    save(model, tokenizer, recipe, folder)
    (folder / ".done").touch()
    return folder

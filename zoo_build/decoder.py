"""Pre-training of a small decoder of Llama's kind on running text, by the next token."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bico.errors import ConfigError, nearest
from zoo_build.cooccurrence import word_vectors
from zoo_build.decoder_tokenizers import TOKENIZERS
from zoo_build.language_files import save
from zoo_build.text_corpus import batches, choose_books, encode, find_corpus, read_passages
from zoo_build.training import Watch, descend, every, load_recipe, rise_and_fall

Cut = Literal["bytes", "words"]


@dataclass(frozen=True, kw_only=True)
class DecoderPretraining:
    """Everything that determines a decoder of the zoo."""

    family: str = "decoder"
    corpus: str
    """Name of the folder with the running text."""
    seed: int
    """Of the initial weights and the order of the text."""
    books: tuple[float, float] = (0.0, 1.0)
    """From where to where in a fixed shuffled order of all books (`choose_books`)."""
    tokenizer: Cut = "bytes"
    """Which of `TOKENIZERS`."""
    vocabulary: int = 4096
    length: int = 128
    """Tokens per window."""
    batch_size: int = 16
    steps: int = 800
    warm_up: int = 40
    """Steps until the learning rate is at its peak; it falls linearly to zero from there."""
    learning_rate: float = 0.004
    """Of Muon, which steps the matrices of the blocks (see `zoo_build.clip`)."""
    embedding_rate: float = 0.004
    """Of AdamW, which steps the embedding and the norms."""
    embedding_std: float = 0.05
    """Of the embedding in the beginning: word vectors of the model's own books (`zoo_build.cooccurrence`)."""
    branch_scale: float = 0.2
    """What the initial output matrices of attention and feed-forward parts are multiplied by."""
    width: int = 192
    heads: int = 6
    key_heads: int = 2
    head_width: int = 32
    feed_forward: int = 512
    layers: int = 4

    def __post_init__(self) -> None:
        if self.tokenizer not in get_args(Cut):
            raise ConfigError(f"tokenizer: {nearest(self.tokenizer, get_args(Cut))}")

    @classmethod
    def load(cls, path: Path) -> "DecoderPretraining":
        """Reads a recipe from YAML.

        Raises:
            ConfigError: If the file has a key that no recipe has, or lacks one that every recipe has.
        """
        return load_recipe(cls, path)

    def config(self, vocabulary: int) -> LlamaConfig:
        """Returns the configuration of transformers for this recipe and vocabulary size."""
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_width,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )


def build(recipe: DecoderPretraining, vocabulary: int) -> LlamaForCausalLM:
    """Returns the untrained model of a recipe, its weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(recipe.config(vocabulary))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_(recipe.branch_scale)
    return model


def start_embedding(model: LlamaForCausalLM, passages: Sequence[Tensor], recipe: DecoderPretraining) -> None:
    """Gives a model the embedding that its training starts from, in place."""
    generator = torch.Generator().manual_seed(recipe.seed)
    vectors = word_vectors(passages, model.config.vocab_size, model.config.hidden_size, generator)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(vectors * (recipe.embedding_std / vectors.std()))


def learning_rate(step: int, recipe: DecoderPretraining) -> float:
    """Returns the share of the peak learning rate at a step."""
    return rise_and_fall(step, recipe.warm_up, recipe.steps)


def train(
    model: LlamaForCausalLM,
    passages: Sequence[Tensor],
    recipe: DecoderPretraining,
    progress: bool = True,
    bfloat16: bool = True,
    checkpoint: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains a model in place.

    Arguments:
        model: As `build` returns it.
        passages: Ids of each passage, as `encode` returns them.
        progress: Whether to show a progress bar.
        bfloat16: Whether to multiply matrices in bfloat16, which is faster on CPUs that know it; weights stay float32.
        checkpoint: Called every 100 steps with the number of steps done.

    Returns:
        The loss of each step, in nats per token.
    """
    stream = batches(passages, recipe.length, recipe.batch_size, torch.Generator().manual_seed(recipe.seed))
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in named.items() if p.ndim < 2 or "embed_tokens" in name]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]

    def steps() -> Iterator[Tensor]:
        for _ in range(recipe.steps):
            ids = next(stream)
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            yield loss  # outside of autocast: the step is none of its business

    rate = partial(learning_rate, recipe=recipe)
    return descend(model, optimisers, steps(), recipe.steps, rate, progress, every(100, checkpoint))


def run(
    recipe: DecoderPretraining, folder: Path, data: Sequence[Path], progress: bool = True, threads: int = 1
) -> dict:
    """Builds one model from nothing but its recipe and the corpus, and writes it; every 100 steps, too.

    Arguments:
        data: Data folders, among them the corpus that the recipe names.
        progress: Whether to show progress bars.
        threads: How many threads torch may use (see `zoo_build.training.Watch`).

    Returns:
        How it went: `Watch.record`.

    Raises:
        DataError: If the corpus is not among the folders, or is none.
    """
    watch = Watch(threads)
    passages = read_passages(find_corpus(recipe.corpus, data), "train")
    tokenizer = TOKENIZERS[recipe.tokenizer]([passage.text for passage in passages], recipe.vocabulary)
    model = build(recipe, len(tokenizer))
    ids = encode(tokenizer, choose_books(passages, *recipe.books))
    start_embedding(model, ids, recipe)
    losses = train(model, ids, recipe, progress, checkpoint=lambda _: save(model, tokenizer, recipe, folder))
    save(model, tokenizer, recipe, folder)
    return watch.record(model, losses, block=model.model.layers)

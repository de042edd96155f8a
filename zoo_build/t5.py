"""Pre-training of a small T5 on running text, by span corruption."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from bico.errors import ConfigError, nearest
from zoo_build.cooccurrence import word_vectors
from zoo_build.language_files import save
from zoo_build.span_corruption import Corruption, corrupt, draw_spans
from zoo_build.text_corpus import (
    VOCABULARY,
    batches,
    choose_books,
    encode,
    find_corpus,
    read_passages,
    sentinel_ids,
    train_tokenizer,
)
from zoo_build.training import Watch, descend, every, load_recipe, rise_and_fall

Start = Literal["cooccurrence", "random"]


@dataclass(frozen=True, kw_only=True)
class T5Pretraining:
    """Everything that determines a text model of the zoo."""

    family: str = "t5"
    corpus: str
    """Name of the folder with the running text."""
    seed: int
    """Of the initial weights, the order of the text and the hidden spans."""
    books: tuple[float, float] = (0.0, 1.0)
    """From where to where in a fixed shuffled order of all books (`choose_books`)."""
    density: float = 0.25
    """Share of the tokens that are hidden."""
    span: float = 2.0
    """Mean tokens per hidden span."""
    length: int = 64
    """Tokens per window, before any are hidden."""
    batch_size: int = 128
    steps: int = 1000
    warm_up: int = 50
    """Steps until the learning rate is at its peak; it falls linearly to zero from there."""
    learning_rate: float = 0.004
    """Of Muon, which steps the matrices of the blocks (see `zoo_build.clip`)."""
    embedding_rate: float = 0.01
    """Of AdamW, which steps the embedding."""
    embedding_start: Start = "cooccurrence"
    """`cooccurrence` starts from word vectors of the model's own books (`zoo_build.cooccurrence`): so short a training
    would hardly move the vectors of rarer words from where chance put them. `random` is T5's own start."""
    branch_scale: float = 0.2
    """What the initial output matrices of attention and feed-forward parts are multiplied by, so that the blocks begin
    as small corrections to the embedding, not as noise on top of it."""
    position_std: float = 1.0
    """Of the initial position biases: every head prefers some distances from the start."""
    bias_rate: float = 0.02
    """Of AdamW, which steps norms and position biases."""
    weight_decay: float = 0.0
    width: int = 160
    head_width: int = 32
    heads: int = 5
    feed_forward: int = 512
    gated: bool = False
    """Whether the feed-forward part is gated by GELU, or a plain ReLU."""
    layers: int = 4
    decoder_layers: int = 1

    def __post_init__(self) -> None:
        if self.embedding_start not in get_args(Start):
            raise ConfigError(f"embedding_start: {nearest(self.embedding_start, get_args(Start))}")

    @classmethod
    def load(cls, path: Path) -> "T5Pretraining":
        """Reads a recipe from YAML.

        Raises:
            ConfigError: If the file has a key that no recipe has, or lacks one that every recipe has.
        """
        return load_recipe(cls, path)

    def config(self, vocabulary: int) -> T5Config:
        """Returns the configuration of transformers for this recipe and vocabulary size."""
        return T5Config(
            vocab_size=vocabulary,
            d_model=self.width,
            d_kv=self.head_width,
            d_ff=self.feed_forward,
            num_layers=self.layers,
            num_decoder_layers=self.decoder_layers,
            num_heads=self.heads,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu" if self.gated else "relu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )


def build(recipe: T5Pretraining, vocabulary: int = VOCABULARY) -> T5ForConditionalGeneration:
    """Returns the untrained model of a recipe, its weights (the embedding, too) drawn from the recipe's seed.

    Beside what the recipe scales, one thing differs from T5's own start: the decoder's attention to the encoder begins
    with equal query and key maps, so that a sentinel in the target looks for the same sentinel in the input. Training
    finds that by itself, but only after thousands of steps at the level of word frequencies.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = T5ForConditionalGeneration(recipe.config(vocabulary))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith((".o.weight", ".wo.weight")):
                    weight.mul_(recipe.branch_scale)
                elif "relative_attention_bias" in name:
                    weight.normal_(std=recipe.position_std)
            for block in model.decoder.block:
                cross = block.layer[1].EncDecAttention
                cross.k.weight.mul_(0.55)
                cross.q.weight.copy_(cross.k.weight)
    return model


def start_embedding(model: T5ForConditionalGeneration, passages: Sequence[Tensor], recipe: T5Pretraining) -> None:
    """Gives a model the embedding that its training starts from, in place."""
    if recipe.embedding_start == "cooccurrence":
        generator = torch.Generator().manual_seed(recipe.seed)
        vectors = word_vectors(passages, model.config.vocab_size, model.config.d_model, generator)
        with torch.no_grad():
            model.shared.weight.copy_(vectors)


def learning_rate(step: int, recipe: T5Pretraining) -> float:
    """Returns the share of the peak learning rate at a step."""
    return rise_and_fall(step, recipe.warm_up, recipe.steps)


def _optimisers(model: T5ForConditionalGeneration, recipe: T5Pretraining) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "bias" not in name and name != "shared.weight"]
    others = [p for name, p in named.items() if p.ndim < 2 or "bias" in name]
    groups = [
        {"params": [model.shared.weight], "lr": recipe.embedding_rate},
        {"params": others, "lr": recipe.bias_rate},
    ]
    return [
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(
            matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
    ]


def train(
    model: T5ForConditionalGeneration,
    passages: Sequence[Tensor],
    sentinels: Tensor,
    recipe: T5Pretraining,
    progress: bool = True,
    bfloat16: bool = True,
    checkpoint: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains a model in place.

    Arguments:
        model: As `build` returns it.
        passages: Ids of each passage, as `encode` returns them.
        sentinels: As `sentinel_ids` returns them.
        recipe: Steps, batch size, learning rates and what is hidden.
        progress: Whether to show a progress bar.
        bfloat16: Whether to multiply matrices in bfloat16, which is faster on CPUs that know it; weights stay float32.
        checkpoint: Called every 100 steps with the number of steps done.

    Returns:
        The loss of each step, in nats per target token.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    corruption = Corruption(recipe.density, recipe.span)
    stream = batches(passages, recipe.length, recipe.batch_size, generator)

    def steps() -> Iterator[Tensor]:
        for _ in range(recipe.steps):
            hidden = draw_spans(recipe.batch_size, recipe.length, corruption, generator)
            inputs, targets = corrupt(next(stream), hidden, sentinels, model.config.eos_token_id)
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                loss = model(input_ids=inputs, labels=targets, use_cache=False).loss
            yield loss  # outside of autocast: the step is none of its business

    rate = partial(learning_rate, recipe=recipe)
    return descend(model, _optimisers(model, recipe), steps(), recipe.steps, rate, progress, every(100, checkpoint))


def run(recipe: T5Pretraining, folder: Path, data: Sequence[Path], progress: bool = True, threads: int = 1) -> dict:
    """Builds one model from nothing but its recipe and the corpus, and writes it; every 100 steps, too.

    Arguments:
        recipe: What to build.
        folder: Where to write it.
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
    tokenizer = train_tokenizer([passage.text for passage in passages])
    model = build(recipe, len(tokenizer))
    ids = encode(tokenizer, choose_books(passages, *recipe.books))
    start_embedding(model, ids, recipe)
    losses = train(
        model,
        ids,
        sentinel_ids(tokenizer),
        recipe,
        progress,
        checkpoint=lambda _: save(model, tokenizer, recipe, folder),
    )
    save(model, tokenizer, recipe, folder)
    return watch.record(model, losses, encoder=model.encoder)

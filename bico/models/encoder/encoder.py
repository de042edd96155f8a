"""Text encoders of transformers: sites, pooled features, the loss of a probe on them, or of pairs of texts.

Task vectors live in the blocks. Embeddings, poolers and heads are left out: features do not need the latter two.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bico.data.text import Pair
from bico.errors import CheckpointError, ConfigError, ShapeError
from bico.finetune import ENCODER, FinetuneConfig
from bico.models.encoder.layouts import LAYOUTS, READS, Layout
from bico.models.encoder.opened import opened
from bico.models.encoder.pairs import BANK, bank_loss, make_bank, ranking_loss, score_loss
from bico.models.encoder.recipe import Recipe
from bico.models.encoder.tokens import FIELDS, Tokens
from bico.models.places import PADDING, ending
from bico.models.pooling import pool
from bico.models.probed import probe_loss, probe_scores
from bico.models.protocol import PAIRS, PROBE
from bico.models.sites import Site, Slot
from bico.task_vector import StateDict, added, check_finite


class TextEncoder:
    """An encoder of transformers, frozen, that can give and take task vectors.

    Its head is a linear probe on the features: numbers (classes, features + 1) with the bias in the last column. Features
    are pooled tokens, sent through what Dense modules the folder has; `Normalize` comes behind them and is left to those
    who compare features by their angles.

    Pairs of texts that are encoded each by itself have an axis more: inputs (batch, 2, tokens, fields). They go through the
    encoder as 2 · batch texts, so that is how many rows of tokens a signal of theirs has.
    """

    modality = "text"
    losses = (PROBE, PAIRS)
    probed = True
    grid = None
    permutations = ()
    finetuning: FinetuneConfig = ENCODER
    probe_samples = 2000
    """Enough for the head that an expert is tuned in; a probe of every text of a large task takes longer than the tuning."""
    bank_size = BANK

    def __init__(
        self, model: Any, tokenizer: Any, recipe: Recipe, dense: Sequence[nn.Module] = (), name: str = "model"
    ) -> None:
        """Arguments:
            model: A base model of transformers of a kind in `LAYOUTS`; it is frozen and put in eval mode.
            tokenizer: A fast tokenizer of transformers.
            recipe: How tokens become features.
            dense: The modules behind the pooling.
            name: How error messages call it.

        Raises:
            CheckpointError: If a parameter is not finite, the tokenizer has more tokens than the model, or the model's
                blocks are not those of its kind.
        """
        check_finite(model.named_parameters(), name)
        if len(tokenizer) > model.config.vocab_size:
            raise CheckpointError(
                f"{name}: its tokenizer knows {len(tokenizer)} tokens and its embedding {model.config.vocab_size}: they "
                "are of different models."
            )
        self.model = model.eval().requires_grad_(False)
        self.dense = nn.Sequential(*dense).eval().requires_grad_(False)
        self.tokenizer, self.recipe, self.name = tokenizer, recipe, name
        self.layout = LAYOUTS[model.config.model_type]
        self.prefixes = (f"{self.layout.blocks}.", *(f"{path}." for path in self.layout.behind))
        self.sites = encoder_sites(model, self.layout, name)
        self.tokens = longest(model.config, tokenizer, recipe)
        self._tokens = Tokens(tokenizer, self.tokens, recipe.lower, recipe.prompt, name)
        self.vocabulary = self._tokens.digest
        # Some read which of two texts a token is of; where the tokenizer does not say so, all is the first.
        takes = signature(model.forward).parameters
        self._kinds = "token_type_ids" in takes and "token_type_ids" in tokenizer.model_input_names

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for granted of this model."""
        if self.recipe.said:
            return ()
        taken = "the mean" if self.recipe.pooling == ("mean",) else self.recipe.pooling[0]
        return (f"{self.name} does not say how its tokens are pooled: {taken} is taken.",)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name.startswith(self.prefixes)}

    def state(self) -> StateDict:
        return {name: p.detach() for name, p in self._parameters().items()}

    def trainable(self) -> list[nn.Parameter]:
        return list(self._parameters().values())

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        return added(self.state(), vector, alpha)

    def prepare(self, examples: Sequence[Any]) -> Int[Tensor, "batch *pair tokens fields"]:
        """Tokens of each example, padded to the longest: their ids, kinds and places (`tokens.py`)."""
        if examples and isinstance(examples[0], Pair):
            texts = [text for pair in examples for text in (pair.first, pair.second)]
            return self._tokens(texts).unflatten(0, (-1, 2))
        return self._tokens(examples)

    def stack(self, rows: Sequence[Tensor]) -> Int[Tensor, "batch *pair tokens fields"]:
        if rows[0].ndim == 3:
            return self._tokens.stack([text for pair in rows for text in pair]).unflatten(0, (-1, 2))
        return self._tokens.stack(rows)

    def places(self, inputs: Int[Tensor, "batch *pair tokens fields"]) -> Int[Tensor, "texts tokens"]:
        return inputs[..., 2].flatten(0, -2)

    def mask(self, inputs: Int[Tensor, "batch *pair tokens fields"]) -> Tensor:
        return (self.places(inputs) != PADDING).to(self.device)

    def head(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Raises ConfigError: an encoder has no words for classes, its head is fitted to samples."""
        raise ConfigError(f"{self.name} has no head that follows from class names: use loss={PROBE}.")

    def features(self, inputs: Tensor) -> Float[Tensor, "batch features"]:
        """Pooled features of each text, before normalisation; of pairs those of both texts, one behind the other."""
        if inputs.ndim == 4:
            return self.features(inputs.flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1)
        return self.dense(pool(self._encode(inputs), self._pooled(inputs), self.recipe.pooling))

    def logits(self, inputs: Tensor, head: Tensor) -> Float[Tensor, "batch classes"]:
        return probe_scores(self.features(inputs), head)

    def bank(self, features: Tensor, groups: Tensor) -> Tensor:
        """The head of the loss in pairs: those that a pair is told from (`pairs.make_bank`)."""
        first, second = features.chunk(2, dim=1)
        return make_bank(first, second, groups)

    def loss(
        self, inputs: Tensor, labels: Int[Tensor, " batch"] | Float[Tensor, "batch ..."], head: Tensor | None
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the probe, summed over the batch; of pairs, one of the losses of `pairs.py`.

        Arguments:
            labels: Class indices, or a probability for every class. Of pairs: scores, or groups.
            head: The probe. Of pairs without scores: the bank; None takes the batch itself, and then its size matters.
        """
        if inputs.ndim == 4:
            first, second = self.features(inputs).chunk(2, dim=1)
            if labels.is_floating_point():
                return score_loss(first, second, labels)
            return ranking_loss(first, second, labels) if head is None else bank_loss(first, second, labels, head)
        if head is None:
            raise ConfigError(f"{self.name} takes its loss in a probe, and no head was given.")
        return probe_loss(self.features(inputs), labels, head)

    @contextmanager
    def instrument(self) -> Iterator[dict[str, nn.Module]]:
        """Makes every site a module: fused maps are split into modules that share their parameters, for the time of the
        context.
        """
        with ExitStack() as stack:
            yield {
                f"blocks.{index}.{role}": module
                for index, block in enumerate(self.model.get_submodule(self.layout.blocks))
                for role, module in opened(block, self.layout, stack).items()
            }

    def _encode(self, inputs: Tensor) -> Float[Tensor, "batch tokens features"]:
        if inputs.ndim != 3 or inputs.size(2) != FIELDS or inputs.is_floating_point():
            raise ShapeError(
                f"{self.name} takes tokens (batch, tokens, {FIELDS}), got {inputs.dtype} of shape {tuple(inputs.shape)}: "
                "prepare texts with this model's own `prepare`."
            )
        return self.model(**self.model_inputs(inputs)).last_hidden_state

    def model_inputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the model of transformers is called with."""
        ids, kinds = (inputs[..., field].to(self.device) for field in (0, 1))
        more = {"token_type_ids": kinds} if self._kinds else {}
        return {"input_ids": ids, "attention_mask": self.mask(inputs).long(), **more}

    def _pooled(self, inputs: Tensor) -> Tensor:
        """Which tokens are pooled: the real ones, but for a prompt's and what stands before it."""
        if self.recipe.pools_prompt or not self.recipe.prompt:
            return self.mask(inputs)
        return (self.places(inputs) > ending(0, 0)).to(self.device)


def longest(config: Any, tokenizer: Any, recipe: Recipe) -> int:
    """Tokens that a text is cut to: what the folder says, but never more than the model has positions for."""
    positions = config.max_position_embeddings
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):  # the first positions are for padding
        positions -= config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length, recipe.longest or MAX_TOKENS)


MAX_TOKENS = 512
"""Where a folder says nothing; newer encoders have positions for thousands, and memory does not."""


def encoder_sites(model: Any, layout: Layout, name: str) -> tuple[Site, ...]:
    """Returns the linear maps of the blocks in forward order, by the table of layouts.

    Not sites, and left alone: embeddings, norms, relative positions, poolers.

    Raises:
        CheckpointError: If a block lacks a map, as those of decoders or with adapters inside may.
    """
    sites = []
    for index, block in enumerate(model.get_submodule(layout.blocks)):
        for role, part in layout.parts.items():
            try:
                linear = block.get_submodule(part.path)
                rows = linear.out_features // part.of
            except AttributeError:
                raise CheckpointError(
                    f"{name}: block {index} of its {model.config.model_type} has no linear map {part.path}: it is not the "
                    "plain encoder of transformers."
                ) from None
            cut = (part.index * rows, (part.index + 1) * rows) if part.of > 1 else (None, None)
            at = f"{layout.blocks}.{index}.{part.path}"
            bias = Slot(f"{at}.bias", *cut) if linear.bias is not None else None
            reads, shape = f"blocks.{index}.{READS[role]}", (rows, linear.in_features)
            sites.append(Site(f"blocks.{index}.{role}", index, role, Slot(f"{at}.weight", *cut), bias, reads, shape))
    return tuple(sites)

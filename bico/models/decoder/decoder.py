"""Decoder language models of transformers: sites, and the loss of the completions that they are to write.

Task vectors live in the blocks and the norm behind them. Embeddings and the head stay: they are one matrix in many models,
and belong to a tokenizer.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bico.errors import CheckpointError, ConfigError, ShapeError
from bico.finetune import DECODER, MINI, MINI_TOWER, FinetuneConfig
from bico.models.decoder.branches import pack
from bico.models.decoder.layouts import LAYOUTS, READS, Fused, Heads, Layout, heads_of
from bico.models.decoder.tokens import FIELDS, Tokens
from bico.models.fused import Rows, Split, replace
from bico.models.places import PADDING, TEXT, is_text
from bico.models.pooling import pool
from bico.models.probed import probe_scores
from bico.models.protocol import COMPLETION, Answers
from bico.models.sites import Site, Slot
from bico.task_vector import StateDict, added, check_finite

MAX_TOKENS = 512
"""Longer examples are cut; many decoders have positions for a hundred thousand tokens, and memory does not."""
AT_ONCE = 1 << 26
"""Scores of the vocabulary that are kept at once; more are computed a second time on the way back."""


class Decoder:
    """A decoder of transformers with its head, frozen, that can give and take task vectors.

    Weights stay in the dtype that they came in. The loss is the cross-entropy of each token of a completion, given all
    before it. What stands behind the last token that something is told from has no part in it: these positions, and
    padding, are no rows. Earlier ones are, those of the prompt among them, since what they hold is read by the later.
    """

    modality = "text"
    losses = (COMPLETION,)
    probed = False
    grid = None
    permutations = ()

    def __init__(self, model: Any, tokenizer: Any, name: str = "model") -> None:
        """Arguments:
            model: A causal model of transformers of a kind in `LAYOUTS`; it is frozen and put in eval mode.
            tokenizer: A fast tokenizer of transformers.
            name: How error messages call it.

        Raises:
            CheckpointError: If a parameter is not finite, or the model's blocks are not those of its kind.
        """
        # What is not in memory yet is checked when it is read (`blockwise`).
        check_finite(((n, p) for n, p in model.named_parameters() if not p.is_meta), name)
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.layout = LAYOUTS[model.config.model_type]
        self.prefixes = self.layout.prefixes
        self.heads: Heads = heads_of(model.config)
        self.sites = decoder_sites(model, self.layout, self.heads, name)
        self.tokens = min(model.config.max_position_embeddings, tokenizer.model_max_length, MAX_TOKENS)
        self._tokens = Tokens(tokenizer, self.tokens, model.get_input_embeddings().num_embeddings, name)
        self.vocabulary = self._tokens.digest

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def finetuning(self) -> FinetuneConfig:
        """How experts of it are made, unless somebody says otherwise."""
        return MINI if sum(p.numel() for p in self.trainable()) < MINI_TOWER else DECODER

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name.startswith(self.prefixes)}

    def state(self) -> StateDict:
        return {name: p.detach() for name, p in self._parameters().items()}

    def trainable(self) -> list[nn.Parameter]:
        return list(self._parameters().values())

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        return added(self.state(), vector, alpha)

    def prepare(self, examples: Sequence[Any]) -> Int[Tensor, "batch tokens fields"]:
        """Tokens of completions, chats or plain texts, filled up to the longest: ids, what is asked for, and places.

        Raises:
            DataError: If nothing of a completion is left, or the tokenizer is another model's.
        """
        return self._tokens(examples)

    def stack(self, rows: Sequence[Tensor]) -> Int[Tensor, "batch tokens fields"]:
        return self._tokens.stack(rows)

    def is_cut(self, example: Any) -> bool:
        """Whether an example is longer than what is read of it."""
        return self._tokens.is_cut(example)

    def mask(self, inputs: Int[Tensor, "batch tokens fields"]) -> Bool[Tensor, "batch tokens"]:
        """The positions that the loss can reach."""
        return _reached(inputs).to(self.device)

    def places(self, inputs: Int[Tensor, "batch tokens fields"]) -> Int[Tensor, "batch tokens"]:
        return inputs[..., 2].masked_fill(~_reached(inputs), PADDING)

    def head(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Empty: what is to be written stands in the inputs, and the model's own head writes it."""
        return torch.zeros(0, device=self.device)

    def features(self, inputs: Tensor) -> Float[Tensor, "batch features"]:
        """What the last position holds that the loss reaches, float32."""
        return pool(self._encode(inputs), self.mask(inputs), ("lasttoken",)).float()

    def logits(self, inputs: Tensor, head: Tensor) -> Float[Tensor, "batch classes"]:
        """Class scores of a probe on the features."""
        if head.numel() == 0:
            raise ConfigError(f"{self.name} writes texts and has no scores for classes: use loss={COMPLETION}.")
        return probe_scores(self.features(inputs), head)

    def loss(self, inputs: Tensor, labels: Tensor, head: Tensor | None = None) -> Float[Tensor, ""]:
        """Cross-entropy of the completions' tokens, summed over the batch, in nats.

        Arguments:
            labels: Are not looked at.
            head: Neither.
        """
        return self._told(inputs)[0].sum()

    def answers(self, inputs: Tensor) -> Answers:
        return self._by_text(*self._told(inputs), inputs)

    def _by_text(self, costs: Tensor, right: Tensor, sample: Tensor, inputs: Tensor) -> Answers:
        """What is told of tokens, added up by the texts that they are of."""
        count = len(inputs)

        def by_sample(values: Tensor) -> Tensor:
            return values.new_zeros(count).index_add_(0, sample, values)

        whole = by_sample((~right).int()) == 0
        tokens = by_sample(torch.ones_like(sample))
        return Answers(by_sample(costs), tokens, by_sample(right.int()), whole, _characters(inputs).to(self.device))

    def choose(self, examples: Sequence[Any], answers: Sequence[str]) -> Answers:
        """What it makes of each example with each answer, those of one example together. Their prompt is read once, unless
        layers see no farther than a part of it.
        """
        texts = [[example.answered(answer) for answer in answers] for example in examples]
        inputs = self.prepare([text for row in texts for text in row])
        if (getattr(self.model.config, "sliding_window", None) or inputs.size(1)) < inputs.size(1):
            return self.answers(inputs)
        lengths = (inputs[..., 2] != PADDING).sum(1).tolist()
        rows = [text[:size] for text, size in zip(inputs, lengths, strict=True)]
        packed = pack([rows[n : n + len(answers)] for n in range(0, len(rows), len(answers))])
        dtype = self.model.get_input_embeddings().weight.dtype
        hidden_from = torch.zeros(packed.seen.shape, dtype=dtype).masked_fill(~packed.seen, torch.finfo(dtype).min)
        found = self.model.base_model(
            input_ids=packed.ids.to(self.device),
            attention_mask=hidden_from[:, None].to(self.device),
            position_ids=packed.positions.to(self.device),
            use_cache=False,
        )
        row, place = packed.before.to(self.device).T
        costs, right = self._costs_of(found.last_hidden_state[row, place], packed.wanted.to(self.device))
        return self._by_text(costs, right, packed.text.to(self.device), inputs)

    def instrument(self) -> AbstractContextManager[dict[str, nn.Module]]:
        """Makes every site a module: fused maps are split into modules that share their parameters, for the time of the
        context.
        """
        return self._opened(self.sites)

    @contextmanager
    def _opened(self, chosen: Iterable[Site]) -> Iterator[dict[str, nn.Module]]:
        fused: dict[str, list[Site]] = defaultdict(list)
        for site in chosen:
            fused[site.weight.parameter.removesuffix(".weight")].append(site)
        live = {name: p for name, p in self.model.named_parameters() if name.startswith(self.prefixes)}
        modules: dict[str, nn.Module] = {}
        with ExitStack() as stack:
            for path, sites in fused.items():
                if len(sites) == 1:
                    modules[sites[0].name] = self.model.get_submodule(path)
                    continue
                parts = [Rows(s.weight.read(live), None if s.bias is None else s.bias.read(live)) for s in sites]
                turns = 1 if sites[0].weight.period is None else self.heads.queries
                replace(self.model, path, Split(parts, turns), stack)
                modules |= {site.name: part for site, part in zip(sites, parts, strict=True)}
            yield modules

    def _encode(self, inputs: Tensor) -> Float[Tensor, "batch tokens features"]:
        if inputs.ndim != 3 or inputs.size(2) != FIELDS or inputs.is_floating_point():
            raise ShapeError(
                f"{self.name} takes tokens (batch, tokens, {FIELDS}), got {inputs.dtype} of shape {tuple(inputs.shape)}: "
                "prepare examples with this model's own `prepare`."
            )
        ids = inputs[..., 0].to(self.device)
        # Nothing is masked: what fills up a row stands behind it, where no position looks.
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.model.base_model(**given, use_cache=False).last_hidden_state

    def _told(self, inputs: Tensor) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"], Int[Tensor, " asked"]]:
        """Of each token that is asked for: what it costs in nats, whether it is the likeliest, and which sample it is of."""
        return self._told_from(self._encode(inputs), inputs)

    def _told_from(
        self, hidden: Float[Tensor, "batch tokens features"], inputs: Tensor
    ) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"], Int[Tensor, " asked"]]:
        """The same from what the norm behind the blocks gives."""
        asked = inputs[:, 1:, 1].bool().to(self.device)
        sample = asked.nonzero()[:, 0]
        rows, wanted = hidden[:, :-1][asked], inputs[:, 1:, 0].to(self.device)[asked]
        return *self._costs_of(rows, wanted), sample

    def _costs_of(
        self, rows: Float[Tensor, "asked features"], wanted: Int[Tensor, " asked"]
    ) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"]]:
        size = max(1, AT_ONCE // self.model.get_output_embeddings().weight.shape[0])
        if len(rows) <= size:
            return self._costs(rows, wanted)
        parts = [
            checkpoint(self._costs, r, w, use_reentrant=False)
            for r, w in zip(rows.split(size), wanted.split(size), strict=True)
        ]
        costs, right = (torch.cat(part) for part in zip(*parts, strict=True))
        return costs, right

    def _costs(
        self, rows: Float[Tensor, "asked features"], wanted: Int[Tensor, " asked"]
    ) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"]]:
        scores = self.model.get_output_embeddings()(rows)
        if (cap := getattr(self.model.config, "final_logit_softcapping", None)) is not None:
            scores = cap * torch.tanh(scores / cap)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return F.cross_entropy(scores, wanted, reduction="none"), scores.argmax(1) == wanted


def _reached(inputs: Int[Tensor, "batch tokens fields"]) -> Bool[Tensor, "batch tokens"]:
    """Which positions have a token behind them that is asked for."""
    behind = inputs[..., 1].flip(1).cumsum(1).flip(1) - inputs[..., 1]
    return behind > 0


def _characters(inputs: Int[Tensor, "batch tokens fields"]) -> Int[Tensor, " batch"]:
    """Of the texts of the tokens that are asked for, as far as they stand behind another token of their text."""
    places, asked = inputs[:, :, 2], inputs[:, 1:, 1].bool()
    steps = places[:, 1:] - places[:, :-1]
    # Behind what is no text a token's text begins at its first character, whose place is one more.
    steps = torch.where(is_text(places[:, :-1]), steps, _inside(places[:, 1:]))
    return (steps * (asked & is_text(places[:, 1:]))).sum(1)


def _inside(places: Tensor) -> Tensor:
    """Characters of a text before a place."""
    return (places - 1) % TEXT


def decoder_sites(model: Any, layout: Layout, heads: Heads, name: str) -> tuple[Site, ...]:
    """Returns the linear maps of the blocks in forward order, by the table of layouts.

    Not sites, and left alone: embeddings, norms (those of q and k, too), the head.

    Raises:
        CheckpointError: If a block lacks a map, or a fused one has another number of outputs than its parts.
    """
    sites: list[Site] = []
    for index, block in enumerate(model.get_submodule(layout.blocks)):
        for fused in layout.maps:
            try:
                module = block.get_submodule(fused.path)
                shape = module.weight.shape
            except AttributeError:
                raise CheckpointError(
                    f"{name}: block {index} of its {model.config.model_type} has no linear map {fused.path}: it is not a "
                    "plain decoder of this kind."
                ) from None
            turned = type(module).__name__ == "Conv1D"  # transformers' own, which stores (in, out)
            rows, columns = reversed(shape) if turned else shape
            cuts = _cuts(fused, rows, heads, f"{name}: {layout.blocks}.{index}.{fused.path}")
            at = f"{layout.blocks}.{index}.{fused.path}"
            for role, (start, stop, size) in cuts.items():
                first, last = (start, stop) if len(cuts) > 1 else (None, None)
                period = rows // heads.queries if fused.by_head else None
                weight = Slot(f"{at}.weight", first, last, turned, period)
                bias = None if module.bias is None else Slot(f"{at}.bias", first, last, period=period)
                reads, site = f"blocks.{index}.{READS[role]}", f"blocks.{index}.{role}"
                sites.append(Site(site, index, role, weight, bias, reads, (size, columns)))
    return tuple(sites)


def _cuts(fused: Fused, rows: int, heads: Heads, where: str) -> dict[str, tuple[int, int, int]]:
    """From where to where the outputs of each role lie, in the whole or in each head's part, and how many it has in all."""
    if len(fused.roles) == 1:
        return {fused.roles[0]: (0, rows, rows)}
    known = heads.features
    sizes = [known.get(role, rows // len(fused.roles)) for role in fused.roles]
    if sum(sizes) != rows:
        parts = ", ".join(f"{role} {size}" for role, size in zip(fused.roles, sizes, strict=True))
        raise CheckpointError(f"{where} has {rows} outputs, and by the configuration {sum(sizes)} ({parts}).")
    turns, found, start = heads.queries if fused.by_head else 1, {}, 0
    for role, size in zip(fused.roles, sizes, strict=True):
        found[role] = (start, start + size // turns, size)
        start += size // turns
    return found

"""T5 encoders of transformers: sites, the losses of a task, pooled features.

Task vectors live in the encoder's blocks. The embedding is left out: the frozen decoder shares it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bico.errors import CheckpointError, ShapeError
from bico.models.pooling import mean
from bico.models.probed import probe_loss, probe_scores
from bico.models.protocol import PROBE, TEXT
from bico.models.sites import Site, Slot
from bico.task_vector import StateDict, added, check_finite

PREFIX = "encoder."
MAX_TOKENS = 256
"""Longer texts are cut. Position biases of T5 know no limit, but memory does."""


class T5Encoder:
    """A T5, mT5 or umT5, frozen, whose encoder can give and take task vectors.

    A head of token ids (classes, tokens) poses a task as text: the loss is that of the class's words, written by the
    frozen decoder. A head of numbers (classes, features + 1) is a linear probe on the mean of the encoder's outputs, with
    its bias in the last column. Of an encoder without its decoder there is only this loss.
    """

    modality = "text"
    losses: tuple[str, ...] = (PROBE, TEXT)  # in this order by benchmarks/results/losses.md
    probed = True
    prefixes = (f"{PREFIX}block.", f"{PREFIX}final_layer_norm.")
    grid = None
    permutations = ()
    tokens = MAX_TOKENS

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: str = "model") -> None:
        """Arguments:
            model: The model, for conditional generation or its encoder alone; its parameters are frozen and it is put in
                eval mode.
            tokenizer: A tokenizer of transformers.
            name: How error messages call it.

        Raises:
            CheckpointError: If a parameter is not finite, or the tokenizer has more tokens than the model.
        """
        check_finite(model.named_parameters(), name)
        if len(tokenizer) > model.config.vocab_size:
            raise CheckpointError(
                f"{name}: its tokenizer knows {len(tokenizer)} tokens and its embedding {model.config.vocab_size}: they "
                "are of different models."
            )
        self.model = model.eval().requires_grad_(False)
        if not hasattr(model, "decoder"):
            self.losses = (PROBE,)
        self.tokenizer, self.name = tokenizer, name
        self.pad, self.eos = model.config.pad_token_id, model.config.eos_token_id
        self.sites = t5_sites(model)
        self.vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        return self.model.shared.weight.device

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name.startswith(self.prefixes)}

    def state(self) -> StateDict:
        return {name: p.detach() for name, p in self._parameters().items()}

    def trainable(self) -> list[nn.Parameter]:
        return list(self._parameters().values())

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        return added(self.state(), vector, alpha)

    def prepare(self, examples: Sequence[str]) -> Int[Tensor, "batch tokens"]:
        """Token ids, padded to the longest text of the batch."""
        rows = self.tokenizer(list(examples), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return self.stack([torch.tensor(row) for row in rows])

    def stack(self, rows: Sequence[Tensor]) -> Int[Tensor, "batch tokens"]:
        return pad_sequence(list(rows), batch_first=True, padding_value=self.pad)

    def mask(self, inputs: Int[Tensor, "batch tokens"]) -> Tensor:
        return (inputs != self.pad).to(self.device)

    def head(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Int[Tensor, "classes tokens"]:
        """The words of each class as the decoder has to write them: token ids, closed by the end of the sequence.

        Raises:
            ShapeError: If two classes have the same tokens.
        """
        words = self.tokenizer(list(class_names), add_special_tokens=False)["input_ids"]
        head = self.stack([torch.tensor([*ids, self.eos]) for ids in words])
        if len(head.unique(dim=0)) < len(head):
            raise ShapeError(
                f"{self.name}: its tokenizer writes two of the classes {', '.join(class_names)} alike; name them by other words."
            )
        return head.to(self.device)

    def features(self, inputs: Tensor) -> Float[Tensor, "batch features"]:
        """The mean of the encoder's outputs over real tokens."""
        return mean(self._encode(inputs), self.mask(inputs))

    def logits(self, inputs: Tensor, head: Tensor) -> Float[Tensor, "batch classes"]:
        """Class scores: of a probe, or the log-likelihoods of the classes' words."""
        hidden, mask = self._encode(inputs), self.mask(inputs)
        if head.is_floating_point():
            return probe_scores(mean(hidden, mask), head)
        scores = [self._likelihood(hidden, mask, words.expand(len(inputs), -1)) for words in head]
        return torch.stack(scores, dim=1)

    def loss(
        self, inputs: Tensor, labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"], head: Tensor
    ) -> Float[Tensor, ""]:
        """Cross-entropy, summed over the batch (and over the tokens of the class's words).

        Arguments:
            labels: Class indices, or a probability for every class.
        """
        labels = labels.to(self.device)
        if head.is_floating_point():
            return probe_loss(self.features(inputs), labels, head)
        if labels.is_floating_point():
            return -(labels * self.logits(inputs, head)).sum()
        return -self._likelihood(self._encode(inputs), self.mask(inputs), head[labels]).sum()

    @contextmanager
    def instrument(self) -> Iterator[dict[str, nn.Module]]:
        """Every linear map of transformers' T5 is a module that is called: nothing needs to be opened."""
        yield {
            site.name: self.model.get_submodule(site.weight.parameter.removesuffix(".weight")) for site in self.sites
        }

    def _encode(self, inputs: Tensor) -> Float[Tensor, "batch tokens features"]:
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise ShapeError(
                f"{self.name} takes token ids (batch, tokens), got {inputs.dtype} of shape {tuple(inputs.shape)}: prepare "
                "texts with this model's own `prepare`."
            )
        mask = self.mask(inputs)
        return self.model.encoder(input_ids=inputs.to(self.device), attention_mask=mask.long()).last_hidden_state

    def _likelihood(self, hidden: Tensor, mask: Tensor, words: Int[Tensor, "batch tokens"]) -> Float[Tensor, " batch"]:
        """Log-likelihood of each row's words, given the encoder's outputs."""
        logits = self.model(
            encoder_outputs=(hidden,),
            attention_mask=mask.long(),
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=words),
            use_cache=False,
        ).logits
        # Padding stands behind the words, so the causal decoder does not see it, and here it is left out.
        loss = F.cross_entropy(logits.transpose(1, 2), words, ignore_index=self.pad, reduction="none")
        return -loss.sum(1)


def t5_sites(model: PreTrainedModel) -> tuple[Site, ...]:
    """Returns the linear maps of the encoder in forward order: per block q, k, v, o, then wi and wo, or wi_0, wi_1 and wo
    where the feed-forward is gated. None has a bias.

    Not sites, and left alone: embedding, relative position bias, RMS norms.
    """
    sites = []
    for index, block in enumerate(model.encoder.block):
        at, name = f"{PREFIX}block.{index}.layer", f"blocks.{index}"
        attention, mlp = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        first = ("wi_0", "wi_1") if hasattr(mlp, "wi_0") else ("wi",)
        for role, path, linear, reads in (
            *((role, "0.SelfAttention", getattr(attention, role), "attn_in") for role in "qkv"),
            ("o", "0.SelfAttention", attention.o, "o_in"),
            *((role, "1.DenseReluDense", getattr(mlp, role), "wi_in") for role in first),
            ("wo", "1.DenseReluDense", mlp.wo, "wo_in"),
        ):
            shape = (linear.out_features, linear.in_features)
            slot = Slot(f"{at}.{path}.{role}.weight")
            sites.append(Site(f"{name}.{role}", index, role, slot, None, f"{name}.{reads}", shape))
    return tuple(sites)

"""The loss of an expert's own classification head, where one was trained with it (`...ForSequenceClassification`).

The head is transformers' own, with what it has before its last map: BERT's pooler, DistilBERT's pre-classifier, RoBERTa's
dense map. It is computed on another encoder of the same shape, such as the pre-trained one.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

from bico.errors import CheckpointError, one_line
from bico.models.encoder.encoder import TextEncoder
from bico.models.probed import class_loss


class ClassifiedEncoder(TextEncoder):
    """A text encoder, at its own weights, whose loss is taken in an expert's classification head.

    The head that it is given says which of that one's scores are the task's classes, in their order: integers (classes,).
    """

    def __init__(self, encoder: TextEncoder, whole: Any) -> None:
        """Arguments:
            encoder: Is shared, not copied.
            whole: The expert's model for sequence classification; of it, the head is kept.

        Raises:
            CheckpointError: If it is of another kind or shape than the encoder.
        """
        base = getattr(whole, whole.base_model_prefix)
        ours, theirs = (
            {k: v.shape for k, v in m.named_parameters() if k.startswith(encoder.prefixes)}
            for m in (encoder.model, base)
        )
        if ours != theirs:
            raise CheckpointError(
                f"{encoder.name}: the classification head is of a {type(whole).__name__} of another shape: give the expert "
                "that was tuned from this very model."
            )
        super().__init__(encoder.model, encoder.tokenizer, encoder.recipe, list(encoder.dense), encoder.name)
        self._whole, self._pooler = whole.eval().requires_grad_(False), getattr(base, "pooler", None)
        setattr(
            whole, whole.base_model_prefix, None
        )  # the expert's blocks are its task vector, and no longer needed here

    def logits(self, inputs: Tensor, head: Any = None) -> Float[Tensor, "batch classes"]:
        """Class scores of the expert's head on this encoder.

        Arguments:
            head: The places of the task's classes among these scores; None for all as they are.
        """
        encoder, place = self.model, self._whole.base_model_prefix
        own = getattr(encoder, "pooler", None)
        try:
            if self._pooler is not None:
                encoder.pooler = self._pooler
            setattr(self._whole, place, encoder)
            scores = self._whole(**self.model_inputs(inputs)).logits
            return scores if head is None else scores[:, head.to(scores.device)]
        finally:
            setattr(self._whole, place, None)
            if self._pooler is not None:
                encoder.pooler = own

    def loss(self, inputs: Tensor, labels: Tensor, head: Any = None) -> Float[Tensor, ""]:
        """Cross-entropy of the expert's head, summed over the batch.

        Arguments:
            labels: Class indices, or a probability for every class.
            head: As in `logits`.
        """
        return class_loss(self.logits(inputs, head), labels)


def with_head_of(encoder: TextEncoder, expert: Path) -> ClassifiedEncoder:
    """Returns an encoder with the classification head of an expert's folder.

    Raises:
        CheckpointError: If the folder holds no such model, or one of another shape or without a trained head.
    """
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of loading weights, which takes no time to show
    try:
        config = AutoConfig.from_pretrained(expert, **safe)
        whole, about = AutoModelForSequenceClassification.from_pretrained(
            expert, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **safe
        )
    except Exception as error:  # transformers and safetensors raise a dozen types here; all mean: unreadable
        raise CheckpointError(f"{encoder.name}: cannot read the head of {expert}: {one_line(error)}.") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(about["missing_keys"]):
        raise CheckpointError(
            f"{encoder.name}: {expert} has no trained classification head: its weights lack {missing[0]}."
        )
    return ClassifiedEncoder(encoder, whole.to(encoder.device))

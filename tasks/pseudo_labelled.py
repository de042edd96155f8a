"""Calibration inputs without labels: the expert's predictions stand in for them."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from bico.calibration.pseudo_labels import PseudoLabels, expert_scores, pseudo_labels
from bico.calibration.sampling import draw_unlabelled
from storage.keys import Ref
from tasks.cached_stage import Workspace
from tasks.collect import Calibration
from tasks.finetune import task_vector_of
from tasks.inputs import open_head, open_model, open_split


@dataclass(frozen=True)
class PseudoLabelled(Calibration):
    """Unlabelled inputs that an expert has looked at; `samples` holds their one count."""

    expert: Ref | None = None
    """The fine-tuned source."""
    pseudo_labels: PseudoLabels = PseudoLabels.HARD
    taken: tuple[int, ...] = ()
    """Samples that serve with their labels, and so not without."""
    labelled_head: tuple[int, ...] | None = None
    """Labelled samples for a head that has to be fitted."""

    @cached_property
    def indices(self) -> list[int]:
        return draw_unlabelled(self.task.open().sizes["train"], self.taken, self.samples[-1], self.seed).tolist()

    @property
    def drawn(self) -> dict[str, Any]:
        return super().drawn | {"sampling": "unlabelled", "pseudo_labels": self.pseudo_labels}

    @property
    def beside(self) -> dict[str, object]:
        fitted = {} if self.labelled_head is None else {"head": list(self.labelled_head)}
        return {"expert": self.expert, "pseudo_labels": self.pseudo_labels, **fitted}

    @property
    def head_indices(self) -> tuple[int, ...] | None:
        return self.labelled_head

    def targets(self, space: Workspace) -> Tensor:
        return _targets(self, space.device)


@cache
def _targets(pseudo_labelled: PseudoLabelled, device: str) -> Tensor:
    """Asks the expert once per process: collection and every last step want the same answers."""
    source = open_model(pseudo_labelled.source, device)
    data = open_split(pseudo_labelled.source, device, pseudo_labelled.task, "train")
    inputs = (data.batch(part)[0] for part in torch.tensor(pseudo_labelled.indices).split(pseudo_labelled.batch_size))
    head = open_head(pseudo_labelled.source, device, pseudo_labelled.task, pseudo_labelled.head_indices)
    scores = expert_scores(source, task_vector_of(pseudo_labelled.expert, source.state()), inputs, head)
    return pseudo_labels(scores, pseudo_labelled.pseudo_labels).cpu()

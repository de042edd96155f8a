"""Calibration inputs without labels: the expert's predictions stand in for them."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from bico.sampling import draw_unlabelled
from bico.teacher import Teacher, expert_scores, targets
from storage.keys import Ref
from tasks.collect import Calibration
from tasks.finetune import task_vector_of
from tasks.inputs import open_head, open_model, open_split
from tasks.stage import Workspace


@dataclass(frozen=True)
class Taught(Calibration):
    """Unlabelled inputs that an expert has looked at; `samples` holds their one count."""

    expert: Ref | None = None
    """The fine-tuned source."""
    teacher: Teacher = Teacher.HARD
    taken: tuple[int, ...] = ()
    """Samples that serve with their labels, and so not without."""
    labelled_head: tuple[int, ...] | None = None
    """Labelled samples for a head that has to be fitted."""

    @cached_property
    def indices(self) -> list[int]:
        return draw_unlabelled(self.task.open().sizes["train"], self.taken, self.samples[-1], self.seed).tolist()

    @property
    def drawn(self) -> dict[str, Any]:
        return super().drawn | {"sampling": "unlabelled", "teacher": self.teacher}

    @property
    def beside(self) -> dict[str, object]:
        fitted = {} if self.labelled_head is None else {"head": list(self.labelled_head)}
        return {"expert": self.expert, "teacher": self.teacher, **fitted}

    @property
    def head_indices(self) -> tuple[int, ...] | None:
        return self.labelled_head

    def targets(self, space: Workspace) -> Tensor:
        return _targets(self, space.device)


@cache
def _targets(taught: Taught, device: str) -> Tensor:
    """Asks the expert once per process: collection and every last step want the same answers."""
    source = open_model(taught.source, device)
    data = open_split(taught.source, device, taught.task, "train")
    inputs = (data.batch(part)[0] for part in torch.tensor(taught.indices).split(taught.batch_size))
    head = open_head(taught.source, device, taught.task, taught.head_indices)
    scores = expert_scores(source, task_vector_of(taught.expert, source.state()), inputs, head)
    return targets(scores, taught.teacher).cpu()

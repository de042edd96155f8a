"""Calibration inputs without labels: the expert's predictions stand in for them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bico.sampling import draw_unlabelled
from bico.task_vector import State, subtract
from bico.teacher import Teacher, expert_scores, targets
from storage.checkpoints import load_state
from storage.keys import Ref
from tasks.collect import Calibration
from tasks.finetune import EXPERT
from tasks.stage import Workspace, open_head, open_model, open_split


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
        source = open_model(self.source, space.device)
        data = open_split(self.source, space.device, self.task, "train")
        inputs = (data.batch(part)[0] for part in torch.tensor(self.indices).split(self.batch_size))
        head = open_head(self.source, space.device, self.task, self.head_indices)
        scores = expert_scores(source, task_vector_of(self.expert, source.state()), inputs, head)
        return targets(scores, self.teacher).cpu()


def task_vector_of(expert: Ref, state: State) -> State:
    """Returns an expert's task vector, on the device of the state that it was fine-tuned from."""
    device = next(iter(state.values())).device
    fine_tuned = load_state(expert.path / EXPERT)
    return subtract({name: tensor.to(device) for name, tensor in fine_tuned.items()}, state)

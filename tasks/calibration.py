"""Which samples calibrate a pair on a task: drawn with their labels, or without, with the expert's predictions for labels."""

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from bico.calibration.budget import Budget
from bico.calibration.pseudo_labels import PseudoLabels, expert_scores, pseudo_labels
from bico.calibration.sampling import Sampling, choose_samples, draw_samples, draw_unlabelled
from bico.calibration.scales import Side
from bico.calibration.shared_tokens import Between
from bico.models.loading import ModelFiles
from bico.models.protocol import PAIRS, PROBE
from storage.keys import Ref
from tasks.artefacts import read_distances, read_task_vector
from tasks.cached_stage import Workspace
from tasks.inputs import TaskRef, open_head, open_model, open_split


@dataclass(frozen=True)
class Calibration:
    """Labelled samples of one draw, and the pair that they calibrate: what a collection depends on."""

    source: ModelFiles
    target: ModelFiles
    task: TaskRef
    budgets: tuple[Budget, ...]
    """Of labelled samples, ascending; the sets are nested, and one pass serves all of them."""
    seed: int
    sampling: Sampling = Sampling.RANDOM
    distances: Ref | None = None
    """Distances to class centroids, for the strategies that go by them."""
    batch_size: int = 8
    """Changes memory and rounding only, so it does not enter the key."""
    between: Between = Between.LAST
    """What becomes of tokens between ends that two tokenizers share; of a pair with one tokenizer always the default."""

    def model(self, side: Side) -> ModelFiles:
        return self.source if side is Side.SOURCE else self.target

    @property
    def counts(self) -> dict[int, int]:
        """Samples of each set, by the count that it was asked for by: N, K per class, or a number of unlabelled inputs."""
        return {budget.asked: budget.samples for budget in self.budgets}

    @cached_property
    def indices(self) -> list[int]:
        """The largest set, in order; a smaller one is its beginning."""
        task, largest = self.task.open(), self.budgets[-1].asked
        if self.sampling is Sampling.RANDOM:  # the labels need not be read
            return draw_samples(task.sizes["train"], largest, self.seed).tolist()
        distances = None if self.distances is None else read_distances(self.distances)
        labels, classes = task.open("train").labels, len(task.class_names)
        return choose_samples(self.sampling, labels, classes, largest, self.seed, distances).tolist()

    def set_of(self, count: int) -> list[int]:
        """The samples of one of the counts."""
        return self.indices[: self.counts[count]]

    @property
    def head_indices(self) -> tuple[int, ...] | None:
        """Samples for a head that has to be fitted: the smallest set, which every budget may look at."""
        return tuple(self.set_of(next(iter(self.counts)))) if self.task.loss in (PROBE, PAIRS) else None

    @property
    def identity(self) -> dict[str, object]:
        """What determines which samples these are and what stands for their labels: for keys."""
        apart = {} if self.between is Between.LAST else {"between": self.between}
        return {
            "task": self.task.identity,
            "indices": self.indices,
            "samples": {str(count): size for count, size in self.counts.items()},
            **apart,
        }

    def targets(self, space: Workspace) -> Tensor | None:
        """Targets of the loss, sample by sample; None for the labels that the data have."""
        return None

    @property
    def drawn(self) -> dict[str, Any]:
        """What was drawn, for the record."""
        return {
            "task": self.task.name,
            "sampling": self.sampling,
            "seed": self.seed,
            "samples": list(self.counts),
            "indices": self.indices,
        }


@dataclass(frozen=True)
class PseudoLabelled(Calibration):
    """Inputs without labels that an expert has looked at; `budgets` holds one, of unlabelled inputs alone."""

    expert: Ref = field(kw_only=True)
    """The fine-tuned source."""
    pseudo_labels: PseudoLabels = PseudoLabels.HARD
    taken: tuple[int, ...] = ()
    """Samples that serve with their labels, and so not without."""
    labelled_head: tuple[int, ...] | None = None
    """Labelled samples for a head that has to be fitted."""

    @property
    def counts(self) -> dict[int, int]:
        return {budget.unlabelled: budget.samples for budget in self.budgets}

    @cached_property
    def indices(self) -> list[int]:
        (budget,) = self.budgets
        return draw_unlabelled(self.task.open().sizes["train"], self.taken, budget.unlabelled, self.seed).tolist()

    @property
    def head_indices(self) -> tuple[int, ...] | None:
        return self.labelled_head

    @property
    def identity(self) -> dict[str, object]:
        fitted = {} if self.labelled_head is None else {"head": list(self.labelled_head)}
        return super().identity | {"expert": self.expert, "pseudo_labels": self.pseudo_labels, **fitted}

    def targets(self, space: Workspace) -> Tensor:
        return _pseudo_labels(self, space.device)

    @property
    def drawn(self) -> dict[str, Any]:
        return super().drawn | {"sampling": "unlabelled", "pseudo_labels": self.pseudo_labels}


@cache
def _pseudo_labels(calibration: PseudoLabelled, device: str) -> Tensor:
    """Asks the expert once per process: collection and every last step want the same answers."""
    source = open_model(calibration.source, device)
    data = open_split(calibration.source, device, calibration.task, "train")
    inputs = (data.batch(part)[0] for part in torch.tensor(calibration.indices).split(calibration.batch_size))
    head = open_head(calibration.source, device, calibration.task, calibration.head_indices)
    scores = expert_scores(source, read_task_vector(calibration.expert, source.state()), inputs, head)
    return pseudo_labels(scores, calibration.pseudo_labels).cpu()

"""The models, data and experts of the study: opened once per process, experts kept on disk."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bico.calibration.covariances import Batch, split_at
from bico.calibration.pseudo_labels import expert_scores
from bico.data.tasks import Prepared, Task, get_task
from bico.evaluation.linear_head import Readings, read
from bico.evaluation.predictions import predicted
from bico.finetune import MINI, finetune
from bico.models.clip.vit import ClipViT
from bico.models.loading import load, resolve
from bico.task_vector import StateDict, subtract
from storage.checkpoints import load_state, save_state

POOL = 2100
"""Training samples that calibration is drawn from; no expert has seen them. At most half of the split."""
BATCH = 50


@dataclass(frozen=True)
class Side:
    """One model on one task."""

    ref: str
    task: Task
    model: ClipViT
    head: Tensor
    train: Prepared
    test: Prepared
    limit: int
    """Test samples."""

    @property
    def name(self) -> str:
        return Path(self.ref.rpartition(":")[2]).name

    @cached_property
    def order(self) -> Tensor:
        """Training indices: the pool first, the experts' own after it. The same for every model."""
        return torch.randperm(len(self.train), generator=torch.Generator().manual_seed(7))

    @property
    def pool(self) -> Tensor:
        return self.order[: min(POOL, len(self.order) // 2)]

    def fine_tuned(self, seed: int, folder: Path, steps: int = MINI.steps) -> StateDict:
        """The task vector of fine-tuning on everything but the pool."""
        path = folder / f"{self.name}-{self.task.name}-{seed}-{steps}.safetensors"
        if not path.is_file():
            kept = self.order[len(self.pool) :]
            recipe = replace(MINI, seed=seed, steps=steps, warmup=steps // 10)
            tuned = finetune(self.model, lambda i: self.train.batch(kept[i]), len(kept), self.head, recipe)
            folder.mkdir(parents=True, exist_ok=True)
            save_state(path, subtract(tuned, self.model.state()))
        return load_state(path)

    def inputs(self, indices: Tensor) -> list[Tensor]:
        return [self.train.batch(part)[0] for part in indices.split(BATCH)]

    @cached_property
    def pool_before(self) -> Readings:
        return read(self.model, self.inputs(self.pool))

    @cached_property
    def test_before(self) -> Readings:
        return self.on_test({})

    def on_test(self, vector: StateDict) -> Readings:
        """Readings of the test samples, with a task vector."""
        with self.model.updated(vector):
            return read(self.model, (inputs for inputs, _ in self.test.batches(BATCH, self.limit)))

    @property
    def test_labels(self) -> Tensor:
        return self.test.split.labels[: self.limit]

    def percent(self, scores: Tensor) -> float:
        return 100 * float((predicted(scores, self.model.name).cpu() == self.test_labels).double().mean())

    def zero_shot(self, features: Tensor) -> float:
        """Accuracy of features under the zero-shot head, percent."""
        return self.percent(F.normalize(features, dim=-1) @ self.head.T)


@cache
def open_side(ref: str, task: str, folders: tuple[Path, ...], limit: int) -> Side:
    model, opened = load(resolve(ref)), get_task(task, folders)
    train, test = (Prepared(opened.open(split), model.prepare) for split in ("train", "test"))
    return Side(ref, opened, model, model.head(opened.class_names, opened.prompts), train, test, limit)


@dataclass(frozen=True)
class Expert:
    """A fine-tuned source, and what it says of the pool: shared by all targets and calibration seeds."""

    side: Side
    tau: StateDict
    after: Readings
    scores: Tensor
    seed: int = 0
    steps: int = MINI.steps
    """Of fine-tuning."""
    folder: Path = Path("out/beyond")

    @classmethod
    def of(cls, side: Side, seed: int, folder: Path, steps: int = MINI.steps) -> "Expert":
        tau = side.fine_tuned(seed, folder, steps)
        inputs = side.inputs(side.pool)
        with side.model.updated(tau):
            after = read(side.model, inputs)
        return cls(side, tau, after, expert_scores(side.model, tau, inputs, side.head), seed, steps, folder)

    def other(self) -> StateDict:
        """The task vector of a second expert, which saw the same samples in another order."""
        return self.side.fine_tuned(self.seed + 1, self.folder, self.steps)


def batches(source: Side, target: Side, indices: Tensor, targets: Tensor) -> list[Batch]:
    """Calibration batches of training indices, with targets of the loss."""
    return [
        Batch(source.train.batch(indices[s])[0], target.train.batch(indices[s])[0], targets[s])
        for s in split_at(len(indices), BATCH, [len(indices)])
    ]

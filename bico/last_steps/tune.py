"""A few steps of fine-tuning on the calibration samples: the baseline at matched data, or a finish after a transfer."""

from dataclasses import dataclass
from typing import ClassVar

from bico.finetune import FinetuneConfig, finetune
from bico.last_steps.protocol import StepContext, StepResult
from bico.last_steps.training import check_settings, rows_for, stacked
from bico.methods.evidence import Evidence, Needs
from bico.models.protocol import Model
from bico.task_vector import StateDict, subtract


@dataclass(frozen=True)
class Tune:
    """Fine-tunes all of the target's trainable parameters for a number of steps, by the protocol of the experts.

    Labels where there are some, the expert's predictions elsewhere. Without transport (`none+tune`) it is few-shot
    fine-tuning. Costs forward and backward passes with optimiser states, unlike every other step here.
    """

    steps: int = 30
    lr: float = 1e-5
    """Peak learning rate; the pipeline takes the one that the target is fine-tuned with."""
    batch_size: int = 48
    seed: int = 0
    """Order of the samples."""

    name: ClassVar[str] = "tune"
    keeps_vocabulary: ClassVar[bool] = True
    told: ClassVar[frozenset[str]] = frozenset({"steps"})
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self, self.lr, self.seed, steps=self.steps, batch_size=self.batch_size)

    @property
    def label(self) -> str:
        return f"{self.steps} steps"

    @property
    def trained(self) -> str:
        return (
            f"all of its trainable parameters were fine-tuned for {self.steps} AdamW steps at learning rate {self.lr:g}"
        )

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, source: Model, target: Model) -> None:
        """Any target can be fine-tuned."""

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        rows = rows_for(self.name, context.samples.batches)
        target, size = context.target, min(self.batch_size, len(rows))
        config = FinetuneConfig(steps=self.steps, batch_size=size, lr=self.lr, warmup=self.steps // 10, seed=self.seed)

        before = {name: tensor.clone() for name, tensor in target.state().items()}
        with target.updated(vector):
            tuned = finetune(target, lambda chosen: stacked(target, rows, chosen), len(rows), context.heads[1], config)
        return StepResult(subtract(tuned, before))

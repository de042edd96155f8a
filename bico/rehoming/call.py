"""From models, an expert and data to a result, in one call and in memory: what the command line does, without its store."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from bico.calibration.budget import Budget
from bico.calibration.covariances import Batch
from bico.calibration.sampling import draw_samples
from bico.data.base import Prepared, Task
from bico.errors import ConfigError
from bico.evaluation.accuracy import accuracy, percent_right
from bico.evaluation.linear_head import LinearHead, linear_head_accuracy, read
from bico.evaluation.probe import as_head, fit_probe, probe_accuracy
from bico.last_steps import Samples
from bico.methods.spec import Spec
from bico.methods.variant import get_variant, run
from bico.models.experts import FARTHEST
from bico.models.protocol import PROBE, Calibratable, Model
from bico.models.wrapped import Loss
from bico.rehoming.in_memory import transfer
from bico.rehoming.result import Result
from bico.rehoming.samples import calibration_batches, measured_on, task_of
from bico.rehoming.subjects import Opened, open_subject, vector_of
from bico.reporting.references import EXPERT, TARGET_PROBE, ZERO_SHOT
from bico.reporting.rows import Row
from bico.task_vector import StateDict, scale

__all__ = ["Result", "rehome"]


def rehome(
    source: Any,
    target: Any,
    expert: Any,
    data: Any,
    *,
    target_data: Any = None,
    test: Any = None,
    loss: Loss | None = None,
    method: str | Spec = "bico",
    alpha: float = 1.0,
    samples: int | None = 100,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    prompts: Sequence[str] = (),
    test_limit: int | None = None,
    batch_size: int = 8,
    farthest: float | None = FARTHEST,
    device: str | torch.device = "cpu",
    allow_pickle: bool = False,
) -> Result:
    """Carries what an expert of the source has learnt over to the target, and measures what arrived. No model is changed.

    Arguments:
        source: The model that was fine-tuned: a reference as on the command line, a torch module, or a wrapped one.
        target: The new base model, likewise.
        expert: The fine-tuned source: a file or folder, a full state dictionary with whatever prefix, or the module.
        data: Samples of the task. For models of a family a folder, a task's name, or a data set of (raw example, class);
            for modules a data set or an unshuffled loader of (inputs, labels).
        target_data: The same samples as a target module wants them; by default the source's.
        test: What accuracy is measured on, in the form of the data; folders and tasks bring their own.
        loss: Of modules, from output and labels to the loss summed over samples.
        method: With its settings; behind models of a family also with last steps, such as bico+head.
        alpha: How much of the carried task vector is added.
        samples: Calibration samples, drawn with `seed` (of a loader, the first); None for all.
        class_names: Of a data set, in the order of its labels; by default its `classes`.
        prompts: Of a data set of pictures, templates with {} for the class name.
        test_limit: Only the first so many test samples.
        farthest: Refuse an expert that differs from its source by more than so many norms of the weights; None for any.
        allow_pickle: Read files that `torch.save` wrote, tensors only.

    Raises:
        BicoError: What cannot work, in one line: unknown names, weights that do not fit, too few samples.
    """
    ours, theirs = (open_subject(m, loss, device, allow_pickle, w) for m, w in ((source, "source"), (target, "target")))
    of_family = [isinstance(one.model, Model) for one in (ours, theirs)]
    if any(of_family) != all(of_family):
        raise ConfigError(
            "One of source and target is a model of a family and the other a module: wrap both, or neither."
        )
    tau, notes = vector_of(expert, ours, allow_pickle, farthest)
    spec = Spec.parse(method)
    if all(of_family):
        task = task_of(data, test, class_names, prompts, ours.model.name)
        found = _Family(ours, theirs, task, tau, spec, alpha, samples, seed, batch_size, test_limit)
        return found.result(notes)
    tested = [] if test is None else measured_on(test, batch_size, test_limit)
    drawn = calibration_batches(data, target_data, samples, seed, batch_size)
    return _modules(ours, theirs, tau, spec, alpha, drawn, seed, notes, tested)


def _modules(
    ours: Opened,
    theirs: Opened,
    tau: StateDict,
    spec: Spec,
    alpha: float,
    drawn: list[Batch],
    seed: int,
    notes: tuple[str, ...],
    test: list[tuple[Any, Tensor]],
) -> Result:
    variant = get_variant(spec)
    if variant.steps or variant.method is None:
        raise ConfigError(f"Method '{spec}': last steps read a family's features, which a module of your own has not.")
    vector = scale(transfer(tau, ours.model, theirs.model, drawn, method=variant.method), alpha)
    budget = Budget(sum(len(batch.labels) for batch in drawn)) if variant.uses_samples else Budget()
    rows: list[Row] = []
    if test:
        right = [_right(theirs.model, {}, test), _right(theirs.model, vector, test), _right(ours.model, tau, test)]
        rows = _rows("data", ZERO_SHOT.spec, spec, budget, seed, right)
    return Result(vector, tuple(rows), None, (), (*notes, *_doubts(rows)), theirs)


def _right(model: Calibratable, vector: StateDict, test: Iterable[tuple[Any, Tensor]]) -> float:
    opened = cast(Any, model)
    with torch.no_grad(), opened.updated(vector):
        return percent_right(opened, test, of=model.name)


def _rows(task: str, start: Spec, spec: Spec, budget: Budget, seed: int, right: Sequence[float]) -> list[Row]:
    """The target as it is, the transfer, and the expert on its own model."""
    drawn = seed if budget else None
    at = (budget, drawn) if start == TARGET_PROBE.spec else (Budget(), None)
    return [
        Row(task, start, *at, accuracy=right[0]),
        Row(task, spec, budget, drawn, accuracy=right[1]),
        Row(task, EXPERT.spec, accuracy=right[2]),
    ]


def _doubts(rows: Sequence[Row]) -> list[str]:
    if len(rows) < 2 or rows[1].accuracy > rows[0].accuracy:
        return []
    return [
        f"WARNING: nothing is gained: the target as it is scores {rows[0].accuracy:.1f} %, with the carried update "
        f"{rows[1].accuracy:.1f} %."
    ]


class _Family:
    """A transfer between models of a family: they prepare raw examples, and have heads of their own."""

    def __init__(
        self,
        ours: Opened,
        theirs: Opened,
        task: Task,
        tau: StateDict,
        spec: Spec,
        alpha: float,
        samples: int | None,
        seed: int,
        batch_size: int,
        limit: int | None,
    ) -> None:
        self.opened, self.task, self.tau, self.spec, self.alpha = theirs, task, tau, spec, alpha
        self.ours, self.theirs = cast(Model, ours.model), cast(Model, theirs.model)
        self.seed, self.limit = seed, limit
        train = task.open("train")
        self.train = tuple(Prepared(train, model.prepare, model.stack) for model in (self.ours, self.theirs))
        count = len(train) if samples is None else samples
        self.picks = draw_samples(len(train), count, seed)
        self.batch_size = batch_size

    def result(self, notes: tuple[str, ...]) -> Result:
        variant = get_variant(self.spec)
        drawn = [self._batch(part) for part in self.picks.split(self.batch_size)]
        heads = self._head(self.ours, self.train[0]), self._head(self.theirs, self.train[1])
        done = run(variant, self.tau, self.ours, self.theirs, Samples(tuple(drawn), []), heads, self.alpha)
        uses = variant.uses_samples or self.theirs.probed
        rows = self._measure(done.vector, done.linear_head, heads, Budget(len(self.picks)) if uses else Budget())
        told = (*self.task.notes, *notes, *_doubts(rows))
        return Result(done.vector, tuple(rows), done.linear_head, self.task.class_names, told, self.opened)

    def _batch(self, picks: Tensor) -> Batch:
        inputs, labels = self.train[0].batch(picks)
        return Batch(inputs, self.train[1].batch(picks)[0], labels)

    def _head(self, model: Model, data: Prepared) -> Tensor:
        if model.losses[0] != PROBE:
            return model.head(self.task.class_names, self.task.prompts)
        return as_head(self._probe(model, data))

    def _probe(self, model: Model, data: Prepared) -> LinearHead:
        features = read(model, (data.batch(part)[0] for part in self.picks.split(250))).features
        return fit_probe(features, data.split.labels[self.picks].to(features.device), len(self.task.class_names))

    def _measure(
        self, vector: StateDict, head: LinearHead | None, heads: tuple[Tensor, Tensor], budget: Budget
    ) -> list[Row]:
        try:
            split = self.task.open("test")
        except KeyError:  # a data set that came without another to measure on
            return []
        test = [Prepared(split, model.prepare, model.stack) for model in (self.ours, self.theirs)]

        def right(side: int, update: StateDict, own: LinearHead | None = None) -> float:
            model, batches = (self.ours, self.theirs)[side], test[side].batches(250, self.limit)
            with model.updated(update):
                if own is not None:
                    return linear_head_accuracy(model, batches, own)
                if model.probed:
                    return probe_accuracy(model, batches, self._probe(model, self.train[side]))
                return accuracy(model, batches, heads[side])

        start = TARGET_PROBE if self.theirs.probed else ZERO_SHOT
        found = [right(1, {}), right(1, vector, head), right(0, self.tau)]
        return _rows(self.task.name, start.spec, self.spec, budget, self.seed, found)

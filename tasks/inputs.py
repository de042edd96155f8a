"""What stages start from: models, tasks and their splits, opened once per process."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from bico.adapters.carry import find_in
from bico.adapters.dense import Formed
from bico.calibration.sampling import draw_samples
from bico.data.completions import get_completions
from bico.data.pairs import get_pairs
from bico.data.reading import NOTHING_SAID, Reading
from bico.data.tasks import Prepared, Task, folders_by_task, get_task
from bico.errors import ConfigError
from bico.evaluation.head_files import NamedHead, load_head, read_head
from bico.evaluation.linear_head import LinearHead, read
from bico.evaluation.probe import as_head, fit_probe
from bico.models.loading import ModelFiles, load
from bico.models.protocol import CLASSLESS, PAIRS, PROBE, Blockwise, Model, Paired
from storage.keys import Ref
from tasks.artefacts import carried_adapter, read_update

MODELS, HEADS = 8, 256
"""How many are kept; a transfer needs two models, and heads for each task and draw."""
SPLIT_BYTES = 4 << 30
"""Of preprocessed examples that all splits may keep; one that is in use can add its own `Prepared.BUDGET`."""


@dataclass(frozen=True)
class OwnHead:
    """A classifier that came with one model, an expert's: its loss is taken in it, and it is measured by it."""

    model: ModelFiles
    path: str
    digest: str
    """Of what the file holds."""
    order: tuple[int, ...] = ()
    """Of a head that the model itself brings (`ModelFiles.classifier`): where in its scores the task's classes are."""

    def read(self) -> LinearHead:
        return read_head(Path(self.path), self.model.allow_pickle)


@dataclass(frozen=True)
class TaskRef:
    """A task by name, with the folders that `--data` named, and how it is posed."""

    name: str
    folders: tuple[str, ...] = ()
    loss: str | None = None
    """Of text, the loss whose gradients are taken; of pictures there is one only."""
    reading: Reading = NOTHING_SAID
    """What options say of how its folder is read."""
    own_head: OwnHead | None = None
    """In place of the head that the task would have in that model; other models keep theirs."""

    def open(self) -> Task:
        folders = [Path(folder) for folder in self.folders]
        if self.loss in CLASSLESS:
            read = get_pairs if self.loss == PAIRS else get_completions
            return read(self.name, folders_by_task(folders), self.reading)
        return get_task(self.name, folders, self.reading)

    @property
    def identity(self) -> dict[str, object]:
        """What determines a loss on this task: for keys."""
        posed = {} if self.loss is None else {"loss": self.loss}
        return self.open().identity | posed | ({} if self.own_head is None else {"own_head": self.own_head.digest})

    @property
    def about(self) -> dict[str, object]:
        """What was asked for, as JSON: for manifests, which people read."""
        head = {} if self.own_head is None else {"own_head": self.own_head.path}
        return {"name": self.name, "folders": list(self.folders), "loss": self.loss, **self.reading.said, **head}

    @property
    def bare(self) -> "TaskRef":
        """The task without a head of anybody's own."""
        return replace(self, own_head=None)


def open_model(files: ModelFiles, device: str) -> Model:
    """Loads a model once per process, and again if its files change."""
    return _open_model(files, device, files.digest())


@lru_cache(maxsize=MODELS)
def _open_model(files: ModelFiles, device: str, _content: str) -> Model:
    return load(files, torch.device(device))


def open_update(files: ModelFiles, device: str, weights: Ref | None) -> Mapping[str, torch.Tensor]:
    """What a stage's weights add to a model: a task vector, a fine-tuned state less the model's, or nothing. Of a model that is
    read block by block they are an adapter, whose tensors are formed when they are asked for.
    """
    model = open_model(files, device)
    if weights is not None and isinstance(model, Blockwise):
        return Formed(find_in(str(carried_adapter(weights)), model, files.family), model.state())
    return read_update(weights, model.state())


def open_head(files: ModelFiles, device: str, task: TaskRef, indices: tuple[int, ...] | None = None) -> torch.Tensor:
    """The head in which the task's loss is taken.

    Arguments:
        indices: Training samples from which a head that has to be fitted is fitted; all, unless given, or as many as
            the model's family finds enough.
    """
    return _open_head(files, device, task, indices, files.digest())


@lru_cache(maxsize=HEADS)
def _open_head(
    files: ModelFiles, device: str, task: TaskRef, indices: tuple[int, ...] | None, _content: str
) -> torch.Tensor:
    opened, model = task.open(), open_model(files, device)
    if task.own_head is not None and task.own_head.model == files:
        own = task.own_head
        return torch.tensor(own.order, device=device) if own.order else as_head(own.read()).to(device)
    if task.loss == PAIRS:
        return _open_bank(files, device, task, indices)
    if task.loss != PROBE:
        return model.head(opened.class_names, opened.prompts)
    data = open_split(files, device, task, "train")
    enough: int | None = getattr(model, "probe_samples", None)
    if indices is None and enough is not None and enough < len(data):
        indices = tuple(draw_samples(len(data), enough, seed=0).tolist())
    return as_head(fit_probe(*read_features(model, data, indices), len(opened.class_names)))


def _open_bank(files: ModelFiles, device: str, task: TaskRef, indices: tuple[int, ...] | None) -> torch.Tensor:
    """The pairs that a pair is told from, as the model as it is sees them. Empty where scores say it all."""
    data, model = open_split(files, device, task, "train"), open_model(files, device)
    if not isinstance(model, Paired):
        raise ConfigError(f"loss={PAIRS}: {model.name} takes no loss in pairs of texts; use a text encoder.")
    if indices is None:
        indices = tuple(draw_samples(len(data), min(model.bank_size, len(data)), seed=0).tolist())
    features, labels = read_features(model, data, indices[: model.bank_size])
    if labels.is_floating_point():
        return features.new_zeros(0, features.size(1) + 1)
    return model.bank(features, labels)


def classifier_for(files: ModelFiles, task: TaskRef) -> NamedHead | None:
    """The classifier beside a model that was exported with one; None if there is none, or it knows other classes.

    Raises:
        CheckpointError: If it is damaged.
    """
    named = None if files.folder is None else load_head(files.folder)
    return named if named is not None and named.for_classes(task.open().class_names) is not None else None


def read_features(
    model: Model, data: Prepared, indices: Sequence[int] | None = None, batch: int = 250
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (samples, features) and labels (samples,) of some samples of a split, or of all."""
    chosen = torch.arange(len(data)) if indices is None else torch.tensor(indices)
    features = read(model, (data.batch(part)[0] for part in chosen.split(batch))).features
    return features, data.split.labels[chosen].to(features.device)


_splits: OrderedDict[tuple[str, str, TaskRef, str, str], Prepared] = OrderedDict()


def open_split(files: ModelFiles, device: str, task: TaskRef, split: str) -> Prepared:
    """A split as one model wants it, preprocessed once per process while all splits together are within `SPLIT_BYTES`;
    those that were not asked for the longest go first.
    """
    key = (files.digest(), device, task, task.open().revision, split)
    if key not in _splits:
        model = open_model(files, device)
        _splits[key] = Prepared(task.open().open(split), model.prepare, model.stack)
    _splits.move_to_end(key)
    while len(_splits) > 1 and sum(prepared.kept_bytes for prepared in _splits.values()) > SPLIT_BYTES:
        _splits.popitem(last=False)
    return _splits[key]

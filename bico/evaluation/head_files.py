"""Linear heads as files: the classifier beside an exported model, and classifiers that somebody else has trained.

A head's file is the state of a `torch.nn.Linear`: `weight` (classes, inputs) and `bias` (classes,). Beside an exported
model stands a second file, in JSON, with the names of the classes in their order.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bico.errors import CheckpointError, one_line
from bico.evaluation.linear_head import LinearHead
from bico.models.checkpoints import canonical, read_safetensors
from bico.models.files import CLASSES_FILE, HEAD_FILE
from bico.models.pickles import read_pickle
from bico.models.weight_files import is_pickle

_PLACES = ("", "classifier.", "head.", "fc.", "linear.", "classification_head.")
"""What may stand before `weight` and `bias` in somebody's file."""


@dataclass(frozen=True)
class NamedHead:
    """A linear head that knows what its classes are called."""

    head: LinearHead
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 of weights and names: for keys."""
        total = hashlib.sha256(json.dumps(self.classes).encode())
        for tensor in (self.head.weight, self.head.bias):
            total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        return total.hexdigest()

    def for_classes(self, names: Sequence[str]) -> LinearHead | None:
        """Returns the head with its classes in another order; None if these are other classes."""
        if sorted(names) != sorted(self.classes) or len(set(names)) != len(names):
            return None
        order = torch.tensor([self.classes.index(name) for name in names])
        return LinearHead(self.head.weight[:, order], self.head.bias[order])


def save_head(folder: Path, head: LinearHead | None, classes: Sequence[str]) -> None:
    """Writes a head and the names of its classes into a model's folder; of a model without one, removes an older one's."""
    if head is None:
        for name in (HEAD_FILE, CLASSES_FILE):
            (folder / name).unlink(missing_ok=True)
        return
    state = {"weight": head.weight.T.contiguous().cpu(), "bias": head.bias.contiguous().cpu()}
    save_file(state, folder / HEAD_FILE)
    (folder / CLASSES_FILE).write_text(
        json.dumps({"reads": "pooled features", "classes": list(classes)}, ensure_ascii=False), encoding="utf-8"
    )


def load_head(folder: Path) -> NamedHead | None:
    """Returns the head in a model's folder; None if there is none.

    Raises:
        CheckpointError: If it is damaged, or lacks the names of its classes.
    """
    if not (folder / HEAD_FILE).is_file():
        return None
    try:
        classes = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / HEAD_FILE} lacks the names of its classes ({CLASSES_FILE}: {one_line(error)}): export it again."
        ) from error
    head = read_head(folder / HEAD_FILE)
    if len(classes) != len(head.bias):
        raise CheckpointError(
            f"{folder}: {CLASSES_FILE} names {len(classes)} classes and {HEAD_FILE} has {len(head.bias)}: export it again."
        )
    return NamedHead(head, tuple(classes))


def read_head(path: Path, allow_pickle: bool = False) -> LinearHead:
    """Reads a linear classifier, whoever wrote it: a weight (classes, inputs) and, if it has one, a bias (classes,).

    Arguments:
        allow_pickle: Also read what `torch.save` wrote, tensors only.

    Raises:
        CheckpointError: If the file is missing, damaged or a pickle that is not allowed, holds no such classifier, more
            than one, or values that are not finite.
    """
    state = _tensors(path, allow_pickle)
    places = [place for place in _PLACES if f"{place}weight" in state]
    if len(places) != 1:
        held = ", ".join(list(state)[:4]) or "nothing"
        found = "no classifier" if not places else "several classifiers"
        raise CheckpointError(
            f"{path}: {found} in it (it holds {held}): a head is a file with one weight (classes, width) called "
            f"weight, {' or '.join(f'{place}weight' for place in _PLACES[1:])}, and its bias."
        )
    weight, bias = state[f"{places[0]}weight"], state.get(f"{places[0]}bias")
    if weight.ndim != 2 or not weight.is_floating_point() or (bias is not None and bias.shape != weight.shape[:1]):
        shape = "" if bias is None else f" and bias {tuple(bias.shape)}"
        raise CheckpointError(
            f"{path}: weight {tuple(weight.shape)}{shape} are no linear classifier: (classes, width) and (classes,)."
        )
    bias = torch.zeros(len(weight)) if bias is None else bias
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise CheckpointError(f"{path}: the classifier has values that are not finite: use another file.")
    return LinearHead(weight.float().T, bias.float())


def _tensors(path: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    return canonical(read_pickle(path) if allow_pickle and is_pickle(path) else read_safetensors(path))

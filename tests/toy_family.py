"""A family of models in one file, as another package would bring it: perceptrons on pictures, in a format of their own."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bico.models.files import ModelFiles
from bico.models.sites import Site, Slot
from bico.task_vector import StateDict, added, check_finite

CONFIG, WEIGHTS = "toy.json", "toy.safetensors"


class Perceptron(nn.Module):
    def __init__(self, side: int, width: int, features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(side * side, width), nn.Linear(width, features)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(pixels)))


class ToyModel:
    """A `Perceptron`, frozen; both of its linear maps are sites, and a class's row of the head follows from its name."""

    modality = "picture"
    losses = ("zero-shot",)
    probed = False
    prefixes = ("first.", "second.")
    tokens = 1
    grid = None
    vocabulary = None
    permutations = ()

    def __init__(self, model: Perceptron, side: int, name: str) -> None:
        check_finite(model.named_parameters(), name)
        self.model, self.side, self.name = model.eval().requires_grad_(False), side, name
        self.sites = tuple(
            Site(part, block, "linear", Slot(f"{part}.weight"), Slot(f"{part}.bias"), f"{part}_in",
                 (linear.out_features, linear.in_features))
            for block, (part, linear) in enumerate(model.named_children())
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.model.first.weight.device

    def state(self) -> StateDict:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def trainable(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @contextmanager
    def instrument(self) -> Iterator[dict[str, nn.Module]]:
        yield dict(self.model.named_children())

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        return added(self.state(), vector, alpha)

    def prepare(self, examples: Sequence[Any]) -> Tensor:
        grey = (picture.convert("L").resize((self.side, self.side)) for picture in examples)
        return torch.stack([torch.tensor(list(picture.tobytes())).float() / 255 for picture in grey])

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows))

    def mask(self, inputs: Tensor) -> None:
        return None

    def head(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) for name in class_names]
        size = self.model.second.out_features
        rows = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=1).to(self.device)

    def features(self, inputs: Tensor) -> Tensor:
        return self.model(inputs.to(self.device))

    def logits(self, inputs: Tensor, head: Tensor) -> Tensor:
        return 10 * self.features(inputs) @ head.T

    def loss(self, inputs: Tensor, labels: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(inputs, head), labels.to(self.device), reduction="sum")


class ToyFamily:
    """The entry in the table."""

    name = "toy"
    library = "toys"
    distributions = ()
    references = None
    folder_format = f"{CONFIG} beside {WEIGHTS}"
    hub_patterns = (CONFIG, WEIGHTS)
    weights_note = f"`{WEIGHTS}` are the whole weights, as toys have them"
    baseline = "zero-shot"

    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        files = (folder / CONFIG, folder / WEIGHTS)
        return ModelFiles(ref, self.name, files[1], files, folder.resolve())

    def load(self, files: ModelFiles, device: Any) -> ToyModel:
        shape = json.loads((files.folder / CONFIG).read_text())
        model = Perceptron(**shape)
        model.load_state_dict(load_file(files.weights))
        return ToyModel(model.to(device), shape["side"], files.ref)

    def save(self, model: ToyModel, files: ModelFiles, folder: Path) -> None:
        shutil.copyfile(files.folder / CONFIG, folder / CONFIG)
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.state().items()}, folder / WEIGHTS)


FAMILY = ToyFamily()


def write_toy(folder: Path, seed: int, side: int = 8, width: int = 24, features: int = 12) -> Path:
    """Writes a model with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    shape = {"side": side, "width": width, "features": features}
    (folder / CONFIG).write_text(json.dumps(shape))
    save_file(Perceptron(**shape).state_dict(), folder / WEIGHTS)
    return folder

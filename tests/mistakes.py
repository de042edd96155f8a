"""A folder to make mistakes in, and the damaged files of docs/errors.md (`tests.errors_table`)."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bico.calibration.pack import Pack, PackedDraw, PackedModel
from bico.data.pairs import get_pairs
from bico.data.reading import make_reading
from bico.models import zoo
from bico.models.clip.family import CONFIG, WEIGHTS
from bico.models.encoder.family import ENCODER
from bico.models.files import ModelFiles
from flows.config import TransferConfig, make_config, read_config
from flows.planning.plan import make_plan
from flows.settings import Settings
from storage.arrays import write_arrays
from storage.artefacts import ArtefactStore
from storage.manifest import MANIFEST
from tests.releases import write_release
from tests.tiny_t5 import WORDS, write_t5


class Here:
    """A folder to make mistakes in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "home"

    def release(self, name: str = "a", **shape: int) -> Path:
        folder = self.path / name
        return folder if folder.exists() else write_release(folder, seed=1, **shape)

    def text(self, name: str = "t5", words: list[str] = WORDS) -> Path:
        folder = self.path / name
        return folder if folder.exists() else write_t5(folder, seed=1, words=words)

    def yaml(self, text: str) -> None:
        (self.path / "run.yaml").write_text(text)
        read_config(self.path / "run.yaml", {})

    def config(self, **changes: object) -> TransferConfig:
        values = {"source": str(self.release("a")), "target": str(self.release("a")), "tasks": ["digits"]}
        return TransferConfig(**values | {"samples": [4], "methods": ["bico"], "out": self.path / "out"} | changes)

    def config_checked(self, **changes: object) -> None:
        make_config({"source": "x", "target": "y", "tasks": ["digits"]} | changes, "bico transfer")

    def plan(self, **changes: object) -> None:
        make_plan(self.config(**changes), Settings(home=self.home, device="cpu"))

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def store(self) -> ArtefactStore:
        return ArtefactStore(self.path / "store")

    def changed(self, **tensors: torch.Tensor) -> Path:
        """A release in which some weights are others."""
        release = self.release("changed")
        state = load_file(release / WEIGHTS)
        save_file(state | {name.replace("__", "."): t for name, t in tensors.items()}, release / WEIGHTS)
        return release

    def expert(self, change: Callable[[torch.Tensor], torch.Tensor], prefix: str = "") -> Path:
        """A checkpoint of the release, with every tensor changed."""
        state = load_file(self.release("a") / WEIGHTS)
        save_file({prefix + name: change(t.float()) for name, t in state.items()}, self.path / "e.safetensors")
        return self.path / "e.safetensors"

    def two_sets(self) -> Path:
        both = load_file(self.expert(lambda t: t + 0.1, "model.")) | load_file(self.expert(lambda t: t + 0.2, "ema."))
        save_file(both, self.path / "e.safetensors")
        return self.path / "e.safetensors"

    def without_embedding(self) -> Path:
        path = self.text() / "model.safetensors"
        state = load_file(path)
        state["lm_head.weight"] = state.pop("shared.weight")
        save_file(state, path, {"format": "pt"})
        return path.parent


@dataclass(frozen=True)
class Mistake:
    """One bad input."""

    group: str
    what: str
    """As the user would put it."""
    make: Callable[[Here], object]


def _code() -> bytes:
    class Bomb:
        def __reduce__(self) -> tuple:
            return print, ("code in a pickle was run",)

    return pickle.dumps(Bomb(), protocol=2)


def _saved(content: object) -> Callable[[Here], Path]:
    def save(here: Here) -> Path:
        torch.save(content, here.path / "x.pt")
        return here.path / "x.pt"

    return save


def _safetensors(here: Here, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, here.path / "x.safetensors")
    return here.path / "x.safetensors"


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def _table(here: Here, classes: list[str] | None = None, **columns: list) -> Path:
    """Both splits alike; labels have a list of classes, if there is one, as a cast leaves them: unseen."""
    folder = here.path / "flowers"
    folder.mkdir()
    for split in ("train", "test"):
        part = datasets.Dataset.from_dict(columns)
        if classes:
            features = part.features | {"label": datasets.ClassLabel(names=classes)}
            part = datasets.Dataset(part.data.table, info=datasets.DatasetInfo(features=datasets.Features(features)))
        part.to_parquet(folder / f"{split}.parquet")
    return folder


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def _built(here: Here) -> ArtefactStore:
    store = here.store()
    store.get_or_create("maps-1", lambda folder: (folder / "data").write_text("abc"))
    return store


def _damaged(here: Here, name: str, content: str) -> None:
    _built(here)
    here.file(f"store/final/maps-1/{name}", content)
    here.store().folder("maps-1")


def _newer(here: Here) -> None:
    _built(here)
    path = here.path / "store/final/maps-1" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    here.store().folder("maps-1")


def _configuration(here: Here, **vision: int) -> Path:
    release = here.release("odd")
    content = json.loads((release / CONFIG).read_text())
    content["model_cfg"]["vision_cfg"] |= vision
    (release / CONFIG).write_text(json.dumps(content))
    return release


def _other_weights(here: Here) -> None:
    model = here.path / "zoo" / "mini-a"
    model.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, model / WEIGHTS)
    zoo.verify(model, "0" * 64)


def _head(here: Here, classes: int, width: int) -> Path:
    save_file({"weight": torch.ones(classes, width)}, here.path / "head.safetensors")
    return here.path / "head.safetensors"


def _pack(file: str) -> str:
    """The index of a pack with one file."""
    draw = PackedDraw("birds", "", 0, "random", {9: 9}, ())
    models = PackedModel("old", ""), PackedModel("new", "")
    return Pack(*models, ("bico",), "partial", 128, (draw,), {"k": {file: ""}}).to_json()


def _pairs(here: Here, rows: str, **reading: str) -> None:
    for split in ("train", "test"):
        here.file(f"faq/{split}.csv", rows)
    read = get_pairs("faq", {"faq": here.path / "faq"}, make_reading(reading, "options"))
    for split in ("train", "test"):
        len(read.open(split))


def _encoder(here: Here) -> ModelFiles:
    """Of an encoder, what is looked at before any weights are."""
    folder = here.file("bert/config.json", '{"model_type": "bert", "architectures": ["BertModel"]}').parent
    return ModelFiles("bert", ENCODER.name, folder / "config.json", (), folder)


def _arrays(here: Here) -> Path:
    write_arrays(here.path / "arrays", {"a": torch.ones(3)})
    return here.path / "arrays"

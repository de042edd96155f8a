"""The core of `bico` lives on torch, NumPy, SciPy, safetensors and jaxtyping alone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ["torch", "numpy", "scipy", "safetensors", "jaxtyping"]
MORE = [
    "bico.data.drawing.backgrounds", "bico.data.drawing.canvas", "bico.data.drawing.strokes",  # pillow
    "bico.data.embedded", "bico.data.tasks",  # pillow
    "bico.models.clip.loading", "bico.models.clip.permutations", "bico.models.clip.published", "bico.models.clip.vit",  # open_clip
    "bico.models.decoder.loading", "bico.models.encoder.classifier", "bico.models.encoder.loading",  # transformers
    "bico.models.encoder.sequence_head",  # transformers
    "bico.models.muted", "bico.models.t5.encoder", "bico.models.t5.loading",  # transformers
]  # fmt: skip
"""Modules that need more, each for what its line says."""

BARE = """
import re, sys
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

allowed, todo = set(), {core!r}
while todo:  # what the core cannot do without, and what that cannot do without
    name = plain(todo.pop())
    if name in allowed:
        continue
    try:
        todo += [re.match(r"[\\w.-]+", line).group() for line in requires(name) or [] if "extra ==" not in line]
    except PackageNotFoundError:  # of another platform
        continue
    allowed.add(name)
others = {top for top, homes in packages_distributions().items() if not {plain(home) for home in homes} & allowed}
others -= {"bico"} | sys.stdlib_module_names

class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"{name} is not of the core", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in others]:
    del sys.modules[name]
sys.meta_path.insert(0, Bare())
"""
TRIED = """
import importlib
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert "is not of the core" in str(error), error
    else:
        print(name)
"""
CARRIED = """
import torch
from torch import nn
import bico

torch.manual_seed(0)
loss = nn.CrossEntropyLoss(reduction="sum")
narrow = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
wide = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
source, target = bico.wrap(narrow, loss), bico.wrap(wide, loss)
tau = {name: torch.randn_like(tensor) for name, tensor in source.state().items()}
samples = bico.batches([(torch.randn(40, 6), torch.arange(40) % 4)])
for method in ("bico", "theseus", "gradient-only", "few-shot"):
    moved = bico.transfer(tau, source, target, samples, method=bico.get_method(method))
    assert set(moved) == set(target.state()) and all(change.any() for change in moved.values())
print("carried")
"""


def bare(code: str) -> str:
    """Runs code where nothing can be imported that is not of the core, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", BARE.replace("{core!r}", repr(CORE)) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def importable(names: list[str]) -> list[str]:
    return bare(TRIED.format(names=names)).split()


def modules() -> list[str]:
    files = sorted((ROOT / "bico").rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def test_nothing_else_can_be_imported_there() -> None:
    heavy = ["tqdm", "matplotlib", "PIL", "datasets", "sklearn", "open_clip", "transformers", "yaml", "pydantic"]
    assert importable([*heavy, "torch", "torchvision"]) == ["torch"]


def test_the_core_is_everything_but_families_and_data() -> None:
    assert importable(modules()) == [name for name in modules() if name not in MORE]
    assert set(MORE) < set(modules()) and len(modules()) > 3 * len(MORE)


def test_a_task_vector_is_carried_there() -> None:
    assert bare(CARRIED) == "carried\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert bare("import bico\nprint([name for name in ('torch', 'scipy', 'numpy') if name in sys.modules])") == "[]\n"

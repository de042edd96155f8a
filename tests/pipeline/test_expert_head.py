"""An expert with a classifier of its own: the source's loss is taken in it, the expert measured by it, the target spared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.schemas import State
from prefect.logging import disable_run_logger
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bico.calibration.budget import Budget
from bico.calibration.signals import Signal
from bico.errors import CheckpointError, ConfigError
from bico.models.clip.family import WEIGHTS
from bico.models.clip.vit import ClipViT
from flows.config import TransferConfig
from flows.planning.plan import Plan, make_plan
from flows.settings import Settings
from flows.single import evaluate_one, plan_evaluate
from storage.checkpoints import save_state
from tasks.artefacts import read_accuracy
from tasks.calibration import Calibration
from tasks.collect import Pass
from tasks.evaluate import evaluate_model
from tasks.inputs import open_head, open_model, open_split
from tests.flow_setup import Bench
from tests.releases import write_release
from tests.tiny import pictures

EXPERT = "expert.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases of other widths, and an expert with a head of ten classes."""
    root = tmp_path_factory.mktemp("own-head")
    write_release(root / "a", 1)
    state = load_file(root / "a" / WEIGHTS)
    save_file({name: tensor + 0.01 * torch.randn_like(tensor.float()) for name, tensor in state.items()}, root / EXPERT)
    write_release(root / "b", 2, embed=12)
    torch.manual_seed(7)
    save_file({"fc.weight": torch.randn(10, 8), "fc.bias": torch.randn(10)}, root / "head.safetensors")
    return root


def plan(folder: Path, **changes: Any) -> Plan:
    about = {"source": str(folder / "a"), "target": str(folder / "b"), "tasks": ["digits"], "methods": ["bico"]}
    about |= {"samples": [4], "baselines": False, "expert": folder / EXPERT, "out": folder / "out"}
    about |= {"expert_head": folder / "head.safetensors"}
    return make_plan(TransferConfig(**about | changes), Settings(home=folder / "home", device="cpu"))


def calibration(made: Plan) -> Calibration:
    return Calibration(made.source, made.target, made.tasks["digits"], (Budget(4, size=4),), 0)


def test_a_classifier_scores_features_as_a_linear_layer_does(source: ClipViT) -> None:
    layer = torch.nn.Linear(8, 5).double()
    head = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    images, labels = pictures(6), torch.arange(6) % 5
    scores = layer(source.features(images))
    assert_close(source.logits(images, head), scores)
    assert_close(source.loss(images, labels, head), torch.nn.functional.cross_entropy(scores, labels, reduction="sum"))


def test_the_source_gets_the_classifier_and_the_target_keeps_its_own_head(folder: Path) -> None:
    with_head, without = plan(folder), plan(folder, expert_head=None)
    task = with_head.tasks["digits"]
    assert open_head(with_head.source, "cpu", task).shape == (10, 9)  # the biases in the last column
    theirs = open_head(with_head.target, "cpu", task)
    assert theirs.shape == (10, 12) and torch.equal(theirs, open_head(with_head.target, "cpu", without.tasks["digits"]))
    signal = Signal.OUTPUT_GRAD
    keys = {Pass(calibration(made), (signal,), None).key(signal) for made in (with_head, without)}
    assert len(keys) == 2  # what is taken in another head is another artefact
    assert task.bare == without.tasks["digits"]


def test_the_expert_is_measured_by_its_classifier(folder: Path) -> None:
    made = plan(folder)
    task = made.tasks["digits"]
    with disable_run_logger():
        done = evaluate_model.fn(made.space, made.source, task, None, 1.0, 40)
    done = done.data if isinstance(done, State) else done
    inputs, labels = open_split(made.source, "cpu", task, "test").batch(torch.arange(40))
    scores = open_model(made.source, "cpu").logits(inputs, open_head(made.source, "cpu", task))
    assert read_accuracy(done.ref) == pytest.approx(100 * float((scores.argmax(1) == labels).double().mean()))


@pytest.mark.parametrize(
    ("shape", "words"),
    [((9, 8), "has 9 classes and task 'digits' 10"), ((10, 16), "reads 16 features and .* gives 8")],
)
def test_a_classifier_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, shape: tuple[int, int], words: str
) -> None:
    save_state(tmp_path / "h.safetensors", {"weight": torch.ones(shape)})
    with pytest.raises(ConfigError, match=words):
        plan(folder, expert_head=tmp_path / "h.safetensors")
    settings = Settings(home=folder / "home", device="cpu")
    with pytest.raises(ConfigError, match=words):
        plan_evaluate(str(folder / "a"), ["digits"], [], None, settings, head=tmp_path / "h.safetensors")


def test_a_classifier_without_an_expert_or_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="give --expert too"):
        plan(folder, expert=None)
    with pytest.raises(CheckpointError, match="check the path"):
        plan(folder, expert_head=folder / "none.safetensors")


def test_a_whole_transfer_with_a_classifier_of_the_experts_own(folder: Path, bench: Bench) -> None:
    about = {"source": str(folder / "a"), "target": str(folder / "b"), "expert": folder / EXPERT, "oracle": False}
    done = bench.run(**about, expert_head=folder / "head.safetensors", methods=["bico", "bico+head"], samples=[8])
    by_method = {str(row.method): row.accuracy for row in done.rows}
    settings = bench.settings
    (row,) = evaluate_one(
        str(folder / "a"), ["digits"], [], folder / EXPERT, 30, settings, head=folder / "head.safetensors"
    )["rows"]
    assert by_method["expert"] == row["accuracy"] and {"bico", "bico+head", "zero-shot"} <= by_method.keys()

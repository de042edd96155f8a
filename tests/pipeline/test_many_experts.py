"""Several experts in one run: one calibration for all of a task."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bico.errors import ConfigError
from bico.models.loading import load, resolve
from flows.config import TransferConfig
from flows.plan import make_plan
from flows.repeat import command_of
from tests.flow_setup import Bench


def write_expert(bench: Bench, name: str, factor: float) -> Path:
    """A checkpoint that is the source, a little larger."""
    state = load(resolve(str(bench.releases["a"]))).state()
    save_file({key: value * factor for key, value in state.items()}, bench.folder / name)
    return bench.folder / name


def test_experts_of_one_task_share_its_calibration_and_are_told_apart(ran: Bench) -> None:
    files = [write_expert(ran, "early.safetensors", 1.05), write_expert(ran, "late.safetensors", 1.2)]
    asked = {"oracle": False, "methods": ["bico"], "samples": [8], "rivals": "none", "finetune": None}
    several = {"experts": [f"digits={file}" for file in files], **asked}
    result = ran.run(**several, export="all")
    alone = ran.run(experts=[str(files[1])], **asked)

    # One pass through each model serves both; what is of one expert is made once for each.
    counts = {stage: sum(found.values()) for stage, found in result.stages.items()}
    assert counts["collect-activations"] == counts["collect-gradients"] == 1
    assert (counts["adopt-expert"], counts["transfer"]) == (2, 2)
    assert result.stages["transfer"]["computed"] == 2 and alone.stages["transfer"] == {"computed": 0, "cached": 1}

    names = ["digits@early", "digits@late"]
    assert {row.task for row in result.rows} == {*names}
    theirs = {str(row.method): row.accuracy for row in result.rows if row.task == names[1]}
    assert theirs == {str(row.method): row.accuracy for row in alone.rows}
    assert {row.task for row in alone.rows} == {"digits"}
    assert {*result.outputs["models"]} == {f"{name}-bico-n8-seed0" for name in names}
    for name, folder in result.outputs["models"].items():
        assert name.split("-bico")[0] in (Path(folder) / "README.md").read_text()
    vectors = [load_file(Path(folder) / "task-vector.safetensors") for folder in result.outputs["models"].values()]
    pairs = [(vectors[0][key], vectors[1][key]) for key in vectors[0]]
    assert all((4 * small - large).norm() <= 0.1 * large.norm() for small, large in pairs)  # changes of 5 % and 20 %
    page = Path(result.outputs["page"]).read_text()
    assert "digits@late" in page and "experts digits@early=" in page


def test_experts_are_given_by_task_or_to_the_only_one(bench: Bench) -> None:
    def named(experts: object, **more: object) -> dict[str, Path | None]:
        config = TransferConfig(source="zoo:mini-a", target="zoo:mini-b", experts=experts, **more)
        assert TransferConfig(**config.model_dump(mode="json")) == config and not config.oracle
        return {name: one.expert for name, one in config.carried.items()}

    assert named({"digits": "a.pt", "lamps": ["x/model.pt", "y/model.pt"]}) == {
        "digits": Path("a.pt"),
        "lamps@x-model": Path("x/model.pt"),
        "lamps@y-model": Path("y/model.pt"),
    }
    assert named(["x/lr=1.pt", "b.pt"], tasks=["digits"]).keys() == {"digits@lr-1", "digits@b"}
    command = command_of(bench.config(experts=["digits=a.pt", "digits=b.pt"], finetune=None))
    assert "--expert digits=a.pt --expert digits=b.pt" in command
    assert "--expert a.pt" in command_of(bench.config(expert="a.pt", finetune=None))
    for experts, tasks, why in (
        (["a.pt", "b.pt"], ["digits", "lamps"], "say --expert TASK=FILE"),
        (["digit=a.pt"], ["digits"], "did you mean 'digits'"),
        (["digits=a.pt"], ["digits", "lamps"], "Task 'lamps' has no expert"),
        (["a.pt", "digits=a.pt"], ["digits"], "given twice"),
    ):
        with pytest.raises(ConfigError, match=why):
            named(experts, tasks=tasks)
    files = [write_expert(bench, name, factor) for name, factor in (("a.safetensors", 1.05), ("b.safetensors", 1.2))]
    with pytest.raises(ConfigError, match="of one expert, but 2 are carried"):
        make_plan(bench.config(experts=list(map(str, files)), expert_head="h.pt", finetune=None), bench.settings)

"""Several experts in one run, put together afterwards, or carried without the data: one calibration serves them all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bico.errors import ConfigError
from bico.methods.spec import Spec
from bico.models.loading import load, resolve
from bico.task_vector.merging import Merging, merged
from flows.config import TransferConfig
from flows.merge import merge_flow, plan_merge, task_of
from flows.packs import calibrate_flow, plan_pack, plan_packed, transfer_packed_flow
from flows.planning.plan import make_plan
from flows.records.repeat import command_of
from tasks.inputs import TaskRef
from tasks.pack import read_pack
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

    # Put together: each strength of a plain sum is found in the model that is written, which loads.
    run, out = Path(result.outputs["table"]).parent, ran.folder / "merged"
    done = merge_flow([run], out, Merging.TIES, 0.5, None, ran.settings, 30)
    chosen = [row["strength"] for row in done["rows"]]
    whole = load_file(out / "merged/task-vector.safetensors")
    by_hand = merged(vectors, chosen, Merging.TIES, 0.5)
    assert all(torch.equal(whole[key], by_hand[key]) for key in by_hand)
    zero_shot = next(row.accuracy for row in alone.rows if str(row.method) == "zero-shot")
    carried = {row.task: row.accuracy for row in result.rows if str(row.method) == "bico"}
    assert {row["task"]: row["alone"] for row in done["rows"]} == carried
    assert {row["before"] for row in done["rows"]} == {zero_shot} and json.loads((out / "merge.json").read_text())
    assert "2 carried experts put together by TIES" in (out / "merged/README.md").read_text()
    assert load(resolve(str(out / "merged"))).state().keys() == load(resolve(str(ran.releases["b"]))).state().keys()
    for places, strengths, why in (
        ([run / "models/digits@late-bico-n8-seed0"], None, "1 model was found"),
        ([run], [1.0, 1.0, 1.0], "3 for 2 models"),
        ([ran.folder], None, "neither a folder that a transfer wrote"),
    ):
        with pytest.raises(ConfigError, match=why):
            plan_merge(places, out, strengths, ran.settings)


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


def test_a_merge_reads_tasks_of_several_folders(releases: dict[str, Path], tmp_path: Path) -> None:
    for name in ("marks", "signs"):
        for split in ("train", "test"):
            for kind in ("dark", "light"):
                (place := tmp_path / name / split / kind).mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(place / "0.png")
    experts = [f"{name}=x/{name}.pt" for name in ("marks", "signs")]
    about = {"source": str(releases["a"]), "target": str(releases["b"]), "experts": experts}
    config = TransferConfig(**about, data=[tmp_path / "marks", tmp_path / "signs"])
    assert task_of(config, "signs", load(resolve(about["target"]))).open().sizes == {"train": 2, "test": 2}


def test_a_pack_gives_the_vectors_of_the_run_that_had_the_data(ran: Bench) -> None:
    expert = write_expert(ran, "birds.safetensors", 1.1)
    same = {"methods": ["bico:strength=effect", "theseus"], "samples": [4, 8], "oracle": False, "rivals": "none"}
    there = ran.run(**same, experts=[f"digits={expert}"], export="all", finetune=None)
    config = ran.config(**same, finetune=None, out=ran.folder / "pack")

    with pytest.raises(
        ConfigError, match=r"^4 samples are too few for a pack: .* may keep 64 directions.* --small-pack"
    ):
        plan_pack(config, ran.settings)  # before any map is solved
    enough = config.model_copy(update={"rank": 3, "methods": config.methods[:1]})
    assert plan_pack(enough, ran.settings).maps
    made = calibrate_flow(config, ran.settings, ran.folder / "pack", small=True)
    assert not any(found["computed"] for found in made["stages"].values())

    # Nothing of the data: no place, class, index or label; what lies there is what the index names.
    moved = shutil.move(ran.folder / "pack", ran.folder / "moved")
    pack, text = read_pack(Path(moved)), "".join(p.read_text() for p in Path(moved).rglob("*.json"))
    assert str(ran.folder) not in text and "indices" not in text and "zero" not in text
    kinds = {key.rpartition("-")[0] for key in pack.files}
    assert (
        kinds
        == {"procrustes", "collect-scales"}
        == {path.name.rpartition("-")[0] for path in (Path(moved) / "artefacts").iterdir()}
    )

    # Elsewhere: another store, and no data that could be read.
    elsewhere = ran.settings.model_copy(
        update={"home": ran.folder / "elsewhere", "store": str(ran.folder / "elsewhere/store")}
    )
    given = {
        "source": str(ran.releases["a"]),
        "target": str(ran.releases["b"]),
        "methods": same["methods"],
        "samples": [4, 8],
        "experts": [str(expert)],
        "out": ran.folder / "carried",
    }
    with pytest.MonkeyPatch.context() as no_data:
        no_data.setattr(TaskRef, "open", lambda self: pytest.fail("the data were read"))
        result = transfer_packed_flow(Path(moved), given, elsewhere)
    models = result["outputs"]["models"]
    assert result["rows"] == [] and models.keys() == there.outputs["models"].keys() and len(models) == 4
    for name, folder in models.items():
        ours, theirs = (Path(place) / "task-vector.safetensors" for place in (folder, there.outputs["models"][name]))
        assert ours.read_bytes() == theirs.read_bytes() and not ours.samefile(theirs)
        assert "not measured" in (Path(folder) / "README.md").read_text()

    for changes, why in (
        ({"source": given["target"]}, "is not the model that the pack was made with"),
        ({"samples": [5]}, "the pack of digits has 4, 8"),
        ({"seeds": [7]}, "the pack of digits has 0"),
        ({"methods": ["gradfix"]}, "cannot be carried with this pack"),
        ({"methods": ["bico+head"]}, "cannot be carried with this pack"),
        ({"experts": [f"lamps={expert}"]}, "not of task 'lamps'"),
    ):
        with pytest.raises(ConfigError, match=why):
            plan_packed(Path(moved), given | changes, elsewhere)
    file = next(path for path in (Path(moved) / "artefacts").rglob("*") if path.is_file())
    file.write_bytes(b"x")
    fresh = elsewhere.model_copy(update={"store": str(ran.folder / "fresh")})
    with pytest.raises(ConfigError, match="missing or damaged"):
        transfer_packed_flow(Path(moved), given, fresh)
    with pytest.raises(ConfigError, match="learns from the samples or from gradients"):
        plan_pack(config.model_copy(update={"methods": [Spec.parse("gradfix")]}), ran.settings)

"""A LoRA adapter in an expert's place: planned, told, and stored as the weights that it makes of its base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.schemas import State
from prefect.logging import disable_run_logger
from torch.testing import assert_close

from bico.adapters.adapter import Adapter
from bico.adapters.dense import as_task_vector
from bico.adapters.factors import LowRank
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.folder import CONFIG
from bico.adapters.names import locate
from bico.errors import CheckpointError
from flows.config import Settings, TransferConfig
from flows.plan import Plan, make_plan
from tasks.artefacts import read_task_vector
from tasks.finetune import adopt_expert
from tasks.inputs import open_model
from tests.releases import write_release

AT = "visual.transformer.resblocks"


def write_lora(folder: Path, path: str = f"{AT}.0.mlp.c_fc") -> Path:
    torch.manual_seed(3)
    update = LowRank(torch.randn(2, 16), 0.02 * torch.randn(64, 2), 4.0)
    return write_adapter(Adapter("made", {path: update}, {"peft_type": "LORA"}), folder, [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapter")
    write_release(root / "a", 1)
    write_release(root / "b", 2, embed=12)
    write_lora(root / "lora")
    return root


def plan(folder: Path, expert: Path, **changes: Any) -> Plan:
    about = {"source": str(folder / "a"), "target": str(folder / "b"), "tasks": ["digits"], "methods": ["bico"]}
    about |= {"samples": [4], "baselines": False, "expert": expert, "out": folder / "out"}
    return make_plan(TransferConfig(**about | changes), Settings(home=folder / "home", device="cpu"))


def test_its_base_with_it_merged_in_is_the_expert(folder: Path) -> None:
    made = plan(folder, folder / "lora")
    assert any("a LoRA adapter of 1 modules, merged into" in note for note in made.notes)
    with disable_run_logger():
        done = adopt_expert.fn(made.space, made.source, str(folder / "lora"))
        again = adopt_expert.fn(made.space, made.source, str(folder / "lora"))
        config = json.loads((folder / "lora" / CONFIG).read_text())
        stronger = folder / "stronger"
        write_lora(stronger)
        (stronger / CONFIG).write_text(json.dumps(config | {"lora_alpha": 8}))
        other = adopt_expert.fn(made.space, made.source, str(stronger))
    refs = [(one.data if isinstance(one, State) else one).ref for one in (done, again, other)]
    assert refs[0].key == refs[1].key != refs[2].key
    model = open_model(made.source, "cpu")
    expected = as_task_vector(locate(read_adapter(folder / "lora"), model))[f"{AT}.0.mlp.c_fc.weight"]
    for ref, factor in ((refs[0], 1), (refs[2], 2)):
        vector = read_task_vector(ref, model.state())
        assert_close(vector[f"{AT}.0.mlp.c_fc.weight"], factor * expected, atol=1e-6, rtol=1e-4)


def test_what_is_no_adapter_of_the_source_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has a LoRA of visual.blocks.0.fc .* has no such module"):
        plan(folder, write_lora(tmp_path / "renamed", "visual.blocks.0.fc"))
    other = write_lora(tmp_path / "ia3")
    (other / CONFIG).write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match="of type IA3"):
        plan(folder, other)

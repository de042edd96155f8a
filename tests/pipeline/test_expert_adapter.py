"""A LoRA adapter in an expert's place: planned, told, and stored as the weights that it makes of its base."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.schemas import State
from prefect.logging import disable_run_logger
from safetensors.torch import save_file
from torch.testing import assert_close

from bico.adapters.adapter import Adapter
from bico.adapters.dense import as_task_vector
from bico.adapters.factors import LowRank
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.folder import CONFIG
from bico.adapters.names import locate
from bico.errors import CheckpointError
from bico.methods import Pair
from flows.config import TransferConfig
from flows.planning.adapters import adapter_of, carried_by
from flows.planning.plan import Plan, make_plan
from flows.settings import Settings
from tasks.adapters import carry_adapter
from tasks.artefacts import carried_adapter, read_task_vector, read_told, read_vector
from tasks.evidence import EvidenceRefs, StoredEvidence
from tasks.export import export_adapter
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


@pytest.mark.parametrize(("method", "rank"), [("naive", None), ("cross-lora", None), ("cross-lora", 1)])
def test_an_adapter_is_written_at_its_strength(folder: Path, tmp_path: Path, method: str, rank: int | None) -> None:
    """Copied in its factors, or as near as its rank comes to what another method makes; measured is what is written."""
    write_release(tmp_path / "same", 5)
    target = tmp_path / "same" if method == "naive" else folder / "b"
    about = {"methods": [method], "target": str(target), "write": "adapter", "adapter_rank": rank}
    made = plan(folder, folder / "lora", **about)
    ((_spec, variant),) = made.methods.items()
    with disable_run_logger():
        expert = adopt_expert.fn(made.space, made.source, str(folder / "lora"))
        expert = (expert.data if isinstance(expert, State) else expert).ref
        done = carry_adapter.fn(made.space, *carried_by(made, "digits", expert, variant, EvidenceRefs()))
    ref = (done.data if isinstance(done, State) else done).ref
    assert ref.key == adapter_of(made, "digits", expert, variant, EvidenceRefs()).key
    opened = open_model(made.target, "cpu")
    vector = read_vector(ref)
    for strength in (1.0, 0.5):
        at = tmp_path / f"{strength}"
        export_adapter(made.space, made.target, ref, strength, at, "b", lambda adapter: adapter.config["r"] and "card")
        written = read_adapter(at)
        found = as_task_vector(locate(written, opened))
        assert_close(found[f"{AT}.0.mlp.c_fc.weight"], strength * vector[f"{AT}.0.mlp.c_fc.weight"])
        assert written.base == "b" and (at / "README.md").read_text() == "card"
    kept, _ = read_told(ref)
    scales = {update.scale for path, update in written.modules.items() if vector[f"{path}.weight"].any()}
    assert scales == {2.0} and {update.rank for update in written.modules.values()} == {rank or 2}
    whole = variant.method.transport(  # type: ignore[union-attr]
        read_task_vector(expert, open_model(made.source, "cpu").state()),
        Pair.of(open_model(made.source, "cpu"), opened),
        StoredEvidence(made.space, EvidenceRefs()),
    )[f"{AT}.0.mlp.c_fc.weight"]
    share = float(vector[f"{AT}.0.mlp.c_fc.weight"].square().sum() / whole.square().sum())
    assert share == pytest.approx(1 if rank is None else min(kept.values()), abs=1e-3)
    assert rank is None or share < 0.999


def test_a_full_fine_tune_becomes_an_adapter_of_a_rank(folder: Path, tmp_path: Path) -> None:
    source = open_model(plan(folder, folder / "lora").source, "cpu")
    state = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in source.state().items()}
    save_file(state, tmp_path / "whole.safetensors")
    made = plan(
        folder, tmp_path / "whole.safetensors", methods=["cross-lora"], write="adapter", adapter_rank=3
    )  # fmt: skip
    ((_, variant),) = made.methods.items()
    with disable_run_logger():
        expert = adopt_expert.fn(made.space, made.source, str(tmp_path / "whole.safetensors"))
        expert = (expert.data if isinstance(expert, State) else expert).ref
        done = carry_adapter.fn(made.space, *carried_by(made, "digits", expert, variant, EvidenceRefs()))
    ref = (done.data if isinstance(done, State) else done).ref
    kept, notes = read_told(ref)
    assert 0 < min(kept.values()) < 1 and re.search(r"Rank 3 keeps [\d.]+ % of the energy of the change", notes[0])
    assert {update.rank for update in read_adapter(carried_adapter(ref)).modules.values()} == {3}

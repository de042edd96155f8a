"""`bico rehome` of models that are read block by block: the same adapter and the same measures, and when it is done."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from bico.errors import CheckpointError, ConfigError
from flows.commands.rehome_cli import values_of
from flows.config import TransferConfig
from flows.planning import blockwise
from flows.planning.estimate import forecast
from flows.planning.plan import make_plan
from flows.settings import Settings
from tests.command import run
from tests.tiny_adapters import save_lora
from tests.tiny_completions import write_completions
from tests.tiny_decoder import write_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what PEFT calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blockwise")
    old = write_decoder(root / "old", 1, dtype=torch.bfloat16)
    write_decoder(root / "new", 2, "qwen2", dtype=torch.bfloat16, width=24, heads=6, keys=3, layers=3, hidden=40)
    base = AutoModelForCausalLM.from_pretrained(old)
    about = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    save_lora(base, root / "far", **about)
    about["lora_alpha"] = 1
    save_lora(base, root / "lora", **about)
    save_lora(base, root / "dora", use_dora=True, **about)
    write_completions(root / "choose", few=True, train=24, test=8)
    parts = [(root / "choose" / f"{split}.jsonl").read_text().strip() for split in ("train", "test")]
    (root / "texts.jsonl").write_text("\n".join(parts))
    return root


def asked(folder: Path, given: dict[str, Any] | None = None, expert: str = "lora", **more: Any) -> TransferConfig:
    about = {"tasks": ["texts"], "samples": [8], "methods": ["bico"], "out": folder / "out"} | (given or {})
    models = str(folder / "old"), str(folder / "new")
    return TransferConfig(**values_of(folder / expert, *models, about, [folder / "texts.jsonl"], **more))


def test_what_is_written_and_measured_is_that_of_models_in_memory(
    folder: Path,
    api: None,
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BICO_DASK_SCHEDULER", scheduler)
    found: dict[str, Any] = {}
    for how in ("never", "always"):
        monkeypatch.setenv("BICO_HOME", str(tmp_path / how))
        if how == "always":  # a model in memory would be an error
            monkeypatch.setattr("bico.models.decoder.loading.load", None)
        told = ["rehome", str(folder / "lora"), "--from", str(folder / "old"), "--to", str(folder / "new")]
        told += [
            "--data",
            str(folder / "texts.jsonl"),
            "--samples",
            "8",
            "--batch-size",
            "5",
            "--methods",
            "bico:strength=effect",
        ]
        assert run([*told, "--out", str(tmp_path / f"out-{how}"), "--blockwise", how, "--json"], monkeypatch) == 0
        printed = capsys.readouterr()
        found[how] = json.loads(printed.out)
    assert "there in passing" in printed.err
    whole, by_block = found["never"], found["always"]
    assert by_block["outputs"]["measures"].keys() == whole["outputs"]["measures"].keys()
    for label, numbers in whole["outputs"]["measures"].items():
        measured = by_block["outputs"]["measures"][label]
        if label.endswith("/expert"):  # merged in memory, its update is rounded to bfloat16 before it is added
            assert measured["loss"] == pytest.approx(numbers["loss"], abs=2e-2)
        else:
            assert measured == pytest.approx(numbers, rel=1e-5), label
    ours, theirs = (next(iter(one["outputs"]["models"].values())) for one in (by_block, whole))
    one, other = (load_file(Path(place) / "adapter_model.safetensors") for place in (ours, theirs))
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert float(tensor.norm()) > 0
        assert_close(one[name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()), msg=name)
    pages = [(tmp_path / f"out-{how}" / "results.md").read_text() for how in found]
    assert all("BiCo, strength effect" in page for page in pages)


def test_it_is_chosen_by_what_is_free_and_refused_where_a_model_is_needed_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(how: str, config: TransferConfig, memory: float | None = None) -> Any:
        return make_plan(config, Settings(home=tmp_path / "home", device="cpu", blockwise=how, memory=memory))

    assert not plan("auto", asked(folder)).source.blockwise
    needed = blockwise.bytes_of_whole((plan("auto", asked(folder)).source, plan("auto", asked(folder)).target))
    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder / "new").parameters())
    small = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder / "old").parameters())
    assert needed == 2 * (count + small) + 12 * count
    monkeypatch.setattr(blockwise, "free_bytes", lambda _: needed - 1)
    tight = plan("auto", asked(folder))
    assert tight.source.blockwise and tight.target.blockwise
    assert "are free: they are read block by block (--blockwise never" in capsys.readouterr().err
    assert not plan("never", asked(folder)).source.blockwise
    assert not plan("auto", asked(folder, expert="dora")).source.blockwise
    assert "since block by block" in capsys.readouterr().err
    _, cost = forecast(tight, Settings(home=tmp_path / "home", device="cpu"))
    assert cost.passing > 0 and 0 < cost.seconds < 600 and cost.memory > 10**8
    assert cost.store < 10**7  # no task vector as large as a model

    def refused(match: str, given: dict[str, Any] | None = None, **more: Any) -> None:
        with pytest.raises(ConfigError, match=f"--blockwise always: .*{match}"):
            plan("always", asked(folder, given, **more))

    with pytest.raises(CheckpointError, match="changes block-0 of .* where fine-tuning changes them by less than 0.5"):
        plan("always", asked(folder, expert="far"))
    refused("DoRA", expert="dora")
    refused("give a LoRA adapter", expert="old", rank=4)
    refused("leave --merged out", merged=True)
    refused("'bico[+]tune' needs a model whole", {"methods": ["bico+tune"]})
    refused("leave out --oracle and --rivals", {"rivals": "all"})
    monkeypatch.setattr("bico.models.decoder.family.DecoderFamily.blockwise", False)
    refused("is of the family decoder, and only")

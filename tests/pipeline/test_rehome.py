"""`bico rehome` from nothing but two folders of models, an adapter that PEFT trained, and a file of texts."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from prefect.settings import PREFECT_API_URL
from transformers import AutoModelForCausalLM, AutoTokenizer

from bico.errors import BicoError, ConfigError, MethodError
from bico.evaluation.completions import measure_completions
from bico.last_steps.lora import Lora
from bico.models.decoder.decoder import Decoder
from flows.commands.rehome_cli import values_of
from flows.config import TransferConfig
from flows.planning.plan import make_plan
from flows.settings import Settings
from tests.command import run
from tests.tiny_completions import write_completions
from tests.tiny_decoder import write_decoder

# Of transformers, about what PEFT calls.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
RANK, ALPHA = 4, 8
ROOT = Path(__file__).resolve().parents[2]


def train_lora(base: Path, folder: Path, steps: int = 15) -> Path:
    """A LoRA of all linear maps, trained by PEFT to complete what the file has."""
    made = Decoder(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base))
    texts = [json.loads(line) for line in (folder / "choose" / "train.jsonl").read_text().splitlines()]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    wrapped = get_peft_model(made.model, config)
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.01)
    from bico.data.text import Completion

    inputs = made.prepare([Completion(row["prompt"], row["completion"]) for row in texts])
    for _ in range(steps):
        optimiser.zero_grad()
        (made.loss(inputs, torch.zeros(len(inputs))) / len(inputs)).backward()
        optimiser.step()
    wrapped.save_pretrained(folder / "lora")
    return folder / "lora"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two decoders of one kind: the target wider, deeper, with another number of heads and of keys."""
    root = tmp_path_factory.mktemp("rehome")
    write_decoder(root / "old", 1)
    write_decoder(root / "new", 2, width=24, heads=6, keys=3, layers=3)
    write_completions(root / "choose", few=True)
    parts = [(root / "choose" / f"{split}.jsonl").read_text().strip() for split in ("train", "test")]
    (root / "texts.jsonl").write_text("\n".join(parts))
    train_lora(root / "old", root)
    return root


def asked(folder: Path, given: dict[str, Any] | None = None, expert: str = "lora", **more: Any) -> TransferConfig:
    about = {"tasks": ["texts"], "samples": [16], "methods": ["bico"], "out": folder / "out"} | (given or {})
    return TransferConfig(
        **values_of(folder / expert, str(folder / "old"), str(folder / "new"), about, [folder / "texts.jsonl"], **more)
    )


def test_what_would_change_nothing_or_fits_no_adapter_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    place = Settings(home=tmp_path / "home", device="cpu")

    def refused(match: str, error: type[BicoError], **changes: Any) -> None:
        with pytest.raises(error, match=match):
            make_plan(asked(folder, **changes), place)

    base = AutoModelForCausalLM.from_pretrained(folder / "old")
    get_peft_model(base, LoraConfig(r=RANK, task_type="CAUSAL_LM")).save_pretrained(folder / "untrained")
    refused("changes nothing: every lora_B, or scale, is zero", MethodError, expert="untrained")
    refused("no rank to keep", ConfigError, expert="new")
    refused("'bico[+]tune' leaves what no adapter holds", ConfigError, given={"methods": ["bico+tune"]})
    refused("at strength 0 changes nothing", ConfigError, given={"alpha": 0.0})
    refused("--merged writes whole weights", ConfigError, rank=3, merged=True)
    with pytest.raises(ConfigError, match="Nothing to align the models by"):
        values_of(folder / "lora", "a", "b", {}, [])
    plan = make_plan(asked(folder, {"methods": ["bico:rope=pairs"], "rivals": "all"}), place)
    ranks = [step.r for variant in plan.methods.values() for step in variant.steps if isinstance(step, Lora)]
    assert ranks == [RANK, RANK]
    assert (plan.config.write, plan.config.test_share, plan.loss) == ("adapter", 0.2, "completion")
    assert asked(folder, merged=True).write == "model"
    several = asked(folder).model_dump(exclude={"expert", "prompts"}, exclude_unset=True) | {
        "experts": [str(folder / "lora")]
    }
    assert make_plan(TransferConfig(**several), place).carried["texts"].expert == folder / "lora"
    with pytest.raises(MethodError, match="changes nothing"):
        make_plan(TransferConfig(**several | {"experts": [str(folder / "untrained")]}), place)


def measured(model: Any, base: Path, texts: list[Any]) -> dict[str, float]:
    decoder = Decoder(model, AutoTokenizer.from_pretrained(base))
    return measure_completions(decoder, [texts], (" bake", " limo")).all


def test_from_two_folders_an_adapter_and_a_file(
    folder: Path,
    api: None,
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is written loads with PEFT, and computes what was measured."""
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BICO_DASK_SCHEDULER", scheduler)
    assert PREFECT_API_URL.value()
    old, new, lora, data = (str(folder / name) for name in ("old", "new", "lora", "texts.jsonl"))
    places = {"adapters/support": lora, "models/Llama-3.2-1B": old, "models/Qwen2.5-1.5B": new}
    places |= {"support.jsonl": data, "results": str(tmp_path / "out")}
    (line,) = re.findall(r"^bico (rehome .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {*places} <= {*shlex.split(line)}
    told = [places.get(word, word) for word in shlex.split(line)] + ["--samples", "16", "--rivals", "all"]
    assert run(told, monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "| model | N | loss (nats per token) | perplexity | bits per character | label accuracy (%)" in shown
    assert re.search(r"Adapter: .*/out/models/texts-", shown)
    assert run([*told, "--json"], monkeypatch) == 0  # found again, with all measures
    found = json.loads(capsys.readouterr().out)
    labels = {row["method"] for row in found["rows"]}
    retrained = {"few-shot", "none+tune:steps=30", "none+lora", "bico+lora"}
    assert labels == {"zero-shot", "bico", "theseus", "source", "expert"} | retrained  # no copy: shapes differ
    measures = found["outputs"]["measures"]
    assert measures["texts/expert"]["loss"] < measures["texts/source"]["loss"] - 1
    losses = {label.split("/")[1]: numbers["loss"] for label, numbers in measures.items()}
    assert losses["none+lora"] < losses["zero-shot"] - 0.5 and losses["bico+lora"] < losses["bico"] - 0.5
    ((name, written),) = found["outputs"]["models"].items()
    cell = next(label for label in measures if label.replace("/", "-").replace("=", "").lower() == name)

    config = json.loads((Path(written) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (RANK, ALPHA, "CAUSAL_LM")
    assert not config["rank_pattern"] and config["base_model_name_or_path"] == "new"
    base = AutoModelForCausalLM.from_pretrained(new)
    model = PeftModel.from_pretrained(copy.deepcopy(base), written).merge_and_unload()
    from bico.data.completions import completions_from_folder
    from bico.data.reading import Reading

    test = completions_from_folder(Path(data), Reading(test_share=0.2)).open("test")
    texts = [test.example(row) for row in range(len(test))]
    for label, one in (("texts/zero-shot", base), (cell, model)):
        again = measured(one, folder / "new", texts)
        assert {n: measures[label][n] for n in again} == pytest.approx(again, abs=2e-4)
    assert measures[cell]["loss"] != pytest.approx(measures["texts/zero-shot"]["loss"], abs=1e-3)
    card = (Path(written) / "README.md").read_text()
    assert "base_model: new\nbase_model_relation: adapter" in card
    assert f"target with this adapter | {measures[cell]['loss']:.4f}" in card and str(folder) not in card

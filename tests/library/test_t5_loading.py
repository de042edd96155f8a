import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import T5EncoderModel

from bico.errors import CheckpointError, UnknownModelError
from bico.models import zoo
from bico.models.families import get_family
from bico.models.loading import load, resolve
from bico.models.t5.encoder import T5Encoder
from bico.models.t5.family import CONFIG, WEIGHTS
from tests.releases import write_release
from tests.tiny_t5 import texts, tokenizer, write_t5

Q = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_t5(tmp_path / "t5", seed=1, gated=True)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(folder / WEIGHTS) | {name.replace("__", "."): t for name, t in changes.items()}
    save_file({name: t for name, t in state.items() if t is not None}, folder / WEIGHTS, {"format": "pt"})


def reconfigure(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_gives_the_model_that_transformers_gives(release: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = resolve(str(release))
    model = load(files)
    assert isinstance(model, T5Encoder) and model.name == str(release)
    assert {t.dtype for t in model.state().values()} == {torch.float32}
    inputs = model.prepare(texts(3))
    theirs = T5EncoderModel.from_pretrained(release, dtype=torch.float32).eval()
    hidden = theirs(input_ids=inputs, attention_mask=(inputs != 0).long()).last_hidden_state
    mean = torch.stack([row[ids != 0].mean(0) for row, ids in zip(hidden, inputs, strict=True)])
    assert_close(model.features(inputs), mean)
    assert not any(p.requires_grad for p in model.trainable()) and not model.model.training


def test_loading_is_quiet(release: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(resolve(str(release)))
    assert capfd.readouterr() == ("", "")


def test_the_digest_covers_weights_configuration_and_tokenizer(release: Path) -> None:
    seen = {resolve(str(release)).digest()}
    for name in (CONFIG, WEIGHTS, "tokenizer.json"):
        path = release / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(resolve(str(release)).digest())
    assert len(seen) == 4


def test_a_model_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    monkeypatch.setattr(zoo, "root", lambda: tmp_path)
    write_release(tmp_path / "mini", seed=1)
    assert zoo.list_models() == ["mini", "t5"]
    zoo.register("t5", {"sha256": zoo.digest(release)})
    assert isinstance(load(resolve("zoo:t5")), T5Encoder)
    rewrite(release, **{Q.replace(".", "__"): torch.zeros(8, 12)})
    with pytest.raises(CheckpointError, match=r"t5/model\.safetensors is damaged or was replaced"):
        resolve("zoo:t5")


def test_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    asked = []

    def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        assert "*.safetensors" in allow_patterns and not any("bin" in p or ".py" in p for p in allow_patterns)
        return str(release)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert resolve("hf:google-t5/t5-large").ref == "hf:google-t5/t5-large"
    resolve("hf:google-t5/t5-large@0123abc")
    assert asked == [("google-t5/t5-large", None), ("google-t5/t5-large", "0123abc")]
    for odd in ("hf:t5-large", "hf:a/b/c", "hf:/x"):
        with pytest.raises(UnknownModelError, match=r"hf:OWNER/NAME or hf:OWNER/NAME@REVISION"):
            resolve(odd)


def test_a_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"hf:google-t5/t5-nowhere: could not be downloaded") as caught:
        resolve("hf:google-t5/t5-nowhere")  # HF_HUB_OFFLINE is set
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(release: Path) -> None:
    (release / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer in .*: it holds tokenizer.json or spiece.model"):
        resolve(str(release))
    (release / WEIGHTS).rename(release / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no .safetensors weights in .*save_pretrained"):
        resolve(str(release))
    reconfigure(release, model_type="gpt2")
    with pytest.raises(CheckpointError, match="no model in .*config.json of a T5"):
        resolve(str(release))
    (release / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="is not a configuration of transformers"):
        resolve(str(release))


def test_weights_that_do_not_fit_are_refused_and_not_made_up(release: Path) -> None:
    at = Q.replace(".", "__")
    rewrite(release, **{at: torch.zeros(5, 12)})
    with pytest.raises(CheckpointError, match=r"q\.weight is \(5, 12\) in the weights and \(8, 12\) in the config"):
        load(resolve(str(release)))
    rewrite(release, **{at: None})
    with pytest.raises(CheckpointError, match=r"the weights lack encoder\.block\.0\..*q\.weight \(of 1\)"):
        load(resolve(str(release)))
    rewrite(release, **{at: torch.zeros(8, 12), "strange": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"the weights hold strange \(of 1\)"):
        load(resolve(str(release)))
    (release / WEIGHTS).write_bytes((release / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot read .*Fetch it again"):
        load(resolve(str(release)))


def test_a_tokenizer_of_another_model_is_refused(release: Path) -> None:
    tokenizer([f"v{n}" for n in range(99)]).save_pretrained(release)
    with pytest.raises(CheckpointError, match="its tokenizer knows 102 tokens and its embedding 64"):
        load(resolve(str(release)))


def test_what_is_saved_is_the_model_at_its_present_weights_and_loads_again(release: Path, tmp_path: Path) -> None:
    model = load(files := resolve(str(release)))
    vector = {name: torch.full_like(tensor, 0.25) for name, tensor in model.state().items() if name == Q}
    (folder := tmp_path / "saved").mkdir()
    with model.updated(vector):
        get_family(files.family).save(model, files, folder)
    again = load(resolve(str(folder)))
    assert again.vocabulary == model.vocabulary
    for name, tensor in model.state().items():
        assert torch.equal(again.state()[name], tensor + vector.get(name, 0)), name

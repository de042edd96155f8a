import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForSeq2SeqLM,
    MT5Config,
    MT5EncoderModel,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from bico.errors import CheckpointError, UnknownModelError
from bico.models import zoo
from bico.models.families import get_family
from bico.models.loading import load, resolve
from bico.models.t5.encoder import T5Encoder
from bico.models.t5.family import CONFIG, WEIGHTS
from tests.releases import write_release
from tests.tiny_t5 import t5_config, texts, tokenizer, write_t5

SHAPE = {"vocab_size", "d_model", "d_kv", "num_heads", "d_ff", "num_layers", "num_decoder_layers"}
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
    (release / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="holds no weights: give a file"):
        resolve(str(release))
    reconfigure(release, model_type="mamba")
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
    with pytest.raises(CheckpointError, match=r"has no parameter 'encoder\.block\.0\..*q\.weight', 1 of 20 are absent"):
        load(resolve(str(release)))
    rewrite(release, **{at: torch.zeros(8, 12), "strange": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"the weights hold strange \(of 1\)"):
        load(resolve(str(release)))
    (release / WEIGHTS).write_bytes((release / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
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


# Forms of a T5 ----------------------------------------------------------------------------------------------------------


def encoder_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for n, t in load_file(folder / WEIGHTS).items() if n.startswith(("encoder.", "shared."))}


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def features(folder: Path) -> torch.Tensor:
    model = load(resolve(str(folder)))
    return model.features(model.prepare(texts(3)))


ALONE = {
    "T5EncoderModel": lambda w: w,
    "with a copy": lambda w: w | {"encoder.embed_tokens.weight": w["shared.weight"]},
    "a copy alone": lambda w: {n.replace("shared.", "encoder.embed_tokens."): t for n, t in w.items()},
    "prefixed": lambda w: {f"0.auto_model.{n}": t for n, t in w.items()} | {"2.linear.weight": torch.ones(2, 2)},
    "the stack": lambda w: {
        n.removeprefix("encoder.").replace("shared.", "embed_tokens."): t for n, t in w.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("form", ALONE)
def test_an_encoder_alone_is_a_model_of_one_loss(release: Path, tmp_path: Path, form: str) -> None:
    expected = features(release)
    write(release, ALONE[form](encoder_of(release)))
    assert_close(features(release), expected)
    model = load(files := resolve(str(release)))
    assert model.losses == ("probe",)
    (saved := tmp_path / "saved").mkdir()
    get_family(files.family).save(model, files, saved)
    assert_close(features(saved), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_an_embedding_is_never_made_of_the_head(release: Path, tied: bool, whole: bool) -> None:
    weights = load_file(release / WEIGHTS) if whole else encoder_of(release)
    weights["lm_head.weight"] = weights.pop("shared.weight")
    write(release, weights)
    reconfigure(release, tie_word_embeddings=tied)
    with pytest.raises(CheckpointError, match=r"lack shared\.weight.*lm_head\.weight is not taken for it"):
        load(resolve(str(release)))


def test_two_embeddings_are_refused(release: Path) -> None:
    weights = load_file(release / WEIGHTS)
    write(release, weights | {"encoder.embed_tokens.weight": weights["shared.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is another matrix than shared\.weight"):
        load(resolve(str(release)))


def test_a_head_of_its_own_is_kept_and_one_of_no_words_leaves_the_encoder(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, expected = load_file(release / WEIGHTS), features(release)
    reconfigure(release, tie_word_embeddings=False)
    own = torch.randn(64, 12)
    write(release, weights | {"lm_head.weight": own})
    model = load(resolve(str(release)))
    assert torch.equal(model.model.lm_head.weight, own) and model.losses == ("probe", "text")
    assert torch.equal(model.model.shared.weight, weights["shared.weight"].float())
    assert caplog.text == ""
    for head, words in (({"lm_head.weight": torch.randn(7, 12)}, r"is (7, 12)"), ({}, "is absent")):
        write(release, weights | head)
        assert load(resolve(str(release))).losses == ("probe",)
        assert f"lm_head.weight {words}" in caplog.text and "encoder alone" in caplog.text
        assert_close(features(release), expected)


def test_a_decoder_that_is_cut_is_refused(release: Path) -> None:
    weights = load_file(release / WEIGHTS)
    del weights["decoder.block.0.layer.1.EncDecAttention.q.weight"]
    write(release, weights)
    with pytest.raises(
        CheckpointError, match=r"the weights lack decoder\.block\.0.*EncDecAttention\.q\.weight \(of 1\)"
    ):
        load(resolve(str(release)))


@pytest.mark.parametrize(("kind", "alone"), [(MT5Config, MT5EncoderModel), (UMT5Config, UMT5EncoderModel)])
@pytest.mark.parametrize("whole", [True, False])
def test_mt5_and_umt5_give_what_transformers_gives(tmp_path: Path, kind: Any, alone: Any, whole: bool) -> None:
    config = kind(**{k: v for k, v in t5_config(gated=True).to_dict().items() if k in SHAPE})
    made = (AutoModelForSeq2SeqLM.from_config if whole else alone)(config)
    made.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(resolve(str(tmp_path)))
    inputs = model.prepare(texts(3))
    mask = (inputs != 0).long()
    theirs = alone.from_pretrained(tmp_path).eval()(input_ids=inputs, attention_mask=mask).last_hidden_state
    assert_close(model.features(inputs), (theirs * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    biases = [name for name in model.state() if name.endswith("relative_attention_bias.weight")]
    assert len(biases) == (2 if kind is UMT5Config else 1)  # umT5 has one in every layer


def test_a_pickled_model_is_read_if_that_is_allowed(release: Path) -> None:
    expected = features(release)
    torch.save(load_file(release / WEIGHTS), release / "pytorch_model.bin")
    (release / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*--allow-pickle"):
        resolve(str(release))
    model = load(resolve(str(release), allow_pickle=True))
    assert_close(model.features(model.prepare(texts(3))), expected)


def test_a_model_in_shards_is_read_whole(release: Path, tmp_path: Path) -> None:
    expected = features(release)
    load(resolve(str(release))).model.save_pretrained(release, max_shard_size="3KB")
    (release / WEIGHTS).unlink(missing_ok=True)
    assert len(list(release.glob("*.safetensors"))) > 1
    assert_close(features(release), expected)
    last = max(release.glob("*.safetensors"))
    last.unlink()
    with pytest.raises(CheckpointError, match=f"absent: {last.name}"):
        resolve(str(release))


def test_an_adapter_given_as_a_model_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a LoRA adapter of PEFT.*merge_and_unload"):
        resolve(str(tmp_path))

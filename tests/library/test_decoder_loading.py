"""Folders of decoders: read in their dtype, in shards, by other prefixes; written bit for bit; and those that are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from bico.errors import CheckpointError
from bico.models.checkpoints import read_checkpoint
from bico.models.experts import expert_of
from bico.models.families import get_family
from bico.models.loading import load, resolve
from tests.tiny_decoder import KINDS, examples, random_task_vector, write_decoder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_bfloat16_are_read_and_written_bit_for_bit(kind: str, tmp_path: Path) -> None:
    files = resolve(str(write_decoder(tmp_path / "a", 1, kind, torch.bfloat16)))
    model = load(files)
    assert files.family == "decoder" and {p.dtype for p in model.state().values()} == {torch.bfloat16}
    (tmp_path / "b").mkdir()
    get_family("decoder").save(model, files, tmp_path / "b")
    before, after = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16}
    inputs = model.prepare(examples(3))
    ids = inputs[..., 0]
    with torch.no_grad():
        assert_close(
            theirs(ids, attention_mask=torch.ones_like(ids)).logits,
            model.model(ids, attention_mask=torch.ones_like(ids)).logits,
        )
    assert resolve(str(tmp_path / "b")).family == "decoder"


def test_shards_and_float16_are_read_and_what_lies_beside_is_kept(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "a", 1, "llama", torch.float16)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(whole), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "generation_config.json").write_text('{"temperature": 0.3}')
    files = resolve(str(folder))
    model = load(files)
    assert all(torch.equal(p, whole[name].float()) for name, p in model.state().items())
    (tmp_path / "b").mkdir()
    get_family("decoder").save(model, files, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == {"temperature": 0.3}
    assert all(torch.equal(t, whole[name].float()) for name, t in weights_of(tmp_path / "b").items())


def test_a_checkpoint_of_the_base_alone_and_old_buffers_are_read(tmp_path: Path) -> None:
    """As GPT-2's own is: without the head's prefix, with its causal masks."""
    folder = write_decoder(tmp_path / "a", 1, "gpt2")
    model, tensors = load(resolve(str(folder))), load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, folder / "model.safetensors", {"format": "pt"})
    again, inputs = load(resolve(str(folder))), model.prepare(examples(3))
    assert_close(again.answers(inputs).costs, model.answers(inputs).costs)


def test_an_expert_is_read_by_the_models_names(tmp_path: Path) -> None:
    model = load(resolve(str(write_decoder(tmp_path / "a", 1))))
    tau = random_task_vector(model, scale=0.05)
    tuned = {name: p + tau[name].float() for name, p in model.state().items()}
    whole = {name: p.clone() for name, p in model.model.state_dict().items()} | tuned
    whole["model.embed_tokens.weight"] += 1
    save_file(whole, tmp_path / "expert.safetensors")
    expert = expert_of(model, read_checkpoint(tmp_path / "expert.safetensors"), (), "--expert")
    name = "model.layers.1.mlp.down_proj.weight"
    assert_close(expert.state[name] - model.state()[name], tau[name].float(), atol=1e-6, rtol=1e-5)
    assert any("what is not carried, 1 tensors such as model.embed_tokens.weight" in note for note in expert.notes)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
            "a mixture of experts",
        ),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"a": 1}},
            "multimodal",
        ),
        (
            {"model_type": "opt", "architectures": ["OPTForCausalLM"]},
            "of a kind that has no line in the table of decoders",
        ),
        ({"model_type": "gpt2", "add_cross_attention": True}, "cross-attention"),
    ],
)
def test_models_that_are_not_served_are_refused_by_name(config: dict, match: str, tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "a", 1)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=match):
        resolve(str(folder))


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "a", 1)
    tensors = load_file(folder / "model.safetensors")
    lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight \(of 1\)"):
        load(resolve(str(folder)))
    save_file(
        tensors | {"model.layers.1.mlp.up_proj.weight": lost[:, :5].clone()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        load(resolve(str(folder)))
    save_file(tensors | {"model.layers.1.mlp.up_proj.weight": lost.to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is quantised"):
        load(resolve(str(folder)))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        resolve(str(folder))

"""Experts as training scripts and hubs leave them: read right, or refused by name; and what can be no expert."""

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from bico.errors import CheckpointError
from bico.models.checkpoints import Checkpoint, read_checkpoint
from bico.models.clip.transformers_names import namings
from bico.models.clip.vit import ClipViT
from bico.models.experts import FARTHEST, Expert, everything, expert_of
from bico.models.families import foreign_namings
from bico.models.t5.encoder import T5Encoder
from tests.tiny import tiny_clip
from tests.tiny_t5 import tiny_t5


@pytest.fixture(scope="module")
def clip() -> ClipViT:
    return tiny_clip(seed=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def t5() -> T5Encoder:
    return tiny_t5(seed=1, dtype=torch.float32)


def tuned(model: ClipViT | T5Encoder, scale: float = 0.01) -> dict[str, Tensor]:
    """All tensors of a model, with those that are carried changed a little."""
    generator = torch.Generator().manual_seed(7)
    state, noise = everything(model), model.state()
    return {
        name: t + scale * torch.randn(t.shape, generator=generator) if name in noise else t.clone()
        for name, t in state.items()
    }


def read(model: Any, tensors: Mapping[str, Tensor], farthest: float | None = FARTHEST) -> Expert:
    family = "clip" if isinstance(model, ClipViT) else "t5"
    return expert_of(
        model, Checkpoint("X", tensors), foreign_namings(family, everything(model)), "--expert X", farthest
    )


def same(expert: Expert, tensors: Mapping[str, Tensor]) -> None:
    assert expert.state and all(torch.equal(tensor, tensors[name]) for name, tensor in expert.state.items())


PREFIXES = ["module.", "_orig_mod.", "model.", "clip.", "_orig_mod.module.", "0.auto_model.", "model.module._orig_mod."]


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_a_prefix_before_every_name_is_taken_off_and_told(clip: ClipViT, prefix: str) -> None:
    weights = tuned(clip)
    expert = read(clip, {prefix + name: tensor for name, tensor in weights.items()})
    same(expert, weights)
    assert (f"X: the prefix '{prefix}' was taken off." in expert.notes) == bool(prefix)


@pytest.mark.parametrize("prefix", ["", "model.", "module.image_encoder."])
def test_a_tower_alone_is_read_as_the_sources(clip: ClipViT, t5: T5Encoder, prefix: str) -> None:
    for model, part in ((clip, "visual."), (t5, "encoder.")):
        weights = tuned(model)
        tower = {prefix + n.removeprefix(part): t for n, t in weights.items() if n in model.state()}
        expert = read(model, tower)
        same(expert, weights)
        assert f"read as the source's '{part[:-1]}' alone" in expert.notes[0]


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "with an epoch": lambda w: {**w, "epoch": 1},
    "model": lambda w: {"model": w, "epoch": 1, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "model_state_dict": lambda w: {"model_state_dict": OrderedDict(w), "args": Namespace(lr=1.0), "best": 3.0},
    "deepspeed": lambda w: {"module": w, "global_step": 1, "optimizer_states": [torch.ones(3)]},
    "parameters": lambda w: {n: torch.nn.Parameter(t) for n, t in w.items()},
    "what was measured": lambda w: {"model": w, "best": np.float64(0.3), "when": datetime.now(), "out": Path("x")},
    "ema": lambda w: {"ema": w, "rng_state": torch.zeros(3)},
    "lightning": lambda w: {"state_dict": {f"model.{n}": t for n, t in w.items()}, "callbacks": {"x": {"y": 1}}},
    "open_clip": lambda w: {"epoch": 1, "name": "run", "state_dict": {f"module.{n}": t for n, t in w.items()}},
    "nested twice": lambda w: {"checkpoint": {"model": {f"_orig_mod.{n}": t for n, t in w.items()}}},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_training_states_are_unwrapped(clip: ClipViT, tmp_path: Path, form: str) -> None:
    weights = tuned(clip)
    torch.save(WRAPPED[form](weights), tmp_path / "x.pt")
    expert = expert_of(clip, read_checkpoint(tmp_path / "x.pt", allow_pickle=True), (), "--expert x.pt")
    same(expert, weights)
    assert not any(tensor.requires_grad for tensor in expert.state.values())


def test_what_a_pickle_holds_beside_tensors_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\): save its state_dict"
    ):
        read_checkpoint(tmp_path / "x.pt", allow_pickle=True)
    (tmp_path / "x.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="is a pointer of Git LFS"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_quantised_and_grown_tensors_are_told(clip: ClipViT) -> None:
    weights = tuned(clip)
    with pytest.raises(CheckpointError, match=r"is quantised: visual\.proj is of int8"):
        read(clip, weights | {"visual.proj": weights["visual.proj"].to(torch.int8)})
    expert = read(clip, weights | {"token_embedding.weight": torch.ones(70, 16)})
    same(expert, weights)
    assert any(note.startswith("1 tensors have another shape") and "token_embedding" in note for note in expert.notes)


def test_two_sets_of_weights_are_refused_unless_they_are_the_same(clip: ClipViT) -> None:
    weights, other = tuned(clip), tuned(clip, 0.02)
    both = {f"model.{n}": t for n, t in weights.items()} | {f"ema.{n}": t for n, t in other.items()}
    with pytest.raises(CheckpointError, match=r"two sets of weights that fit, behind 'model\.' and behind 'ema\.'"):
        read(clip, both)
    same(read(clip, both | {f"ema.{n}": t for n, t in weights.items()}), weights)


def test_a_prefix_that_some_names_lack_is_not_guessed(clip: ClipViT) -> None:
    weights = {f"module.{n}": t for n, t in tuned(clip).items()}
    weights["visual.proj"] = weights.pop("module.visual.proj")
    with pytest.raises(CheckpointError, match=r"has no parameter 'module\.visual\.proj', 1 of \d+ are absent"):
        read(clip, weights)
    with pytest.raises(
        CheckpointError, match=r"no parameter 'visual\.class_embedding', under no prefix: .* tensors are x\.y"
    ):
        read(clip, {"x.y": torch.ones(1)})


def test_other_architectures_are_refused(clip: ClipViT) -> None:
    weights = tuned(clip)
    deeper = weights | {
        n.replace(".1.", ".2."): t for n, t in weights.items() if "visual.transformer.resblocks.1." in n
    }
    with pytest.raises(CheckpointError, match=r"has a parameter the model lacks: 'visual\.transformer\.resblocks\.2\."):
        read(clip, deeper)
    with pytest.raises(CheckpointError, match=r"another architecture: visual\.proj is \(16, 9\) there and \(16, 8\)"):
        read(clip, weights | {"visual.proj": torch.ones(16, 9)})


def test_what_is_carried_must_be_finite_and_the_rest_need_not(clip: ClipViT) -> None:
    weights, nan = tuned(clip), torch.full((16, 8), torch.nan)
    same(read(clip, weights | {"text_projection": nan, "spare": nan}), weights)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in visual\.proj"):
        read(clip, weights | {"visual.proj": nan})


def test_what_can_be_no_expert_of_the_source_is_refused(clip: ClipViT) -> None:
    source = everything(clip)
    with pytest.raises(CheckpointError, match="is tiny-1 itself, not an expert of it"):
        read(clip, source)
    for rounded in (torch.bfloat16, torch.float16):
        with pytest.raises(CheckpointError, match="is tiny-1 itself"):
            read(clip, {name: tensor.to(rounded) for name, tensor in source.items()})
    with pytest.raises(
        CheckpointError, match=r"by 0\.99 times .*less than 0\.5.*only 0\.01 times .*task vector: add it"
    ):
        read(clip, {name: 0.01 * tensor for name, tensor in source.items()})
    other = everything(tiny_clip(seed=2, dtype=torch.float32))
    with pytest.raises(CheckpointError, match="looks like the weights of another model.*raise --expert-farthest"):
        read(clip, other)
    same(read(clip, other, farthest=2.0), other)
    for odd, words in ((other, "another model"), (source, "is tiny-1 itself")):  # to be measured it serves
        expert = read(clip, odd, farthest=None)
        same(expert, odd)
        assert words in expert.notes[0]


def test_how_far_an_expert_is_and_what_is_not_carried_is_told(clip: ClipViT) -> None:
    source = everything(clip)
    size = sum(float(t.square().sum()) for t in clip.state().values()) ** 0.5
    step = torch.zeros(16, 8)
    step[0, 0] = 0.03 * size
    expert = read(clip, source | {"visual.proj": source["visual.proj"] + step})
    assert expert.notes == ("The expert's change has 0.03 times the norm of its source.",)
    bias = torch.zeros(16)
    bias[3] = 0.04 * size
    words = torch.zeros(16, 8)
    words[1, 1] = 0.12 * size
    changes = {"visual.proj": step, "visual.ln_pre.bias": bias, "text_projection": words}
    expert = read(clip, source | {name: source[name] + change for name, change in changes.items()})
    assert "0.05 times" in expert.notes[0]  # 3, 4 and 12 hundredths make 5 and 13
    assert "changed what is not carried, 1 tensors such as text_projection" in expert.notes[1]
    assert "with 92 % of its change's norm" in expert.notes[1]
    assert "1 of the 2 tensors that changed belong to no linear map, such as visual.ln_pre.bias" in expert.notes[2]
    assert "with 31 % of the change's norm" in expert.notes[2]
    with pytest.raises(CheckpointError, match="Of its other parameters 1 do, such as text_projection"):
        read(clip, source | {"text_projection": source["text_projection"] + words})


def test_tensors_without_a_place_are_named(t5: T5Encoder) -> None:
    weights = {f"transformer.{n}": t for n, t in tuned(t5).items()}
    expert = read(t5, weights | {"classification_head.out_proj.weight": torch.ones(2, 12)})
    same(expert, tuned(t5))
    assert "1 tensors for which tiny-t5-1 has no place are left out, such as classification_head" in expert.notes[-1]


def as_transformers_has_it(weights: Mapping[str, Tensor], width: int = 16) -> dict[str, Tensor]:
    """The same by transformers' names, written down apart from the table that is under test."""
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    }
    found = {theirs: weights[ours] for ours, theirs in names.items()} | {
        "visual_projection.weight": weights["visual.proj"].T
    }
    for kind in ("weight", "bias"):
        found[f"vision_model.pre_layrnorm.{kind}"] = weights[f"visual.ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = weights[f"visual.ln_post.{kind}"]
        for n in range(2):
            ours, theirs = f"visual.transformer.resblocks.{n}", f"vision_model.encoder.layers.{n}"
            for row, role in enumerate("qkv"):
                rows = weights[f"{ours}.attn.in_proj_{kind}"][row * width : (row + 1) * width]
                found[f"{theirs}.self_attn.{role}_proj.{kind}"] = rows
            pairs = [("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")]
            for a, b in [*pairs, ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")]:
                found[f"{theirs}.{b}.{kind}"] = weights[f"{ours}.{a}.{kind}"]
    return found


@pytest.mark.parametrize("prefix", ["", "model.", "clip._orig_mod."])
def test_an_expert_by_transformers_names_is_read_the_same(clip: ClipViT, prefix: str) -> None:
    weights = tuned(clip)
    theirs = as_transformers_has_it(weights)
    expert = read(clip, {prefix + name: tensor for name, tensor in theirs.items()})
    same(expert, weights)
    assert "read as a CLIP model of transformers" in expert.notes[0]


@pytest.mark.parametrize("before", ["vision_model.", ""])
def test_a_tower_of_transformers_without_projection_keeps_the_sources(clip: ClipViT, before: str) -> None:
    weights = tuned(clip)
    theirs = as_transformers_has_it(weights)
    del theirs["visual_projection.weight"]
    expert = read(clip, {before + n.removeprefix("vision_model."): t for n, t in theirs.items()})
    same(expert, weights | {"visual.proj": everything(clip)["visual.proj"]})
    assert "holds no visual.proj: the source's own stays" in " ".join(expert.notes)


def test_an_expert_of_shared_and_sliced_tensors_is_read_from_safetensors(clip: ClipViT, tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in as_transformers_has_it(tuned(clip)).items()}
    save_file(weights, tmp_path / "x.safetensors")
    torch.save(as_transformers_has_it(tuned(clip)), tmp_path / "x.pt")  # slices of one storage
    for name in ("x.safetensors", "x.pt"):
        read_back = read_checkpoint(tmp_path / name, allow_pickle=True)
        expert = expert_of(clip, read_back, namings(everything(clip)), "--expert x")
        assert_close(expert.state, {name: tuned(clip)[name] for name in expert.state})

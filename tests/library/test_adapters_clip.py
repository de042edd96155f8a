"""Adapters of CLIP's image tower, carried between open_clip's fused attention and transformers' modules."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from bico.adapters.adapter import Adapter
from bico.adapters.dense import as_task_vector
from bico.adapters.factors import LowRank
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.folder import CONFIG
from bico.adapters.names import locate
from bico.adapters.transport import transport
from bico.models.clip.transformers_names import namings
from bico.models.clip.vit import ClipViT
from bico.models.experts import everything
from tests.thin_maps import by_hand, change_of, thin_maps
from tests.tiny import pictures, tiny_clip
from tests.tiny_adapters import save_lora


def clip_pair() -> tuple[Any, Any]:
    return tiny_clip(1, torch.float32), tiny_clip(2, torch.float32, width=24, layers=3)


def test_open_clips_fused_attention_is_cut_and_put_together(tmp_path: Path) -> None:
    """PEFT wraps `nn.MultiheadAttention` whole: one rank for in_proj and out_proj, a name of its own for the latter, which it
    adds twice (peft #3774): when this fails with another PEFT, that was mended.
    """
    source, target = clip_pair()
    maps = thin_maps()
    folder = save_lora(
        source.model, tmp_path / "a", target_modules=r"visual\.transformer\.resblocks\.\d\.(attn|mlp\.c_fc)"
    )
    adapter = read_adapter(folder)
    found = locate(adapter, source)
    theirs = features_by_peft(source, folder)
    with source.updated({name: change for name, change in as_task_vector(found).items() if name in source.state()}):
        assert_close(source.features(pictures(4).float()), theirs, atol=1e-5, rtol=1e-4)
    carried = transport(found, source, target, maps)
    expected = by_hand(found, source, target, maps)
    assert_close(change_of(carried, target), expected, atol=1e-5, rtol=1e-5)
    assert {update.rank for update in carried.adapter.modules.values()} == {4}
    config = json.loads((write_adapter(carried.adapter, tmp_path / "b", carried.paths) / CONFIG).read_text())
    assert not any("base_layer" in name for name in config["target_modules"])
    before = target.features(pictures(4).float())
    with target.updated({name: expected[name].float() for name in target.state()}):
        after = target.features(pictures(4).float())
    assert_close(features_by_peft(target, tmp_path / "b"), after, atol=1e-5, rtol=1e-4)
    assert (after - before).norm() > 0.1 * before.norm()


@torch.no_grad()
def features_by_peft(model: ClipViT, folder: Path) -> Tensor:
    """PEFT merges an attention for the time of a pass, so that there are no merged weights to look at."""
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model.model), folder)
    return wrapped.base_model.model.encode_image(pictures(4).float())


def test_an_adapter_of_transformers_clip_serves_open_clips(tmp_path: Path) -> None:
    """Three modules there are rows of one parameter here: the LoRA of q alone changes its rows alone."""
    source, target = clip_pair()
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    at = "vision_model.encoder.layers.1.self_attn"
    modules = {f"model.{at}.{role}_proj": LowRank(draw(2, 16), draw(16, 2), 4.0) for role in "qv"}
    adapter = Adapter("X", modules, {"peft_type": "LORA"})
    found = locate(adapter, source, namings(everything(source)))
    vector = as_task_vector(found)
    rows = vector["visual.transformer.resblocks.1.attn.in_proj_weight"].chunk(3)
    for part, role in zip(rows, "qkv", strict=True):
        expected = modules[f"model.{at}.{role}_proj"].dense() if role != "k" else torch.zeros(16, 16)
        assert_close(part, expected)
    maps = thin_maps()
    carried = transport(found, source, target, maps)
    assert_close(change_of(carried, target), by_hand(found, source, target, maps), atol=1e-5, rtol=1e-5)
    assert {update.rank for update in carried.adapter.modules.values()} == {4}  # an A for q and one for v
    assert "read as a CLIP model of transformers" in found.notes[1]

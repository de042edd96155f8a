"""Adapters carried to another base: exactly what the dense way gives, in factors of the same rank and scale."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bico.adapters.carry import Given, carry
from bico.adapters.dense import as_task_vector
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.maps import Sides, aligned_maps, identity
from bico.adapters.names import locate
from bico.adapters.transport import transport
from bico.errors import CheckpointError
from bico.methods import Pair, get_method
from bico.methods.strength import Strength
from bico.models.experts import everything
from bico.models.sites import Site
from tests.thin_maps import bert, by_hand, change_of, dense, module_of, thin_maps
from tests.tiny import evidence_for, tiny_clip
from tests.tiny_adapters import loaded, logits_of, merged_by_peft, save_lora, tiny_gpt2, tiny_llama
from tests.tiny_t5 import tiny_t5

PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "BERT to a wider, deeper one": (lambda: bert(1), lambda: bert(2, width=16, hidden=24, layers=3), {"target_modules": ["query", "dense"], "exclude_modules": ["pooler.dense"]}),
    "to a narrower, shallower one": (lambda: bert(1, width=16, layers=3), lambda: bert(2, layers=2), {"target_modules": ["value", "key"]}),
    "rank-stabilised, by pattern": (lambda: bert(1), lambda: bert(2, width=16), {"target_modules": ["query", "value"], "use_rslora": True, "rank_pattern": {"value": 2}, "alpha_pattern": {"query": 3}}),
    "biases of LoRA": (lambda: bert(1), lambda: bert(2, width=16), {"target_modules": ["query"], "lora_bias": True}),
    "biases of its modules": (lambda: bert(1), lambda: bert(2, width=16), {"target_modules": ["query"], "bias": "lora_only"}),
    "T5": (lambda: tiny_t5(1, torch.float32), lambda: tiny_t5(2, torch.float32, d_model=16, layers=3), {"target_modules": r"encoder.*\.(q|wo)"}),
    "Llama, fewer and narrower keys": (lambda: tiny_llama(1), lambda: tiny_llama(2, width=24, kv=1, layers=3), {"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}),
    "Conv1D": (lambda: tiny_gpt2(1), lambda: tiny_gpt2(2, width=20), {"target_modules": ["c_attn", "c_fc"]}),
    "fused maps of ModernBERT": (lambda: bert(1, kind="modernbert"), lambda: bert(2, kind="modernbert", width=16), {"target_modules": ["Wqkv", "Wi"]}),
    "to fused maps": (lambda: bert(1), lambda: bert(2, kind="modernbert"), {"target_modules": ["query", "value"]}),
    "from fused maps": (lambda: bert(1, kind="modernbert"), lambda: bert(2), {"target_modules": ["Wqkv"]}),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_factors_are_what_the_dense_way_gives_and_what_peft_computes(tmp_path: Path, pair: str) -> None:
    make_source, make_target, settings = PAIRS[pair]
    source, target, maps = make_source(), make_target(), thin_maps()
    adapter = read_adapter(save_lora(module_of(source), tmp_path / "a", **settings))
    found = locate(adapter, source)
    carried = transport(found, source, target, maps)
    expected = by_hand(found, source, target, maps)
    ours = change_of(carried, target)
    assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert any(tensor.any() for tensor in ours.values())

    stacked = pair == "to fused maps"  # q and v have an A each, the fused map has both
    ranks = {path.rpartition(".")[2]: (u.rank, u.alpha, u.rslora) for path, u in carried.adapter.modules.items()}
    theirs = {path.rpartition(".")[2]: (u.rank, u.alpha, u.rslora) for path, u in adapter.modules.items()}
    assert set(ranks.values()) == ({(8, 24.0, False)} if stacked else set(theirs.values()))

    folder = write_adapter(carried.adapter, tmp_path / "b", carried.paths)
    state, after = everything(target), merged_by_peft(module_of(target), folder)
    loaded(module_of(target), folder)
    for name, tensor in state.items():
        assert_close(after[name].double(), tensor.double() + expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "bfloat16", "all linear"])
def test_to_the_base_itself_an_adapter_is_returned(tmp_path: Path, kind: str) -> None:
    source = bert(1)
    settings = {"target_modules": ["query", "output.dense"]}
    dtype = torch.bfloat16 if kind == "bfloat16" else None
    adapter = read_adapter(save_lora(source.model, tmp_path, dtype=dtype, use_rslora=kind == "plain", **settings))
    carried = transport(locate(adapter, source), source, source, identity).adapter
    assert carried.modules.keys() == adapter.modules.keys()
    for path, update in adapter.modules.items():
        again = carried.modules[path]
        assert torch.equal(again.down, update.down) and torch.equal(again.up, update.up)
        assert (again.alpha, again.rank, again.rslora) == (update.alpha, update.rank, update.rslora)
    eyes = transport(
        locate(adapter, source),
        source,
        source,
        lambda ours, theirs: Sides(torch.eye(ours.shape[1]), torch.eye(ours.shape[0])),
    ).adapter
    assert all(torch.equal(eyes.modules[path].up, update.up) for path, update in adapter.modules.items())


def test_dora_is_carried_dense_and_cut_again(tmp_path: Path) -> None:
    source, target, maps = bert(1), bert(2, width=16), thin_maps(rank=8)
    adapter = read_adapter(save_lora(source.model, tmp_path, target_modules=["query"], use_dora=True))
    found = locate(adapter, source)
    carried = transport(found, source, target, maps)
    expected, ours = by_hand(found, source, target, maps), change_of(carried, target)
    assert not carried.adapter.magnitudes
    for path, update in carried.adapter.modules.items():
        assert (update.rank, update.alpha) == (4, 12.0)
        change = expected[f"{path}.weight"]
        u, s, vh = torch.linalg.svd(change)
        assert_close(ours[f"{path}.weight"], (u[:, :4] * s[:4]) @ vh[:4], atol=1e-5, rtol=1e-5)
        block = int(path.split(".")[2])
        assert carried.kept[f"blocks.{block}.q"] == pytest.approx(
            float(s[:4].square().sum() / s.square().sum()), abs=1e-5
        )

    def whole(ours: Site, theirs: Site) -> Sides:
        sides = maps(ours, theirs)
        return replace(sides, reads=dense(sides.reads, 0), gives=dense(sides.gives, 0))

    again = change_of(transport(found, source, target, whole), target)
    assert_close(again, ours, atol=1e-5, rtol=1e-5)


def test_aligned_methods_bring_their_maps_and_their_strength(tmp_path: Path) -> None:
    source, target = tiny_clip(1), tiny_clip(2, width=24, layers=3)
    folder = save_lora(source.model, tmp_path, target_modules=r"visual\..*(attn|mlp\.c_proj)")
    found = locate(read_adapter(folder), source)
    for method in (get_method("bico"), replace(get_method("theseus"), strength=Strength.EFFECT)):
        evidence = evidence_for(method, source, target)
        carried = transport(found, source, target, aligned_maps(method, evidence, Pair.of(source, target)))
        tau = {name: torch.zeros_like(t) for name, t in source.state().items()} | as_task_vector(found)
        expected = method.transport(tau, Pair.of(source, target), evidence)
        ours = as_task_vector(locate(carried.adapter, target))
        for name, tensor in expected.items():
            if tensor.any():
                assert_close(ours[name].double(), tensor.double(), atol=1e-5, rtol=1e-5)


def test_a_causal_model_loads_and_computes_what_its_factors_say(tmp_path: Path) -> None:
    source, target, maps = tiny_llama(1), tiny_llama(2, width=24, kv=1, layers=3), thin_maps()
    found = locate(
        read_adapter(save_lora(source.module, tmp_path / "a", target_modules="all-linear", task_type="CAUSAL_LM")),
        source,
    )
    carried = transport(found, source, target, maps)
    model = loaded(target.module, write_adapter(carried.adapter, tmp_path / "b", carried.paths))
    before = logits_of(target.module)
    with target.updated({k: v.float() for k, v in change_of(carried, target).items() if k in target.state()}):
        expected = logits_of(target.module)
    assert_close(logits_of(model), expected, atol=1e-4, rtol=1e-4)
    assert (expected - before).norm() > 0.1 * before.norm()


def test_a_family_may_spell_module_paths_otherwise(tmp_path: Path) -> None:
    """Names in `state()` without what the model that people load puts before them."""
    target = bert(2)
    target.module_path = lambda name: f"bert.{name.removesuffix('.weight')}" if name.endswith("dense.weight") else None
    source = bert(1)
    settings = {"target_modules": ["output.dense"], "bias": "lora_only"}
    found = locate(read_adapter(save_lora(source.model, tmp_path, **settings)), source)
    carried = transport(found, source, target, identity)
    assert {name.split(".")[0] for name in [*carried.adapter.modules, *carried.adapter.whole]} == {"bert"}
    assert_close(change_of(carried, target), by_hand(found, source, target, identity), atol=1e-5, rtol=1e-5)
    query = locate(
        read_adapter(save_lora(source.model, tmp_path / "q", target_modules=["query", "output.dense"])), source
    )
    assert "No module of tiny-bert-2 holds blocks.0.q, blocks.1.q" in " ".join(
        transport(query, source, target, identity).notes
    )
    with pytest.raises(CheckpointError, match="has no such module"):
        locate(query.adapter, target)


@pytest.mark.parametrize("layers", [(4, 2), (2, 4)])
def test_a_shallower_target_takes_the_adapters_of_all_blocks_and_a_deeper_one_shares(
    layers: tuple[int, int], tmp_path: Path
) -> None:
    source, target = tiny_clip(1, layers=layers[0]), tiny_clip(2, layers=layers[1])
    folder = save_lora(source.model, tmp_path, target_modules=r"visual\..*(attn|mlp\.c_proj)")
    found = locate(read_adapter(folder), source)
    tau = {name: torch.zeros_like(t) for name, t in source.state().items()} | as_task_vector(found)
    for spelt in ("bico:depth=sum", "bico:strength=effect:depth=sum"):
        method = get_method(spelt)
        evidence = evidence_for(method, source, target)
        carried = carry(method, Given(lambda: tau, found), source, target, evidence)
        assert not any("left out" in note for note in carried.notes)
        ours = as_task_vector(locate(carried.adapter, target))
        for name, tensor in method.transport(tau, Pair.of(source, target), evidence).items():
            if tensor.any():
                assert_close(ours[name].double(), tensor.double(), atol=1e-5, rtol=1e-5)

"""Adapters carried to another base: exactly what the dense way gives, in factors of the same rank and scale."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from bico.adapters.adapter import Adapter
from bico.adapters.carry import Given, carry
from bico.adapters.dense import as_task_vector, merged
from bico.adapters.factors import LowRank, concatenated, factorised, truncated
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.folder import CONFIG
from bico.adapters.maps import Map, Maps, Sides, aligned_maps, identity
from bico.adapters.names import Located, locate, paths_of
from bico.adapters.sites import as_modules, at_sites
from bico.adapters.transport import Carried, cut_to, matches, transport
from bico.errors import CheckpointError, MethodError, ShapeError
from bico.methods import Pair, get_method
from bico.methods.protocol import Others
from bico.methods.strength import Strength
from bico.models.clip.transformers_names import namings
from bico.models.clip.vit import ClipViT
from bico.models.experts import everything
from bico.models.protocol import Calibratable
from bico.models.sites import Site
from bico.task_vector import StateDict
from tests.tiny import evidence_for, pictures, tiny_clip
from tests.tiny_adapters import loaded, logits_of, merged_by_peft, save_lora, tiny_gpt2, tiny_llama
from tests.tiny_encoder import tiny_encoder
from tests.tiny_t5 import tiny_t5


@dataclass(frozen=True)
class Factors:
    """A map as calibration solves it."""

    left: Tensor
    right: Tensor


def thin_maps(seed: int = 0, rank: int = 6, gain: float = 1.5) -> Maps:
    """Partial isometries between any two sites, one for each tensor that is read, as factors."""
    made: dict[tuple[str, str, str], Map] = {}

    def map_of(kind: str, ours: str, theirs: str, source: int, target: int) -> Map:
        key = (kind, ours, theirs)
        if key not in made:
            generator = torch.Generator().manual_seed(seed + len(made))
            k = min(rank, source, target)
            ends = (torch.randn(n, k, generator=generator, dtype=torch.float64) for n in (source, target))
            made[key] = Factors(*(torch.linalg.qr(end).Q for end in ends))
        return made[key]

    def sides(ours: Site, theirs: Site) -> Sides:
        (out_a, in_a), (out_b, in_b) = ours.shape, theirs.shape
        q_in, q_out = (
            map_of("in", ours.reads, theirs.reads, in_a, in_b),
            map_of("out", ours.name, theirs.name, out_a, out_b),
        )
        return Sides(q_in, q_out, gain, gain / 2)

    return sides


def dense(q: Map | None, width: int) -> Tensor:
    if q is None:
        return torch.eye(width, dtype=torch.float64)
    return q.double() if isinstance(q, Tensor) else (q.left @ q.right.T).double()


def by_hand(found: Located, source: Calibratable, target: Calibratable, maps: Maps) -> StateDict:
    """The target's task vector, formed with whole matrices."""
    tau, state = as_task_vector(found), everything(target)
    tau = {name: tau.get(name, torch.zeros_like(t)).double() for name, t in found.state.items()}
    vector = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in state.items()}
    for name, (ours,) in matches(found, source, target).items():
        site = next(site for site in target.sites if site.name == name)
        sides = maps(ours, site)
        q_in, q_out = dense(sides.reads, ours.shape[1]), dense(sides.gives, ours.shape[0])
        site.weight.write(vector, sides.gain * q_out.T @ ours.weight.read(tau) @ q_in)
        if ours.bias is not None and site.bias is not None:
            site.bias.write(vector, sides.bias_gain * q_out.T @ ours.bias.read(tau))
    return vector


def change_of(carried: Carried, target: Calibratable) -> StateDict:
    """What a carried adapter adds to the target, all tensors."""
    found = locate(carried.adapter, target)
    tau = as_task_vector(found)
    return {name: tau.get(name, torch.zeros_like(tensor)).double() for name, tensor in found.state.items()}


def bert(seed: int, **shape: int) -> Any:
    return tiny_encoder(seed=seed, dtype=torch.float32, **shape)


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


def module_of(model: Any) -> torch.nn.Module:
    return model.module if hasattr(model, "module") else model.model


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


def test_a_module_without_a_lora_gets_none_and_skipped_blocks_are_told(tmp_path: Path) -> None:
    source, target = bert(1, layers=5), bert(2, layers=3)
    adapter = read_adapter(
        save_lora(source.model, tmp_path / "a", target_modules=["query"], layers_to_transform=[0, 1])
    )
    found = locate(adapter, source)
    carried = transport(found, source, target, identity)
    assert list(carried.adapter.modules) == ["encoder.layer.0.attention.self.query"]
    assert any("1 of the 2 linear maps" in note and "blocks.1.q" in note for note in carried.notes)
    skipped = locate(
        read_adapter(save_lora(source.model, tmp_path / "b", target_modules=["query"], layers_to_transform=[1])), source
    )
    with pytest.raises(
        MethodError, match="none of which a block of tiny-bert-2 takes its update from by relative depth"
    ):
        transport(skipped, source, target, identity)


def test_several_blocks_add_up_in_one_and_are_cut_if_asked(tmp_path: Path) -> None:
    source, target, maps = bert(1, layers=4), bert(2, layers=2, width=16), thin_maps()
    found = locate(read_adapter(save_lora(source.model, tmp_path, target_modules=["query"])), source)
    by_name = {site.name: site for site in source.sites}
    both = {f"blocks.{n}.q": [by_name[f"blocks.{2 * n}.q"], by_name[f"blocks.{2 * n + 1}.q"]] for n in (0, 1)}
    whole = transport(found, source, target, maps, matched=both)
    alone = [
        change_of(transport(found, source, target, maps, matched={k: [v[n]] for k, v in both.items()}), target)
        for n in (0, 1)
    ]
    assert_close(
        change_of(whole, target), {name: alone[0][name] + alone[1][name] for name in alone[0]}, atol=1e-5, rtol=1e-5
    )
    assert {(update.rank, update.alpha) for update in whole.adapter.modules.values()} == {(8, 24.0)}
    cut = transport(found, source, target, maps, rank=4, matched=both)
    assert {(update.rank, update.alpha) for update in cut.adapter.modules.values()} == {(4, 12.0)}
    for path, update in cut.adapter.modules.items():
        u, s, vh = torch.linalg.svd(whole.adapter.modules[path].dense().double(), full_matrices=False)
        assert_close(update.dense().double(), (u[:, :4] * s[:4]) @ vh[:4], atol=1e-5, rtol=1e-5)
        assert cut.kept[path] == pytest.approx(float(s[:4].square().sum() / s.square().sum()), abs=1e-6)
    assert all("blocks" not in note for note in cut.notes)


def test_what_lies_at_no_map_is_told_or_taken_as_it_is(tmp_path: Path) -> None:
    source, target = bert(1), bert(2)
    settings = {"target_modules": ["query", "pooler.dense", "word_embeddings"], "bias": "all"}
    found = locate(read_adapter(save_lora(source.model, tmp_path / "a", **settings)), source)
    carried = transport(found, source, target, identity)
    notes = " ".join(carried.notes)
    assert "lie at no linear map of a block are left behind" in notes and "such as pooler.dense, with" in notes
    assert not carried.adapter.embeddings and not any("LayerNorm" in name for name in carried.adapter.whole)
    assert "encoder.layer.0.output.dense.bias" in carried.adapter.whole

    taken = transport(found, source, target, identity, others=Others.ADD).adapter
    ours, theirs = found.adapter.embeddings, taken.embeddings
    assert all(torch.equal(theirs[path].up, update.up) for path, update in ours.items())
    norm = "encoder.layer.0.output.LayerNorm.bias"
    assert_close(taken.whole[norm] - everything(target)[norm], found.adapter.whole[norm] - found.state[norm])
    folder = write_adapter(taken, tmp_path / "b", paths_of(target, everything(target)).values())
    assert_close(
        merged(locate(read_adapter(folder), target)), merged_by_peft(target.model, folder), atol=1e-5, rtol=1e-5
    )

    from tests.tiny_encoder import wordpiece

    turned = tiny_encoder(2, tokenizer=wordpiece(turned=True), dtype=torch.float32)
    with pytest.raises(MethodError, match="have different tokenizers, so that its rows are of other tokens"):
        transport(found, source, turned, identity, others=Others.ADD)
    with pytest.raises(MethodError, match="others=add: .* is .* and .* in tiny-bert-2; use others=leave"):
        transport(found, source, bert(2, width=16), thin_maps(), others=Others.ADD)


def test_nothing_that_would_change_is_refused(tmp_path: Path) -> None:
    source, target = bert(1), bert(2)
    adapter = read_adapter(save_lora(source.model, tmp_path / "a", target_modules=["query"]))
    untrained = replace(adapter, modules={p: replace(u, up=0 * u.up) for p, u in adapter.modules.items()})
    with pytest.raises(MethodError, match="changes nothing: every lora_B, or scale, is zero"):
        transport(locate(untrained, source), source, target, identity)
    pooler = locate(read_adapter(save_lora(source.model, tmp_path / "b", target_modules=["pooler.dense"])), source)
    with pytest.raises(MethodError, match="changes no linear map that is carried"):
        transport(pooler, source, target, identity)


def test_maps_of_another_pair_and_roles_that_are_not_there_are_named(tmp_path: Path) -> None:
    source, target = bert(1), bert(2, width=16)
    found = locate(read_adapter(save_lora(source.model, tmp_path / "a", target_modules=["query"])), source)
    with pytest.raises(
        ShapeError, match="blocks.0.q has 16 output features and the source's blocks.0.q 12: a copy needs equal widths"
    ):
        transport(found, source, target, identity)
    with pytest.raises(ShapeError, match=r"a map of shape \(3, 3\) cannot carry 12 output features to 16"):
        transport(found, source, target, lambda ours, theirs: Sides(torch.eye(3), torch.eye(3)))
    gated = bert(1, kind="modernbert")
    found = locate(read_adapter(save_lora(gated.model, tmp_path / "b", target_modules=["Wi"])), gated)
    with pytest.raises(MethodError, match="LoRA of blocks.0.gate, and tiny-bert-2 has no linear map of the role gate"):
        transport(found, gated, bert(2), identity)


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


def draws(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_sums_and_cuts_of_factors_are_those_of_matrices() -> None:
    a, b, c, d, shift = draws([(3, 7), (5, 3), (2, 7), (5, 2), (5,)], 0)
    one, two = LowRank(a, b, 6.0, True, shift), LowRank(c, d, 5.0, False, shift)
    both = concatenated([one, two])
    assert_close(both.dense(), one.dense() + two.dense())
    assert_close(both.shift(), one.shift() + two.shift())
    assert both.energy() == pytest.approx(float(both.dense().square().sum()))
    assert both.rslora and both.scale == pytest.approx(one.scale)
    cut, kept = truncated(both, 2)
    u, s, vh = torch.linalg.svd(both.dense())
    assert_close(cut.dense(), (u[:, :2] * s[:2]) @ vh[:2])
    assert kept == pytest.approx(float(s[:2].square().sum() / s.square().sum())) and cut.scale == pytest.approx(
        both.scale
    )
    assert truncated(both, 5)[0] is both and cut_to({"x": both}, None) == ({"x": both}, {})
    assert_close(one.padded(6).dense(), one.dense())
    with pytest.raises(ShapeError, match="cannot be added"):
        concatenated([one, LowRank(c[:, :6], d, 1.0)])


def test_a_wide_matrix_is_factorised_by_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = draws([(40, 30), (30, 50)], 1)
    matrix = (torch.linalg.qr(u).Q * 0.7 ** torch.arange(30)) @ torch.linalg.qr(v.T).Q.T
    exact, kept = factorised(matrix, 4, 8.0)
    monkeypatch.setattr("bico.adapters.factors._EXACT", 10)
    sketched, share = factorised(matrix, 4, 8.0)
    assert_close(sketched.dense(), exact.dense(), atol=1e-6, rtol=1e-6)
    assert share == pytest.approx(kept, abs=1e-8) and exact.scale == 2
    again, _ = factorised(matrix, 4, 8.0)
    assert torch.equal(again.up, sketched.up)


def test_sites_of_a_module_are_put_together_again(tmp_path: Path) -> None:
    model = bert(1, kind="modernbert")
    adapter = read_adapter(save_lora(model.model, tmp_path, target_modules=["Wqkv", "attn.Wo"]))
    found = locate(adapter, model)
    again, homeless = as_modules(at_sites(found, model.sites), model.sites, model, found.state)
    assert not homeless and again.keys() == adapter.modules.keys()
    assert all(
        torch.equal(again[path].up, update.up) and again[path].down is update.down
        for path, update in adapter.modules.items()
    )

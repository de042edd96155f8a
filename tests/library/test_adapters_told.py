"""What of an adapter is left out, added up or refused when it is carried, and that it is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from bico.adapters.dense import merged
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.maps import Sides, identity
from bico.adapters.names import locate, paths_of
from bico.adapters.transport import transport
from bico.errors import MethodError, ShapeError
from bico.methods.protocol import Others
from bico.models.experts import everything
from tests.thin_maps import bert, change_of, thin_maps
from tests.tiny_adapters import merged_by_peft, save_lora
from tests.tiny_encoder import tiny_encoder


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

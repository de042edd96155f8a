"""Adapters out of full fine-tunes, out of several, and in an expert's place; their cards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from bico.adapters.adapter import Adapter
from bico.adapters.card import Story, adapter_card
from bico.adapters.combine import Combination, combine, ties
from bico.adapters.dense import as_task_vector
from bico.adapters.expert import content_of, read_weights
from bico.adapters.extract import extract
from bico.adapters.factors import LowRank
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.folder import CONFIG, WEIGHTS, find_expert
from bico.adapters.names import locate
from bico.errors import CheckpointError, MethodError, ShapeError
from bico.models.encoder.encoder import TextEncoder
from bico.models.experts import everything, expert_of
from bico.models.families import foreign_namings
from tests.tiny import random_task_vector as clip_task_vector
from tests.tiny import tiny_clip
from tests.tiny_adapters import loaded, merged_by_peft, save_lora, tiny_gpt2
from tests.tiny_encoder import random_task_vector, tiny_encoder


@pytest.fixture(scope="module")
def bert() -> TextEncoder:
    return tiny_encoder(seed=1, dtype=torch.float32)


def best(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank], float(s[:rank].square().sum() / s.square().sum())


def test_a_full_fine_tune_becomes_the_nearest_adapter_and_tells_what_it_keeps(
    bert: TextEncoder, tmp_path: Path
) -> None:
    tau = random_task_vector(bert)
    made = extract(tau, bert, rank=3, alpha=6, config={"task_type": "FEATURE_EXTRACTION"})
    weights = {site.weight.parameter for site in bert.sites}
    inside = 0.0
    for name in weights:
        expected, kept = best(tau[name], 3)
        path = name.removesuffix(".weight")
        assert_close(made.adapter.modules[path].dense().double(), expected, atol=1e-5, rtol=1e-5)
        assert made.kept[path] == pytest.approx(kept, abs=1e-6)
        inside += float(expected.square().sum())
    total = sum(float(t.double().square().sum()) for t in tau.values())
    assert made.share == pytest.approx(inside / total, abs=1e-6)
    assert set(made.left) == {name for name, t in tau.items() if t.any() and name not in weights}
    first, second = made.told()
    assert f"Rank 3 keeps {100 * made.share:.1f} % of the energy of the change; least in encoder.layer." in first
    assert "parameters that no LoRA holds are left out" in second and "bias" in second
    assert {(update.rank, update.alpha) for update in made.adapter.modules.values()} == {(3, 6.0)}

    folder = write_adapter(made.adapter, tmp_path, made.paths)
    theirs = merged_by_peft(bert.model, folder)
    assert all(torch.allclose(theirs[n], bert.state()[n] + best(tau[n], 3)[0].float(), atol=1e-5) for n in weights)
    assert json.loads((folder / CONFIG).read_text())["task_type"] == "FEATURE_EXTRACTION"
    whole = extract({name: tau[name] for name in weights}, bert, rank=99)
    assert whole.share == pytest.approx(1) and not whole.left and len(whole.told()) == 1
    assert all(
        torch.allclose(whole.adapter.modules[n.removesuffix(".weight")].dense(), tau[n], atol=1e-5) for n in weights
    )


def test_fused_and_turned_modules_are_one_map_each(tmp_path: Path) -> None:
    clip = tiny_clip(1, torch.float32)
    tau = clip_task_vector(clip)
    made = extract(tau, clip, rank=4)
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    found = locate(made.adapter, clip)
    assert_close(as_task_vector(found)[name].double(), best(tau[name], 4)[0], atol=1e-5, rtol=1e-5)
    assert "visual.proj" in made.left  # a bare parameter
    gpt2 = tiny_gpt2(1)
    tau = {name: torch.randn_like(t) for name, t in gpt2.state().items() if name.endswith("c_attn.weight")}
    folder = write_adapter((made := extract(tau, gpt2, rank=2)).adapter, tmp_path, made.paths)
    after = loaded(gpt2.module, folder).merge_and_unload().state_dict()
    assert all(torch.allclose(after[n], gpt2.state()[n] + best(t, 2)[0].float(), atol=1e-5) for n, t in tau.items())


def test_what_makes_no_adapter_is_named(bert: TextEncoder) -> None:
    with pytest.raises(MethodError, match="at least 1, got 0"):
        extract(random_task_vector(bert), bert, 0)
    with pytest.raises(MethodError, match="changes no linear map of tiny-bert-1 that a LoRA can hold"):
        extract({"encoder.layer.0.output.LayerNorm.weight": torch.ones(12)}, bert, 2)


def two(bert: TextEncoder, tmp_path: Path, **settings: Any) -> list[Adapter]:
    first = save_lora(bert.model, tmp_path / "one", target_modules=["query", "value"])
    second = save_lora(bert.model, tmp_path / "two", target_modules=["query", "key"], r=2, use_rslora=True, **settings)
    return [read_adapter(folder) for folder in (first, second)]


@pytest.mark.parametrize("how", [Combination.SUM, Combination.MEAN])
def test_sums_and_means_are_exact_in_the_factors(bert: TextEncoder, tmp_path: Path, how: Combination) -> None:
    adapters = two(bert, tmp_path)
    made, kept = combine(adapters, how, weights=[2.0, 0.5])
    share = 0.5 if how is Combination.MEAN else 1.0
    vectors = [as_task_vector(locate(adapter, bert)) for adapter in adapters]
    ours = as_task_vector(locate(made, bert))
    for name in {*vectors[0], *vectors[1]}:
        zero = torch.zeros_like(ours[name])
        assert_close(
            ours[name],
            share * (2 * vectors[0].get(name, zero) + 0.5 * vectors[1].get(name, zero)),
            atol=1e-5,
            rtol=1e-5,
        )
    assert not kept and {update.rank for update in made.modules.values()} == {2, 4, 6}

    folder = write_adapter(made, tmp_path / "made", [path for path, _ in bert.model.named_modules()])
    theirs = merged_by_peft(bert.model, folder)
    assert all(torch.allclose(theirs[n], everything(bert)[n] + change, atol=1e-5) for n, change in ours.items())

    cut, kept = combine(adapters, how, weights=[2.0, 0.5], rank=3)
    path = "encoder.layer.0.attention.self.query"
    assert_close(cut.modules[path].dense().double(), best(made.modules[path].dense(), 3)[0], atol=1e-5, rtol=1e-5)
    assert kept[path] == pytest.approx(best(made.modules[path].dense(), 3)[1], abs=1e-6)


def test_ties_keeps_what_most_agree_on(bert: TextEncoder, tmp_path: Path) -> None:
    adapters = two(bert, tmp_path)
    made, _ = combine(adapters, Combination.TIES, density=0.5, rank=12)
    path = "encoder.layer.0.attention.self.query"
    one, other = (adapter.modules[path].dense() for adapter in adapters)
    trimmed = [torch.where(t.abs() >= t.abs().median(), t, 0.0) for t in (one, other)]
    expected = torch.zeros(12, 12)
    for row in range(12):
        for column in range(12):
            values = [float(t[row, column]) for t in trimmed]
            sign = 1 if sum(values) > 0 else -1
            agreed = [value for value in values if value * sign > 0]
            expected[row, column] = sum(agreed) / len(agreed) if agreed else 0.0
    # The median of an even number of entries is the lower one, as of torch: one entry more than half may be kept.
    assert (made.modules[path].dense() - expected).abs().gt(1e-4).sum() <= 2
    assert made.modules[path].up.dtype == torch.float32
    assert_close(ties([one], 1.0), one)


def test_what_does_not_add_up_is_named(bert: TextEncoder, tmp_path: Path) -> None:
    adapters = two(bert, tmp_path)
    with pytest.raises(MethodError, match="2 adapters and 1 weights"):
        combine(adapters, weights=[1.0])
    with pytest.raises(MethodError, match="density=0 must lie above 0"):
        combine(adapters, Combination.TIES, density=0)
    dora = read_adapter(save_lora(bert.model, tmp_path / "dora", target_modules=["query"], use_dora=True))
    with pytest.raises(MethodError, match="more than LoRAs of linear maps"):
        combine([*adapters, dora])
    wide = tiny_encoder(seed=1, dtype=torch.float32, width=16)
    other = read_adapter(save_lora(wide.model, tmp_path / "wide", target_modules=["query"]))
    with pytest.raises(ShapeError, match="cannot be added"):
        combine([adapters[0], other])


def test_an_adapter_is_an_expert_of_its_base(bert: TextEncoder, tmp_path: Path) -> None:
    folder = save_lora(bert.model, tmp_path / "a", target_modules=["query"], lora_alpha=0.2)
    find_expert(folder)
    find_expert(folder / WEIGHTS)
    theirs = merged_by_peft(bert.model, folder)
    for place in (folder, folder / WEIGHTS):
        read = read_weights(place, bert, "encoder")
        expert = expert_of(bert, read, foreign_namings("encoder", everything(bert)), f"--expert {place}")
        assert all(torch.allclose(tensor, theirs[name], atol=1e-6) for name, tensor in expert.state.items())
        assert any("a LoRA adapter of 2 modules, merged into tiny-bert-1" in note for note in expert.notes)
    strong = save_lora(bert.model, tmp_path / "b", target_modules=["query"], lora_alpha=9000)
    with pytest.raises(CheckpointError, match="where fine-tuning changes them by less than"):
        expert_of(bert, read_weights(strong, bert, "encoder"), (), "--expert X")
    tensors = {name: tensor * ("lora_B" not in name) for name, tensor in load_file(strong / WEIGHTS).items()}
    save_file(tensors, strong / WEIGHTS)
    with pytest.raises(CheckpointError, match="is tiny-bert-1 itself, not an expert of it"):
        expert_of(bert, read_weights(strong, bert, "encoder"), (), "--expert X")


def test_what_an_adapter_is_stored_by_changes_with_its_scale(bert: TextEncoder, tmp_path: Path) -> None:
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    before = content_of(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": 1}))
    after = content_of(folder)
    assert before.keys() == after.keys() and not torch.equal(before[CONFIG], after[CONFIG])
    assert len(before) == 5


def test_a_trained_head_is_told_and_another_base_too(bert: TextEncoder, tmp_path: Path) -> None:
    """sentence-transformers #3980: a head in modules_to_save was not restored."""
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    tensors = load_file(folder / WEIGHTS) | {"base_model.model.score.weight": torch.zeros(2, 12)}
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(
        json.dumps(config | {"modules_to_save": ["score"], "base_model_name_or_path": "them/other"})
    )
    notes = " ".join(read_weights(folder, bert, "encoder").notes)
    assert "a head that was trained with it is left out (score.weight)" in notes
    assert "names them/other as its base; it is taken as an adapter of tiny-bert-1" in notes


def test_a_card_links_the_base_and_tells_what_was_done() -> None:
    modules = {"q": LowRank(torch.ones(4, 6), torch.ones(5, 4), 8.0)}
    adapter = Adapter("X", modules, {"task_type": "CAUSAL_LM"})
    story = Story(
        "them/Base-2B",
        "Carried from Base-1B by bico.",
        {"source": "me/adapter", "data": "train.jsonl"},
        {"before": 2.5, "with the adapter": 1.25},
        notes=["2 tensors are left behind."],
    )
    lines = adapter_card(adapter, story).splitlines()
    header = lines[: lines.index("---", 1)]
    assert header[1:4] == ["library_name: peft", "base_model: them/Base-2B", "base_model_relation: adapter"]
    body = "\n".join(lines)
    for told in (
        "# A LoRA adapter for Base-2B", "| source | me/adapter |", "| rank | 4 |", "| α | 8 |", "| loss, before | 2.5000 |",
        "| loss, with the adapter | 1.2500 |", "- 2 tensors are left behind.", "AutoModelForCausalLM.from_pretrained",
    ):  # fmt: skip
        assert told in body

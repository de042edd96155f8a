"""Adapters as PEFT saves them: what they add to their base is what PEFT adds; what is no LoRA, or not whole, is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertForSequenceClassification

from bico.adapters.config import alpha_of, quantised_base, rank_of, targets
from bico.adapters.dense import as_task_vector, merged
from bico.adapters.files import adapter_of, in_dtype, read_adapter, tensors_of, write_adapter
from bico.adapters.folder import CONFIG, WEIGHTS, is_adapter
from bico.adapters.names import locate, paths_of
from bico.errors import CheckpointError, OutputError
from bico.models.encoder.encoder import TextEncoder
from tests.tiny_adapters import loaded, merged_by_peft, save_lora, tiny_gpt2, tiny_llama
from tests.tiny_encoder import config_of, tiny_encoder
from tests.tiny_t5 import tiny_t5


@pytest.fixture(scope="module")
def bert() -> TextEncoder:
    return tiny_encoder(seed=1, dtype=torch.float32)


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["query", "value"]},
    "one module": {"target_modules": ["encoder.layer.1.attention.self.key"]},
    "a regular expression": {"target_modules": r"encoder\.layer\.\d\.(attention\.self\.key|output\.dense)"},
    "all linear maps": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": ["query"], "use_rslora": True},
    "ranks and alphas by pattern": {
        "target_modules": ["query", "dense"],
        "rank_pattern": {"output.dense": 2, r"layer\.1\.attention\.self\.query": 6},
        "alpha_pattern": {"query": 5, "dense": 7},
    },
    "ranks by pattern, rank-stabilised": {
        "target_modules": ["query", "dense"], "use_rslora": True, "rank_pattern": {"dense": 9}, "alpha_pattern": {"que.*": 3},
    },
    "some layers": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "one layer": {"target_modules": ["query"], "layers_to_transform": 0},
    "not all of them": {"target_modules": ["dense"], "exclude_modules": ["intermediate.dense", "pooler.dense"]},
    "DoRA": {"target_modules": ["query", "dense"], "use_dora": True},
    "DoRA, rank-stabilised": {"target_modules": ["query"], "use_dora": True, "use_rslora": True, "rank_pattern": {"query": 3}},
    "biases of LoRA": {"target_modules": ["query", "dense"], "lora_bias": True},
    "biases of its modules": {"target_modules": ["query", "value"], "bias": "lora_only"},
    "all biases": {"target_modules": ["query"], "bias": "all"},
    "an embedding": {"target_modules": ["query", "word_embeddings"]},
    "a module kept whole": {"target_modules": ["query"], "modules_to_save": ["intermediate"]},
    "by SVD of few minor components": {"target_modules": ["query"], "init_lora_weights": "mica"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_weights_are_those_of_peft_and_what_is_written_again_too(
    bert: TextEncoder, tmp_path: Path, layout: str
) -> None:
    folder = save_lora(bert.model, tmp_path / "theirs", **LAYOUTS[layout])
    adapter = read_adapter(folder)
    found = locate(adapter, bert)
    ours, theirs = merged(found), merged_by_peft(bert.model, folder)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    changed = [name for name, tensor in ours.items() if not torch.equal(tensor, found.state[name])]
    assert changed and set(changed) <= set(as_task_vector(found))

    again = write_adapter(adapter, tmp_path / "ours", paths_of(bert, found.state).values(), "card")
    kept = load_file(again / WEIGHTS)
    assert kept.keys() == load_file(folder / WEIGHTS).keys() and (again / "README.md").exists()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in load_file(folder / WEIGHTS).items())
    assert_close(loaded(bert.model, again).merge_and_unload().state_dict(), theirs)


def test_other_bases_are_read_alike(tmp_path: Path) -> None:
    """T5; Llama with narrower keys; Conv1D, which stores weights the other way round."""
    t5 = tiny_t5(seed=1, dtype=torch.float32)
    llama, gpt2 = tiny_llama(1), tiny_gpt2(1)
    for model, module, targeted in (
        (t5, t5.model, ["q", "wo"]),
        (llama, llama.module, ["k_proj", "q_proj", "down_proj"]),
        (gpt2, gpt2.module, ["c_attn", "c_proj"]),
    ):
        folder = save_lora(
            module, tmp_path / model.name, target_modules=targeted, task_type="CAUSAL_LM", use_rslora=True
        )
        assert_close(merged(locate(read_adapter(folder), model)), merged_by_peft(module, folder))
        dora = save_lora(module, tmp_path / f"{model.name}-dora", target_modules=targeted, use_dora=True)
        assert_close(merged(locate(read_adapter(dora), model)), merged_by_peft(module, dora))


def test_a_model_with_a_head_has_a_prefix_that_is_taken_off_and_its_head_is_told(
    bert: TextEncoder, tmp_path: Path
) -> None:
    whole = BertForSequenceClassification(config_of("bert"))
    whole.bert.load_state_dict(bert.model.state_dict())
    folder = save_lora(whole, tmp_path, target_modules=["query"], task_type="SEQ_CLS")
    found = locate(read_adapter(folder), bert)
    theirs = {k.removeprefix("bert."): v for k, v in merged_by_peft(whole, folder).items()}
    assert_close(merged(found), {name: theirs[name] for name in found.state})
    assert found.strangers == ("classifier.bias", "classifier.weight")
    assert "the prefix 'bert.' was taken off" in found.notes[0]


@pytest.mark.parametrize("name", ["lora", "lora_A", "weight"])
def test_an_adapter_may_be_called_anything(bert: TextEncoder, tmp_path: Path, name: str) -> None:
    """Peft #2699: an adapter called lora was ignored."""
    if name == "weight":  # a name of PEFT's own
        folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    else:
        folder = save_lora(bert.model, tmp_path, name=name, target_modules=["query"])
    adapter = read_adapter(folder)
    assert len(adapter.modules) == 2 and all(update.moves for update in adapter.modules.values())
    named = {
        k.replace(".lora_A.", f".lora_A.{name}x.").replace(".lora_B.", f".lora_B.{name}x."): t
        for k, t in load_file(folder / WEIGHTS).items()
    }
    again = adapter_of(named, adapter.config, "X")
    assert all(torch.equal(again.modules[path].up, update.up) for path, update in adapter.modules.items())
    two = named | load_file(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="more than once|several adapters"):
        adapter_of(two, adapter.config, "X")


def test_the_dtype_is_kept(bert: TextEncoder, tmp_path: Path) -> None:
    """Aprender #2189: a bf16 adapter on a float32 base."""
    folder = save_lora(bert.model, tmp_path / "a", dtype=torch.bfloat16, target_modules=["query"])
    adapter = read_adapter(folder)
    assert {u.down.dtype for u in adapter.modules.values()} == {torch.bfloat16}
    vector = as_task_vector(locate(adapter, bert))
    assert {t.dtype for t in vector.values()} == {torch.float32}
    update = adapter.modules["encoder.layer.0.attention.self.query"]
    exact = 3.0 * update.up.double() @ update.down.double()
    assert_close(vector["encoder.layer.0.attention.self.query.weight"].double(), exact, rtol=1e-5, atol=1e-5)
    again = write_adapter(adapter, tmp_path / "b", [])
    assert {t.dtype for t in load_file(again / WEIGHTS).values()} == {torch.bfloat16}
    assert {t.dtype for t in tensors_of(in_dtype(adapter, torch.float16)).values()} == {torch.float16}


CONFIGS: list[dict[str, Any]] = [
    {"target_modules": ["q", "k.v"]},
    {"target_modules": ["q"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q", "model.layers.1.q"], "layers_to_transform": 0},
    {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q"], "layers_to_transform": []},
    {"target_modules": r".*layers\.(0|1)\.\w+"},
    {"target_modules": ["q", "v"], "exclude_modules": ["0.q"]},
    {"target_modules": ["q", "v"], "exclude_modules": r".*\.1\..*"},
    {"target_modules": ["q", "v"], "modules_to_save": ["v"]},
]
PATHS = [
    f"{lead}layers.{n}.{end}" for lead in ("", "model.", "a.h.1.") for n in (0, 1, 2) for end in ("q", "v", "xq", "k.v")
]


@pytest.mark.parametrize("said", CONFIGS, ids=json.dumps)
def test_modules_are_matched_as_peft_matches_them(said: dict[str, Any]) -> None:
    config = LoraConfig(**said)
    theirs = {path for path in PATHS if bool(check_target_module_exists(config, path)) and not _excluded(config, path)}
    assert {path for path in PATHS if targets(said, path)} == theirs


def _excluded(config: Any, path: str) -> bool:
    return type(check_target_module_exists(config, path)).__name__ == "_ExcludedModule"


def test_patterns_are_matched_as_peft_matches_them() -> None:
    patterns = {"q": 1, r"layers\.1\.v": 2, "v": 3, "^model.layers.0.xq": 4, "a.*xq": 5}
    for path in PATHS:
        expected = patterns.get(get_pattern_key(patterns.keys(), path), 8)
        assert rank_of({"r": 8, "rank_pattern": patterns}, path) == expected
        assert alpha_of({"lora_alpha": 8, "alpha_pattern": patterns}, path) == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "is an adapter of type IA3: LoRA is read alone"),
    "no kind": ({"peft_type": None}, "of type unknown"),
    "PiSSA": (
        {"init_lora_weights": "pissa_niter_4"},
        "begun by pissa_niter_4.*path_initial_model_for_weight_conversion",
    ),
    "fused experts": ({"target_parameters": ["experts.gate_up_proj"]}, "bare parameters, such as fused experts"),
    "activated": ({"alora_invocation_tokens": [1]}, "an activated LoRA"),
    "repeated layers": ({"layer_replication": [[0, 2]]}, "layers were doubled"),
    "old fused LoRA": ({"enable_lora": [True, False, True]}, "some parts of a fused module"),
    "rank as text": ({"r": "4"}, "r is '4' in its configuration"),
    "rank zero": ({"r": 0}, "r is 0"),
    "unknown bias": ({"bias": "some"}, "none, all or lora_only"),
    "another rank": ({"r": 8}, r"has rank 4 and 4 in the file and 8 in adapter_config.json \(r and rank_pattern\)"),
    "not asked for": ({"target_modules": ["value"]}, "query, which its adapter_config.json does not ask for"),
    "another layer": ({"layers_to_transform": [5]}, "does not ask for"),
    "DoRA without magnitudes": ({"use_dora": True}, "magnitudes of DoRA for 0 of 2 modules"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_configuration_that_is_not_read_is_named(bert: TextEncoder, tmp_path: Path, what: str) -> None:
    change, message = REFUSED[what]
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder)


TENSORS: dict[str, tuple[Any, str]] = {
    "half of a pair": (lambda t: {k: v for k, v in t.items() if "layer.0" not in k or "lora_B" not in k}, "holds no lora_B of .*layer.0"),
    "not finite": (lambda t: {k: v * float("nan") for k, v in t.items()}, "NaN or infinite"),
    "a convolution": (lambda t: {k: v[..., None] for k, v in t.items()}, r"\(4, 12, 1\), where a linear map's has two axes"),
    "not gathered": (lambda t: {k: v.flatten()[:0] for k, v in t.items()}, "without gathering the others"),
    "quantised": (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "is quantised"),
    "no LoRA": (lambda t: {"model.weight": torch.zeros(2)}, "holds no LoRA: its 1 tensors are model.weight"),
    "single tokens": (lambda t: t | {"base_model.model.e.token_adapter.trainable_tokens_delta": torch.zeros(2)}, "single rows"),
    "a magnitude": (lambda t: t | {"base_model.model.encoder.layer.0.attention.self.query.lora_magnitude_vector": torch.ones(12)}, "magnitudes of DoRA for 1 of 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_are_no_whole_adapter_are_named(bert: TextEncoder, tmp_path: Path, what: str) -> None:
    change, message = TENSORS[what]
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    tensors = {k: v.contiguous() for k, v in change(load_file(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder)


def test_dropped_magnitudes_are_named(bert: TextEncoder, tmp_path: Path) -> None:
    """unsloth-zoo #828."""
    folder = save_lora(bert.model, tmp_path, target_modules=["query"], use_dora=True)
    save_file({k: v for k, v in load_file(folder / WEIGHTS).items() if "magnitude" not in k}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="magnitudes of DoRA for 0 of 2 modules"):
        read_adapter(folder)


def test_folders_without_an_adapter_say_what_to_do(bert: TextEncoder, tmp_path: Path) -> None:
    folder = save_lora(bert.model, tmp_path / "many", name="first", target_modules=["query"])
    assert is_adapter(folder) and is_adapter(folder / WEIGHTS) and not is_adapter(tmp_path / "many")
    with pytest.raises(CheckpointError, match="holds no adapter_config.json itself, but first in it"):
        read_adapter(tmp_path / "many")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"as adapter_model.bin, a pickle.*safe_serialization=True"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no adapter_model.safetensors beside"):
        read_adapter(folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(CheckpointError, match="no configuration of an adapter"):
        read_adapter(folder)


def test_shards_are_read_by_their_index(bert: TextEncoder, tmp_path: Path) -> None:
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    whole = read_adapter(folder)
    tensors = load_file(folder / WEIGHTS)
    names = [f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = [dict(list(tensors.items())[n::2]) for n in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="without a readable adapter_model.safetensors.index.json"):
        read_adapter(folder)
    index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    again = read_adapter(folder)
    assert all(torch.equal(again.modules[path].up, update.up) for path, update in whole.modules.items())
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match="names other files than lie there"):
        read_adapter(folder)


def test_modules_that_a_base_has_not_are_an_error_by_name(bert: TextEncoder, tmp_path: Path) -> None:
    """Vllm #34186, colpali #424, transformers #38927: renamed module paths changed nothing, silently."""
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    renamed = {k.replace("attention.self", "attn.selff"): v for k, v in load_file(folder / WEIGHTS).items()}
    adapter = adapter_of(renamed, read_adapter(folder).config, "X")
    with pytest.raises(
        CheckpointError,
        match=r"X has a LoRA of encoder.layer.0.attn.selff.query \(2 of its 2.*did you mean '.*attention.self.query'",
    ):
        locate(adapter, bert)
    one = {k.replace("layer.1.attention", "layer.9.attention"): v for k, v in load_file(folder / WEIGHTS).items()}
    with pytest.raises(CheckpointError, match=r"layer.9.* \(1 of its 2"):
        locate(adapter_of(one, adapter.config, "X"), bert)
    wide = tiny_encoder(seed=1, dtype=torch.float32, width=16)
    with pytest.raises(CheckpointError, match=r"of shape \(12, 12\), and tiny-bert-1 has one of \(16, 16\)"):
        locate(read_adapter(folder), wide)


def test_another_vocabulary_is_named(bert: TextEncoder, tmp_path: Path) -> None:
    """autotrain-advanced #790, peft #2415: padded and resized embeddings."""
    folder = save_lora(bert.model, tmp_path / "a", target_modules=["word_embeddings", "query"])
    tensors, config = load_file(folder / WEIGHTS), read_adapter(folder).config
    key = "base_model.model.embeddings.word_embeddings.lora_embedding_A"
    with pytest.raises(
        CheckpointError,
        match="is of 77 tokens in 12 features.*embedding of 80 in 12: its vocabulary was padded or resized",
    ):
        locate(adapter_of(tensors | {key: tensors[key][:, :77]}, config, "X"), bert)
    whole = tensors | {"base_model.model.embeddings.word_embeddings.base_layer.weight": torch.zeros(77, 12)}
    with pytest.raises(
        CheckpointError, match=r"as \(77, 12\), where its base has \(80, 12\): a padded or resized vocabulary"
    ):
        merged(locate(adapter_of(whole, config, "X"), bert))


def test_a_base_of_few_bits_is_told(bert: TextEncoder, tmp_path: Path) -> None:
    """unsloth-zoo #810."""
    folder = save_lora(bert.model, tmp_path, target_modules=["query"])
    config = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}
    (folder / CONFIG).write_text(json.dumps(config))
    assert "trained on a base of few bits (unsloth/llama-3-8b-bnb-4bit)" in read_adapter(folder).notes[0]
    for name in ("Qwen/Qwen2-7B", "meta-llama/Llama-3.2-1B", "google/flow-4", "mistralai/Mistral-7B-v0.1", ""):
        assert quantised_base({"base_model_name_or_path": name}) is None
    for name in ("TheBloke/X-7B-GPTQ", "x-AWQ", "x-int8", "x-fp8", "x-4bit", "y-8bits", "z-nf4"):
        assert quantised_base({"base_model_name_or_path": name}) == name


def test_an_adapter_is_not_written_over_another(bert: TextEncoder, tmp_path: Path) -> None:
    adapter = read_adapter(save_lora(bert.model, tmp_path, target_modules=["query"]))
    with pytest.raises(OutputError, match="holds an adapter already"):
        write_adapter(adapter, tmp_path, [])

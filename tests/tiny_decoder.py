"""Tiny decoders of transformers' own classes with random weights, tokenizers for them, and the same function in another basis."""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bico.data.text import Completion
from bico.models.decoder.decoder import Decoder
from tests.symmetry import _rotations
from tests.tiny_encoder import WORDS, stream_rotation, texts

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox")
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def bytes_tokenizer(size: int = 70, begin: bool = True, seed: int = 77) -> PreTrainedTokenizerFast:
    """Byte pairs trained on texts of the tiny words, as GPT-2's and Llama 3's are.

    Arguments:
        begin: Whether a token stands before each text.
        seed: Of the texts: another one cuts words elsewhere.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = [*sorted(set("".join(WORDS)) | set(" :?[]<>/")), "\u0120"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(texts(60, seed=seed), trainer)
    if begin:
        made.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
            ]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=48,
        chat_template=TEMPLATE,
    )  # fmt: skip


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Words and syllables behind a mark for blanks, as Llama 2's and Gemma's are; without a token for padding."""
    pieces = ["<unk>", "<s>", "</s>", "\u2581", *(f"\u2581{word}" for word in WORDS)]
    letters = sorted(set("".join(WORDS)) | set(":?[]<>/"))
    made = Tokenizer(models.Unigram([(piece, -1.0 - n / 100) for n, piece in enumerate([*pieces, *letters])], 0))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=48,
        chat_template=TEMPLATE,
    )  # fmt: skip


def config_of(
    kind: str,
    width: int = 16,
    hidden: int = 20,
    layers: int = 2,
    heads: int = 4,
    keys: int = 2,
    size: int = 4,
    **more: Any,
) -> Any:
    """Heads are `size` wide, whatever the width, where the kind knows that; GQA where it knows that."""
    shape: dict[str, Any] = {
        "vocab_size": 90, "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": kind in ("gpt2", "gemma2", "gemma3_text", "qwen2"),
    }  # fmt: skip
    if kind in GATED:
        shape["num_key_value_heads"] = keys
    if kind in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text"):
        shape["head_dim"] = size
    match kind:
        case "gpt2":
            shape |= {"n_inner": hidden, "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 64}
            shape |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
        case "gemma2" | "gemma3_text":
            shape |= {"query_pre_attn_scalar": size, "sliding_window": 8}
            shape |= {"layer_types": (["sliding_attention", "full_attention"] * layers)[:layers]}
        case "gpt_neox":
            shape |= {"rotary_pct": 0.5, "hidden_dropout": 0.1}
    return AutoConfig.for_model(kind, **shape | more)


def tiny_decoder(
    seed: int,
    kind: str = "llama",
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float64,
    **shape: Any,
) -> Decoder:
    """Biases are not zero; norms are left as they are made, so that they commute with `rotated_copy`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(kind, **shape)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and "norm" not in name and ".ln_" not in name:
                parameter.normal_(0, 0.3)
    return Decoder(model, tokenizer or bytes_tokenizer(), f"tiny-{kind}-{seed}")


def examples(count: int, seed: int = 0, longest: int = 4) -> list[Completion]:
    """Texts of words that are completed by words."""
    pairs = zip(texts(count, seed, longest), texts(count, seed + 100, 2), strict=True)
    return [Completion(f"{prompt}:", f" {answer}") for prompt, answer in pairs]


def random_task_vector(model: Decoder, seed: int = 3, scale: float = 0.2) -> dict[str, Tensor]:
    """A change of the sites alone, weights and biases, as large as `scale` times the weights."""
    generator = torch.Generator().manual_seed(seed)
    slots = {slot.parameter for site in model.sites for slot in (site.weight, site.bias) if slot is not None}
    return {
        name: scale * p.double().std() * torch.randn(p.shape, dtype=torch.float64, generator=generator)
        if name in slots
        else torch.zeros_like(p, dtype=torch.float64)
        for name, p in model.state().items()
    }


@torch.no_grad()
def rotated_copy(model: Decoder, seed: int) -> Decoder:
    """The same function in another basis: a rotated residual stream, values rotated inside their heads, hidden units
    permuted.

    The norms of a new model are ones, so that they commute with rotations of the stream (a LayerNorm only with those that
    keep the mean). Under RoPE q and k commute with rotations inside its pairs alone, and with none where they are normed by
    weights of their own; where positions are learnt, with any that both share.
    """
    generator = torch.Generator().manual_seed(seed)
    twin, config, heads = copy.deepcopy(model.model), model.model.config, model.heads
    width = config.hidden_size
    mean_free = config.model_type in ("gpt2", "gpt_neox")
    stream = stream_rotation(width, generator) if mean_free else _rotations(1, width, generator)
    for module in twin.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.copy_(module.weight @ stream)
    if twin.get_output_embeddings().weight is not twin.get_input_embeddings().weight:
        twin.get_output_embeddings().weight.copy_(twin.get_output_embeddings().weight @ stream)
    state = {name: p.detach() for name, p in twin.named_parameters()}
    bases: dict[tuple[int | None, str], Tensor] = {}
    for site in model.sites:
        if site.role == "q":
            turns = [turn_of_pairs(model, generator) for _ in range(heads.keys)]
            values = [_rotations(1, heads.size, generator) for _ in range(heads.keys)]
            group = heads.queries // heads.keys
            bases[site.block, "q"] = torch.block_diag(*(turn for turn in turns for _ in range(group)))
            bases[site.block, "k"] = torch.block_diag(*turns)
            bases[site.block, "v"] = torch.block_diag(*values)
            bases[site.block, "o_in"] = torch.block_diag(*(value for value in values for _ in range(group)))
            units = torch.randperm(hidden_of(model), generator=generator)
            for role in ("gate", "up", "fc_in"):
                bases[site.block, role] = torch.eye(hidden_of(model), dtype=torch.float64)[:, units]
        out = bases.get((site.block, site.role), stream)
        inner = {"o": "o_in", "down": "up", "fc_out": "fc_in"}.get(site.role)
        into = stream if inner is None else bases[site.block, inner]
        site.weight.write(state, out.T @ site.weight.read(state) @ into)
        if site.bias is not None:
            site.bias.write(state, site.bias.read(state) @ out)
    return Decoder(twin, model.tokenizer, f"{model.name}-rotated")


def hidden_of(model: Decoder) -> int:
    return next(site.shape[1] for site in model.sites if site.role in ("down", "fc_out"))


def turn_of_pairs(model: Decoder, generator: torch.Generator) -> Tensor:
    """What may be done to the features of a head of k, and to those of the heads of q that it serves."""
    heads = model.heads
    if not heads.rotary:
        return _rotations(1, heads.size, generator)
    turn = torch.eye(heads.size, dtype=torch.float64)
    for pair in heads.pairs:
        angle = torch.rand(1, generator=generator, dtype=torch.float64) * 6.28
        cos, sin = angle.cos(), angle.sin()
        block = torch.stack([torch.cat([cos, sin]), torch.cat([-sin, cos])])
        turn[torch.tensor(pair)[:, None], torch.tensor(pair)] = block
    rest = heads.size - heads.rotary
    if rest:
        turn[heads.rotary :, heads.rotary :] = _rotations(1, rest, generator)
    return turn


def write_decoder(
    folder: Path, seed: int, kind: str = "llama", dtype: torch.dtype = torch.float32, **shape: Any
) -> Path:
    """A folder in transformers' format."""
    model = tiny_decoder(seed, kind, dtype=dtype, **shape)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder

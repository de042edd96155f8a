"""Where each kind of decoder keeps its linear maps: one table, by the `model_type` of its configuration.

Roles are q, k, v and o of attention; gate, up and down of a gated feed-forward; fc_in and fc_out of a plain one. A new kind
is a line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

READS = {
    **dict.fromkeys("qkv", "attn_in"),
    "o": "o_in",
    **dict.fromkeys(("gate", "up", "fc_in"), "mlp_in"),
    **dict.fromkeys(("down", "fc_out"), "down_in"),
}
"""What the map of each role reads; those that read one tensor share its covariance."""


@dataclass(frozen=True)
class Fused:
    """A module that computes the maps of one role, or of several, one behind the other along its outputs."""

    path: str
    """Within a block."""
    roles: tuple[str, ...]
    by_head: bool = False
    """Whether each head has its part of every role side by side."""


@dataclass(frozen=True)
class Layout:
    """Where one kind of decoder keeps what fine-tuning changes; paths as its model with a head spells them."""

    blocks: str
    """The list of blocks."""
    maps: tuple[Fused, ...]
    """In forward order."""
    norm: str
    """The norm behind the blocks, which is tuned with them."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        return f"{self.blocks}.", f"{self.norm}."


def _maps(**paths: str) -> tuple[Fused, ...]:
    """Modules by role; the roles of a fused one are joined by `_`."""
    return tuple(Fused(path, tuple(roles.split("_")) if roles in _FUSED else (roles,)) for roles, path in paths.items())


_FUSED = ("q_k_v", "gate_up")
_LLAMA = Layout(
    "model.layers",
    _maps(
        **{role: f"self_attn.{role}_proj" for role in "qkvo"},
        **{role: f"mlp.{role}_proj" for role in ("gate", "up", "down")},
    ),
    "model.norm",
)
_PHI3 = Layout(
    "model.layers",
    _maps(q_k_v="self_attn.qkv_proj", o="self_attn.o_proj", gate_up="mlp.gate_up_proj", down="mlp.down_proj"),
    "model.norm",
)
_GPT2 = Layout(
    "transformer.h",
    _maps(q_k_v="attn.c_attn", o="attn.c_proj", fc_in="mlp.c_fc", fc_out="mlp.c_proj"),
    "transformer.ln_f",
)
_GPT_NEOX = Layout(
    "gpt_neox.layers",
    (
        Fused("attention.query_key_value", ("q", "k", "v"), by_head=True),
        *_maps(o="attention.dense", fc_in="mlp.dense_h_to_4h", fc_out="mlp.dense_4h_to_h"),
    ),
    "gpt_neox.final_layer_norm",
)
LAYOUTS: dict[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
}

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OTHER_SENSES = ("vision_config", "audio_config", "vision_tower_config")


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a decoder is not served, from its configuration; None of one that is, and of what is no decoder.

    Example:
        >>> refusal({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8})
        'a mixture of experts (num_local_experts=8), whose maps are fused across experts'
        >>> refusal({"model_type": "llama"}), refusal({"model_type": "bert"})
        (None, None)
    """
    if config.get("model_type") not in LAYOUTS and not _writes(config):
        return None
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        return f"quantised ({method}), and its updates are of the weights before: give those"
    for key in _EXPERTS:
        if isinstance(count := config.get(key), int) and count > 1:
            return f"a mixture of experts ({key}={count}), whose maps are fused across experts"
    if sense := next((key for key in _OTHER_SENSES if config.get(key)), None):
        return f"multimodal (it has a {sense}): give its language model alone, if it comes by itself"
    if config.get("model_type") not in LAYOUTS:
        return f"of a kind that has no line in the table of decoders, which are {', '.join(LAYOUTS)}"
    if config.get("add_cross_attention"):
        return "one with cross-attention, which reads another model"
    return None


def _writes(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a model that writes text by itself."""
    kinds = config.get("architectures") or ()
    return any(str(kind).endswith("ForCausalLM") for kind in kinds) or (
        any(str(kind).endswith("ForConditionalGeneration") for kind in kinds) and bool(config.get("vision_config"))
    )


@dataclass(frozen=True)
class Heads:
    """Of attention: what maps of q and k have to respect if attention under RoPE is to stay what it is.

    RoPE turns features i and i + rotary/2 of each head, for i below rotary/2, by an angle of their own that grows with the
    position. What commutes with all of these is a rotation (and a scale) within each such pair, which q and k must share.
    """

    queries: int
    keys: int
    """Heads of keys and values; each serves queries/keys heads of queries."""
    size: int
    """Features per head."""
    rotary: int
    """Of these, the first so many are turned by RoPE; 0 where positions are learnt."""
    normed: bool = False
    """Whether q and k are normalised within their heads before RoPE, so that their scale is lost."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs of features in a head that RoPE turns.

        Example:
            >>> Heads(2, 1, 6, 4).pairs
            ((0, 2), (1, 3))
        """
        half = self.rotary // 2
        return tuple((feature, feature + half) for feature in range(half))

    @property
    def features(self) -> dict[str, int]:
        """Outputs of q, k and v."""
        return {"q": self.queries * self.size, **dict.fromkeys("kv", self.keys * self.size)}


def heads_of(config: Any) -> Heads:
    """Reads heads off a configuration of transformers."""
    queries = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    rope = getattr(config, "rope_parameters", None)
    if config.model_type == "gpt2":
        rotary = 0
    else:
        share = (rope or {}).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        rotary = int(size * share)
    return Heads(queries, keys, size, rotary, config.model_type in ("qwen3", "gemma3_text"))

"""Where each kind of encoder keeps its linear maps: one table, by the `model_type` of its configuration.

Roles are those of T5's encoder: q, k, v and o of attention, wi and wo of the feed-forward, and the gate that a gated one
multiplies wi's activation with. A new kind is a line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

READS = {"q": "attn_in", "k": "attn_in", "v": "attn_in", "o": "o_in", "wi": "wi_in", "gate": "wi_in", "wo": "wo_in"}
"""What the map of each role reads; those that read one tensor share its covariance."""


@dataclass(frozen=True)
class Part:
    """A linear map in a block: a module, or one of several equal parts of a fused one, cut along its outputs."""

    path: str
    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class Layout:
    """Where one kind of encoder keeps what fine-tuning changes; paths as its base model spells them."""

    blocks: str
    """The list of blocks."""
    parts: Mapping[str, Part]
    """By role, in forward order; paths within a block."""
    behind: tuple[str, ...] = ()
    """Modules behind the blocks that are tuned with them."""
    twice: tuple[str, ...] = ()
    """Roles whose maps are called once more in a pass, on what is no token."""
    around: str = ""
    """The module in a block that makes these calls, the tokens' first."""


def _plain(*paths: str) -> dict[str, Part]:
    """Modules for q, k, v, o, wi and wo, in this order."""
    return {role: Part(path) for role, path in zip(("q", "k", "v", "o", "wi", "wo"), paths, strict=True)}


_BERT = Layout(
    "encoder.layer",
    _plain(
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
)
_MPNET = Layout(
    "encoder.layer", _plain(*(f"attention.attn.{name}" for name in "qkvo"), "intermediate.dense", "output.dense")
)
_DISTILBERT = Layout(
    "transformer.layer",
    _plain(*(f"attention.{name}_lin" for name in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"),
)
_DEBERTA = Layout(
    "encoder.layer",
    _plain(
        *(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    # Relative positions are turned into keys and queries by the maps of the tokens.
    twice=("q", "k"),
    around="attention.self",
)
_MODERNBERT = Layout(
    "layers",
    {
        **{role: Part("attn.Wqkv", index, 3) for index, role in enumerate("qkv")},
        "o": Part("attn.Wo"),
        "wi": Part("mlp.Wi", 0, 2),
        "gate": Part("mlp.Wi", 1, 2),
        "wo": Part("mlp.Wo"),
    },
    behind=("final_norm",),
)
LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "mpnet": _MPNET,
    "distilbert": _DISTILBERT,
    "deberta-v2": _DEBERTA,
    "modernbert": _MODERNBERT,
}

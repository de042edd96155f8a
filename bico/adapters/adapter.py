"""An adapter in memory, by the names of the base model that it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bico.adapters.factors import LowRank


@dataclass(frozen=True)
class Adapter:
    """What a folder of PEFT holds, in the dtypes that it holds it in."""

    place: str
    """How messages call it."""
    modules: Mapping[str, LowRank]
    """Updates of linear maps, by the path of the module as PEFT spells it behind `base_model.model.`: what lies inside a
    wrapped `nn.MultiheadAttention` is called `attn.base_layer.out_proj`."""
    config: Mapping[str, Any]
    """`adapter_config.json`."""
    embeddings: Mapping[str, LowRank] = field(default_factory=dict)
    """Updates of embeddings, transposed: A is (rank, tokens) and B (features, rank)."""
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    """Of DoRA (Liu et al., 2024, arXiv:2402.09353): the norm that each output's weights are brought to, by module path."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors kept whole, not as updates: biases, `modules_to_save`, embeddings of a resized vocabulary; by their names in the
    base."""
    notes: tuple[str, ...] = ()
    """Lines for people."""

    @property
    def base(self) -> str:
        """The base model that its configuration names; empty if it names none."""
        return self.config.get("base_model_name_or_path") or ""

    @property
    def updates(self) -> dict[str, LowRank]:
        return {**self.modules, **self.embeddings}

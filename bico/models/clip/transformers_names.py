"""How transformers calls the parameters of a CLIP model, beside open_clip's names.

Both hold the same numbers in other forms: transformers has q, k and v apart, open_clip stacked as `in_proj`; projections are
stored as (out, in) there and as (in, out) here.
"""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bico.models.checkpoint_names import Naming, Piece

VISION, TEXT = "vision_model.", "text_model."
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_OUTSIDE = {
    "visual.class_embedding": f"{VISION}embeddings.class_embedding",
    "visual.positional_embedding": f"{VISION}embeddings.position_embedding.weight",
    "visual.conv1.weight": f"{VISION}embeddings.patch_embedding.weight",
    "visual.ln_pre.": f"{VISION}pre_layrnorm.",  # spelt so
    "visual.ln_post.": f"{VISION}post_layernorm.",
    "token_embedding.weight": f"{TEXT}embeddings.token_embedding.weight",
    "positional_embedding": f"{TEXT}embeddings.position_embedding.weight",
    "ln_final.": f"{TEXT}final_layer_norm.",
    "logit_scale": "logit_scale",
}
"""Those that end in a dot have a weight and a bias."""
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def namings(parameters: Iterable[str]) -> tuple[Naming, ...]:
    """Returns transformers' naming of a CLIP model, and that of its image tower alone (`CLIPVisionModel`), which has no
    projection.

    Arguments:
        parameters: open_clip's names, of the image tower at least.
    """
    pieces = {ours: piece for ours in parameters if (piece := _piece(ours)) is not None}
    # A model without a projection of its own was fine-tuned under one that stayed as it was.
    frozen = frozenset({"visual.proj"})
    tower = {
        ours: Piece(tuple(name.removeprefix(VISION) for name in piece.names), piece.join)
        for ours, piece in pieces.items()
        if ours.startswith("visual.")
    }
    return (
        Naming("a CLIP model of transformers", pieces, frozen),
        Naming("a CLIP image tower of transformers", tower, frozen),
    )


def _piece(ours: str) -> Piece | None:
    """What a parameter is made of; None of one that transformers' CLIP does not have."""
    if ours in _PROJECTIONS:
        return Piece((_PROJECTIONS[ours],), _transposed)
    if ours in _OUTSIDE:
        return Piece((_OUTSIDE[ours],))
    stem, _, kind = ours.rpartition(".")
    if f"{stem}." in _OUTSIDE:
        return Piece((f"{_OUTSIDE[f'{stem}.']}{kind}",))
    if (found := _BLOCK.fullmatch(ours)) is None:
        return None
    of_pictures, index, part, kind = found.groups()
    at = f"{VISION if of_pictures else TEXT}encoder.layers.{index}"
    if part == "attn.in_proj":
        return Piece(tuple(f"{at}.self_attn.{role}_proj.{kind}" for role in "qkv"), _stacked)
    return Piece((f"{at}.{_IN_BLOCK[part]}.{kind}",)) if part in _IN_BLOCK else None


def _transposed(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].T.contiguous()


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))

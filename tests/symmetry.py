"""The same function in another basis: permuted residual stream and hidden units, rotated or permuted attention heads.

A LayerNorm commutes with permutations of its channels, GELU with permutations of hidden units; inside a head the
queries and keys may be rotated together, and so may the values and the columns of the output projection; and heads
may trade places.
"""

import copy

import torch

from bico.models.clip.vit import ClipViT


@torch.no_grad()
def permuted_copy(model: ClipViT, seed: int, rotate_heads: bool = True) -> ClipViT:
    """A model of the same function. Without `rotate_heads` all changes are permutations: of whole heads and, the same
    for q, k, v and out_proj, inside the heads.
    """
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(model.model)
    visual = twin.visual
    width = visual.conv1.out_channels
    stream = torch.randperm(width, generator=generator)
    visual.conv1.weight.copy_(visual.conv1.weight[stream])
    visual.class_embedding.copy_(visual.class_embedding[stream])
    visual.positional_embedding.copy_(visual.positional_embedding[:, stream])
    visual.proj.copy_(visual.proj[stream])
    norms = [norm for norm in (visual.ln_pre, visual.ln_post) if isinstance(norm, torch.nn.LayerNorm)]
    for block in visual.transformer.resblocks:
        norms += [block.ln_1, block.ln_2]
        attention, heads = block.attn, block.attn.num_heads
        attention.in_proj_weight.copy_(attention.in_proj_weight[:, stream])
        attention.out_proj.weight.copy_(attention.out_proj.weight[stream])
        attention.out_proj.bias.copy_(attention.out_proj.bias[stream])
        if rotate_heads:
            turns = [_rotations(heads, width // heads, generator) for _ in range(2)]  # one for q and k, one for v
        else:
            turns = [_shuffled_heads(heads, width // heads, generator)] * 2
        for part, turn in zip(range(3), (turns[0], turns[0], turns[1]), strict=True):
            rows = slice(part * width, (part + 1) * width)
            attention.in_proj_weight[rows] = turn @ attention.in_proj_weight[rows]
            attention.in_proj_bias[rows] = turn @ attention.in_proj_bias[rows]
        attention.out_proj.weight.copy_(attention.out_proj.weight @ turns[1].T)
        hidden = torch.randperm(block.mlp.c_fc.out_features, generator=generator)
        block.mlp.c_fc.weight.copy_(block.mlp.c_fc.weight[hidden][:, stream])
        block.mlp.c_fc.bias.copy_(block.mlp.c_fc.bias[hidden])
        block.mlp.c_proj.weight.copy_(block.mlp.c_proj.weight[stream][:, hidden])
        block.mlp.c_proj.bias.copy_(block.mlp.c_proj.bias[stream])
    for norm in norms:
        norm.weight.copy_(norm.weight[stream])
        norm.bias.copy_(norm.bias[stream])
    return ClipViT(twin, model.preprocess, model.tokenizer, f"{model.name}-permuted")


def _rotations(heads: int, size: int, generator: torch.Generator) -> torch.Tensor:
    blocks = (
        torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q for _ in range(heads)
    )
    return torch.block_diag(*blocks)


def _shuffled_heads(heads: int, size: int, generator: torch.Generator) -> torch.Tensor:
    order = torch.randperm(heads, generator=generator)
    inside = torch.stack([torch.randperm(size, generator=generator) for _ in range(heads)])
    return torch.eye(heads * size, dtype=torch.float64)[(order[:, None] * size + inside).flatten()]

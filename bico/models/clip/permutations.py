"""The permutation symmetries of a CLIP ViT."""

from open_clip.transformer import VisionTransformer

from bico.models.permutations import PermutationGroup, SlotAxis
from bico.models.sites import Slot


def vit_permutations(visual: VisionTransformer, prefix: str) -> tuple[PermutationGroup, ...]:
    """Returns TransFusion's permutation groups (Rinaldi et al., 2025), in forward order.

    The residual stream is cut at every addition into 2 x depth + 1 segments with a permutation each. Between two
    segments the shortcut would have to carry a permutation matrix in place of the identity, so one needs the *same*
    permutation in all segments to leave a plain ViT's function as it is. Task vectors do not feel this: a shortcut is
    no parameter and does not change in fine-tuning, so its part of a task vector is zero in every basis, and the
    target keeps its own shortcuts.
    """
    width, last = visual.conv1.out_channels, len(visual.transformer.resblocks) - 1
    there = {name for name, _ in visual.named_parameters()}

    def place(parameter: str, axis: int = 0, rows: tuple[int, int] | None = None) -> SlotAxis:
        return SlotAxis(Slot(prefix + parameter, *(rows or ())), axis)

    def norm(name: str) -> list[SlotAxis]:
        # Some towers do without the first norm or the last.
        return [place(kind) for kind in (f"{name}.weight", f"{name}.bias") if kind in there]

    stream = [place("conv1.weight"), place("class_embedding"), place("positional_embedding", 1), *norm("ln_pre")]
    name = "conv"
    groups = []
    for index, block in enumerate(visual.transformer.resblocks):
        at = f"transformer.resblocks.{index}"
        hidden = block.mlp.c_fc.out_features
        qkv = [(part * width, (part + 1) * width) for part in range(3)]
        stream += norm(f"{at}.ln_1")
        stream += [place(f"{at}.attn.in_proj_weight", 1, rows) for rows in qkv]
        groups.append(PermutationGroup(name, width, tuple(stream)))
        attention = [place(f"{at}.attn.in_proj_{kind}", 0, rows) for kind in ("weight", "bias") for rows in qkv]
        attention.append(place(f"{at}.attn.out_proj.weight", 1))
        groups.append(PermutationGroup(f"{index}.attention", width, tuple(attention), block.attn.num_heads))
        stream = [place(f"{at}.attn.out_proj.weight"), place(f"{at}.attn.out_proj.bias"), *norm(f"{at}.ln_2")]
        stream.append(place(f"{at}.mlp.c_fc.weight", 1))
        groups.append(PermutationGroup(f"{index}.out_proj", width, tuple(stream)))
        neurons = [place(f"{at}.mlp.c_fc.weight"), place(f"{at}.mlp.c_fc.bias"), place(f"{at}.mlp.c_proj.weight", 1)]
        groups.append(PermutationGroup(f"{index}.hidden", hidden, tuple(neurons)))
        stream = [place(f"{at}.mlp.c_proj.weight"), place(f"{at}.mlp.c_proj.bias")]
        name = f"{index}.out" if index < last else "last"
    stream += [*norm("ln_post"), place("proj")]  # proj is stored (in, out): axis 0 is the stream's
    groups.append(PermutationGroup(name, width, tuple(stream)))
    return tuple(groups)

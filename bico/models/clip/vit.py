"""CLIP image towers of open_clip: sites, zero-shot head, loss.

The standard `VisionTransformer` with `nn.MultiheadAttention` blocks and class-token or average pooling is served:
every ViT of OpenAI CLIP, LAION and DataComp.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from bico.errors import CheckpointError, ShapeError
from bico.models.clip.permutations import vit_permutations
from bico.models.sites import Site, Slot
from bico.task_vector import StateDict, added, check_finite

PREFIX = "visual."


class ClipViT:
    """An open_clip `CLIP` model, frozen, whose image tower can give and take task vectors."""

    modality = "picture"
    losses = ("zero-shot",)
    probed = False
    prefixes = (PREFIX,)
    vocabulary = None

    def __init__(self, model: CLIP, preprocess: Any, tokenizer: Any, name: str = "model") -> None:
        """Arguments:
            model: The model; its parameters are frozen and it is put in eval mode.
            preprocess: From a PIL picture to a float tensor (3, height, width).
            tokenizer: From a list of strings to token ids (batch, context).
            name: How error messages call it.

        Raises:
            CheckpointError: If the image tower is not a standard ViT, or a parameter is not finite.
        """
        visual: Any = getattr(model, "visual", None)  # a tower of any kind
        standard = isinstance(visual, VisionTransformer) and all(
            isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks
        )
        if not standard or visual.attn_pool is not None or visual.proj is None:
            raise CheckpointError(
                f"{name}: its image tower is not a standard ViT with nn.MultiheadAttention blocks and a projection; "
                "other towers (ResNet, timm, attentional pooling) are not supported."
            )
        if not all(block.attn.batch_first for block in visual.transformer.resblocks):
            raise CheckpointError(
                f"{name}: its attention takes (tokens, batch, features); only towers that take (batch, tokens, features), "
                "as open_clip builds them, are supported."
            )
        # The causal mask of the text tower is -inf by design; it is a buffer, not a parameter.
        check_finite(((key, tensor) for key, tensor in model.state_dict().items() if key != "attn_mask"), name)
        self.model = model.eval().requires_grad_(False)
        self.preprocess, self.tokenizer, self.name = preprocess, tokenizer, name
        self.sites = vit_sites(visual)
        down, across = visual.grid_size
        self.grid = (down, across)
        self.tokens = 1 + down * across  # the class token and the patches
        self.permutations = vit_permutations(visual, PREFIX)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def state(self) -> StateDict:
        return {PREFIX + name: p.detach() for name, p in self.model.visual.named_parameters()}

    def trainable(self) -> list[nn.Parameter]:
        return list(self.model.visual.parameters())

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        return added(self.state(), vector, alpha)

    def prepare(self, examples: Sequence[Any]) -> Float[Tensor, "batch 3 height width"]:
        return torch.stack([self.preprocess(picture.convert("RGB")) for picture in examples])

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows))

    def mask(self, inputs: Tensor) -> None:
        return None

    @torch.no_grad()
    def head(self, class_names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "classes features"]:
        """The zero-shot head from the model's own text tower (Radford et al., 2021): each class is the normalised
        mean of its normalised prompt embeddings.
        """
        rows = []
        for name in class_names:
            tokens = self.tokenizer([template.replace("{}", name) for template in templates]).to(self.device)
            rows.append(F.normalize(self.model.encode_text(tokens, normalize=True).mean(0), dim=0))
        return torch.stack(rows)

    def features(self, inputs: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Image features before normalisation.

        Raises:
            ShapeError: If the pictures do not have the model's size.
        """
        expected = (3, *self.model.visual.image_size)
        if inputs.ndim != 4 or tuple(inputs.shape[1:]) != expected:
            raise ShapeError(
                f"{self.name} takes pictures of shape {expected}, got {tuple(inputs.shape[1:])}: "
                "preprocess them with this model's own `prepare`."
            )
        return self.model.encode_image(inputs.to(self.device))

    def logits(self, inputs: Tensor, head: Tensor) -> Float[Tensor, "batch classes"]:
        """Class scores: by the cosines to a zero-shot head (classes, features), or of a linear classifier of features
        (classes, features + 1) with its biases in the last column.
        """
        features = self.features(inputs)
        if head.shape[1] == features.shape[1] + 1:
            return features @ head[:, :-1].T + head[:, -1]
        return self.model.logit_scale.exp() * F.normalize(features, dim=-1) @ head.T

    def loss(
        self, inputs: Tensor, labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"], head: Tensor
    ) -> Float[Tensor, ""]:
        """Cross-entropy against the head, summed over the batch: gradients and covariances then add up over batches
        and do not depend on the batch size.

        Arguments:
            labels: Class indices, or a probability for every class.
        """
        return F.cross_entropy(self.logits(inputs, head), labels.to(self.device), reduction="sum")

    @contextmanager
    def instrument(self) -> Iterator[dict[str, nn.Module]]:
        """Splits every fused attention into q, k, v and out_proj modules and makes `proj` a module.

        PyTorch's fused attention reads `in_proj_weight` and the weight of `out_proj` itself, so hooks there never
        fire. The modules share the model's own parameters; the original modules are put back on leaving.
        """
        visual = self.model.visual
        blocks = list(visual.transformer.resblocks)
        fused = [block.attn for block in blocks]
        projection = visual.proj
        modules: dict[str, nn.Module] = {}
        # `pooled @ proj` is no module: leave it out of the tower and do it behind, where a hook can see it.
        modules["proj"] = project = _Linear(projection.T, None)
        hook = visual.register_forward_hook(lambda _module, _images, pooled: project(pooled))
        try:
            visual.proj = None
            for index, block in enumerate(blocks):
                block.attn = split = _SplitAttention(fused[index])
                modules |= {f"blocks.{index}.{role}": getattr(split, role) for role in ("q", "k", "v", "out_proj")}
                modules |= {f"blocks.{index}.{role}": getattr(block.mlp, role) for role in ("c_fc", "c_proj")}
            yield modules
        finally:
            for block, attention in zip(blocks, fused, strict=True):
                block.attn = attention
            visual.proj = projection
            hook.remove()


def vit_sites(visual: VisionTransformer) -> tuple[Site, ...]:
    """Returns the linear maps of a ViT in forward order: per block q, k, v, out_proj, c_fc, c_proj, and `proj` last.

    Not sites, and left alone by default: patch convolution, class and position embeddings, layer norms.
    """
    width = visual.conv1.out_channels
    sites = []
    for index, block in enumerate(visual.transformer.resblocks):
        at, name = f"{PREFIX}transformer.resblocks.{index}", f"blocks.{index}"

        def site(
            role: str,
            weight: Slot,
            bias: Slot,
            reads: str,
            shape: tuple[int, int],
            name: str = name,
            index: int = index,
        ) -> Site:
            return Site(f"{name}.{role}", index, role, weight, bias, f"{name}.{reads}", shape)

        for part, role in enumerate("qkv"):
            rows = (part * width, (part + 1) * width)
            weight, bias = Slot(f"{at}.attn.in_proj_weight", *rows), Slot(f"{at}.attn.in_proj_bias", *rows)
            sites.append(site(role, weight, bias, "attn_in", (width, width)))
        for role, path, linear in (
            ("out_proj", "attn.out_proj", block.attn.out_proj),
            ("c_fc", "mlp.c_fc", block.mlp.c_fc),
            ("c_proj", "mlp.c_proj", block.mlp.c_proj),
        ):
            shape = (linear.out_features, linear.in_features)
            sites.append(site(role, Slot(f"{at}.{path}.weight"), Slot(f"{at}.{path}.bias"), f"{role}_in", shape))
    pooled, features = visual.proj.shape
    sites.append(Site("proj", None, "proj", Slot(f"{PREFIX}proj", transposed=True), None, "pooled", (features, pooled)))
    return tuple(sites)


class _Linear(nn.Module):
    """`F.linear` on given tensors: a place for hooks that owns nothing."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.tensors = (weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.tensors)


class _SplitAttention(nn.Module):
    """The self-attention of an `nn.MultiheadAttention`, with q, k, v and out_proj as modules."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        weights, biases = fused.in_proj_weight.chunk(3), fused.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (_Linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = _Linear(fused.out_proj.weight, fused.out_proj.bias)
        self.heads = fused.num_heads

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        # (batch, tokens, width) -> (batch, heads, tokens, width / heads)
        q, k, v = (
            module(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for module, t in ((self.q, query), (self.k, key), (self.v, value))
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2).flatten(2)
        return self.out_proj(y), None

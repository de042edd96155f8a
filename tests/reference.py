"""THESEUS, GradFix and TransFusion written out slowly from their descriptions: an oracle for the fast versions.

Nothing here comes from `bico`: the forward pass of a ViT is spelt out on a state dictionary, sites are parameters
that somebody named in a loop, and permutations are matrices. Where this project departs from the published code on
purpose, the departure is named.
"""

import math

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

StateDict = dict[str, Tensor]
AT = "visual.transformer.resblocks.{}."


def split(state: StateDict, depth: int) -> StateDict:
    """The state with q, k, v apart and the shortcuts of the residual stream as identity matrices (TransFusion, 2.1)."""
    result = {name: tensor for name, tensor in state.items() if "in_proj" not in name}
    for block in range(depth):
        at = AT.format(block)
        for kind in ("weight", "bias"):
            for role, part in zip("qkv", state[f"{at}attn.in_proj_{kind}"].chunk(3), strict=True):
                result[f"{at}attn.{role}.{kind}"] = part
        width = len(state[f"{at}ln_1.weight"])
        result[f"{at}shortcut_1"] = result[f"{at}shortcut_2"] = torch.eye(width, dtype=torch.float64)
    return result


def fuse(state: StateDict, depth: int) -> StateDict:
    """The way back; shortcuts are left behind."""
    result = {name: tensor for name, tensor in state.items() if "shortcut" not in name}
    for block in range(depth):
        at = AT.format(block)
        for kind in ("weight", "bias"):
            parts = [result.pop(f"{at}attn.{role}.{kind}") for role in "qkv"]
            result[f"{at}attn.in_proj_{kind}"] = torch.cat(parts)
    return result


def forward(state: StateDict, depth: int, heads: int, images: Tensor, seen: dict | None = None) -> Tensor:
    """Image features of a split state; `seen` takes what every linear map reads and writes."""

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        if seen is not None:
            seen[name] = (x, y)
        return y

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = centred.square().mean(-1, keepdim=True)
        return centred / (spread + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    kernel = state["visual.conv1.weight"]
    patches = F.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(images), 1, -1)
    h = norm("visual.ln_pre", torch.cat([first, patches], 1) + state["visual.positional_embedding"])
    for block in range(depth):
        at = AT.format(block)
        x = norm(f"{at}ln_1", h)
        q, k, v = (linear(f"{at}attn.{role}", x).unflatten(-1, (heads, -1)) for role in "qkv")
        mixed = torch.zeros_like(v)
        for head in range(heads):
            scores = q[:, :, head] @ k[:, :, head].transpose(1, 2) / math.sqrt(q.shape[-1])
            mixed[:, :, head] = scores.softmax(-1) @ v[:, :, head]
        h = h @ state[f"{at}shortcut_1"].T + linear(f"{at}attn.out_proj", mixed.flatten(2))
        hidden = F.gelu(linear(f"{at}mlp.c_fc", norm(f"{at}ln_2", h)))
        h = h @ state[f"{at}shortcut_2"].T + linear(f"{at}mlp.c_proj", hidden)
    pooled = norm("visual.ln_post", h)[:, 0]
    features = pooled @ state["visual.proj"]
    if seen is not None:
        seen["visual.proj"] = (pooled, features)
    return features


def theseus(source: StateDict, target: StateDict, tau: StateDict, depth: int, heads: int, images: Tensor) -> StateDict:
    """Section 3, steps 1-5, on one grid of tokens.

    Departures: undetermined directions are left out of a map, `proj` reads the pooled token only, and layer norms
    are left alone.
    """
    ours, theirs = {}, {}
    forward(split(source, depth), depth, heads, images, ours)
    forward(split(target, depth), depth, heads, images, theirs)
    update, result = split(tau, depth), {}

    def polar(a: Tensor, b: Tensor) -> Tensor:
        moment = torch.zeros(a.shape[-1], b.shape[-1], dtype=torch.float64)
        for row_a, row_b in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True):
            moment += torch.outer(row_a, row_b)
        u, s, vh = torch.linalg.svd(moment, full_matrices=False)
        total = torch.zeros_like(moment)
        for i in range(len(s)):
            if s[i] > 1e-6 * s[0]:
                total += torch.outer(u[:, i], vh[i])
        return total

    for name in ours:
        t_in, t_out = polar(ours[name][0], theirs[name][0]), polar(ours[name][1], theirs[name][1])
        if name == "visual.proj":
            result[name] = t_in.T @ update[name] @ t_out
            continue
        result[f"{name}.weight"] = t_out.T @ update[f"{name}.weight"] @ t_in
        result[f"{name}.bias"] = update[f"{name}.bias"] @ t_out
    return fuse(result, depth)


def gradfix(
    target: StateDict,
    tau: StateDict,
    depth: int,
    heads: int,
    images: Tensor,
    labels: Tensor,
    head: Tensor,
    scale: float,
    mask: str,
    vote: str,
) -> StateDict:
    """Section 1.1, steps 3-5, entry by entry."""
    votes = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
    for image, label in zip(images, labels, strict=True):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in target.items()}
        features = forward(split(leaves, depth), depth, heads, image[None])[0]
        logits = scale * (head @ (features / features.norm()))
        loss = logits.logsumexp(0) - logits[label]
        loss.backward()
        for name, leaf in leaves.items():
            votes[name] += torch.sign(-leaf.grad)
            total[name] += leaf.grad / len(images)
    result = {}
    for name, tensor in tau.items():
        wanted = votes[name] if vote == "majority" else -total[name]
        entries = []
        for t, g in zip(tensor.flatten().tolist(), wanted.flatten().tolist(), strict=True):
            sign_t, sign_g = (t > 0) - (t < 0), (g > 0) - (g < 0)
            if mask == "force":
                entries.append(abs(t) * sign_g)
            else:
                entries.append(t if sign_g == sign_t else 0.0)
        result[name] = torch.tensor(entries, dtype=tensor.dtype).view_as(tensor)
    return result


class TransFusion:
    """Section 2: permutation matrices, one dictionary of which group acts on which axis of which split parameter."""

    def __init__(self, source: StateDict, target: StateDict, depth: int, heads: int, seed: int = 89) -> None:
        self.depth, self.heads = depth, heads
        self.a, self.b = split(source, depth), split(target, depth)
        self.groups = self.table()
        self.p: dict[str, Tensor] = {}
        for name, places in self.groups.items():
            parameter, axis = places[0]
            self.p[name] = torch.eye(self.a[parameter].shape[axis], dtype=torch.float64)
        self.match(torch.Generator().manual_seed(seed))

    def table(self) -> dict[str, list[tuple[str, int]]]:
        """Section 2.2, in its order."""
        groups: dict[str, list[tuple[str, int]]] = {}
        into = "conv"
        groups[into] = [
            ("visual.conv1.weight", 0),
            ("visual.class_embedding", 0),
            ("visual.positional_embedding", 1),
            ("visual.ln_pre.weight", 0),
            ("visual.ln_pre.bias", 0),
        ]
        for block in range(self.depth):
            at = AT.format(block)
            qkv = [f"{at}attn.{role}" for role in "qkv"]
            groups[into] += [(f"{at}ln_1.weight", 0), (f"{at}ln_1.bias", 0), (f"{at}shortcut_1", 1)]
            groups[into] += [(f"{name}.weight", 1) for name in qkv]
            groups[f"{block}_attn"] = [(f"{name}.{kind}", 0) for name in qkv for kind in ("weight", "bias")]
            groups[f"{block}_attn"] += [(f"{at}attn.out_proj.weight", 1)]
            groups[f"{block}_out_proj"] = [
                (f"{at}attn.out_proj.weight", 0),
                (f"{at}attn.out_proj.bias", 0),
                (f"{at}shortcut_1", 0),
                (f"{at}ln_2.weight", 0),
                (f"{at}ln_2.bias", 0),
                (f"{at}mlp.c_fc.weight", 1),
                (f"{at}shortcut_2", 1),
            ]
            groups[f"{block}_hidden"] = [
                (f"{at}mlp.c_fc.weight", 0),
                (f"{at}mlp.c_fc.bias", 0),
                (f"{at}mlp.c_proj.weight", 1),
            ]
            into = f"{block}_out"
            groups[into] = [(f"{at}mlp.c_proj.weight", 0), (f"{at}mlp.c_proj.bias", 0), (f"{at}shortcut_2", 0)]
        groups[into] += [("visual.ln_post.weight", 0), ("visual.ln_post.bias", 0), ("visual.proj", 0)]
        return groups

    def moved(self, state: StateDict, parameter: str, without: str | None = None) -> Tensor:
        """A parameter with the permutations of all groups (but one) applied to its axes."""
        tensor = state[parameter]
        for group, places in self.groups.items():
            for name, axis in places:
                if name == parameter and group != without:
                    tensor = torch.tensordot(self.p[group], tensor, dims=([1], [axis])).movedim(0, axis)
        return tensor

    def permuted(self, state: StateDict) -> StateDict:
        return {parameter: self.moved(state, parameter) for parameter in state}

    def transport(self, tau: StateDict) -> StateDict:
        """Section 2.4: the shortcuts have no task vector, and the target keeps its own."""
        update = split(tau, self.depth)
        update |= {name: torch.zeros_like(tensor) for name, tensor in update.items() if "shortcut" in name}
        moved = self.permuted(update)
        assert not any(moved[name].any() for name in moved if "shortcut" in name)
        return fuse(moved, self.depth)

    def match(self, generator: torch.Generator) -> None:
        """Section 2.3. Departure: a sweep without progress does not end the search before heads were looked into."""
        names, inside = list(self.groups), False
        for _ in range(100):
            progress, last_attention = False, False
            for index in torch.randperm(len(names), generator=generator).tolist():
                name = names[index]
                pairs = []
                for parameter, axis in self.groups[name]:
                    if "shortcut" not in parameter:
                        a, b = self.moved(self.a, parameter, name), self.b[parameter]
                        pairs.append((a.movedim(axis, 0), b.movedim(axis, 0)))
                if name.endswith("_attn"):
                    pairs = [(a, b) for a, b in pairs if a.ndim == 2]
                    gained = self.inside_heads(name, pairs) if inside else self.whole_heads(name, pairs)
                    last_attention = gained
                else:
                    similarity = sum(b.reshape(len(b), -1) @ a.reshape(len(a), -1).T for a, b in pairs)
                    gained = self.assign(name, similarity)
                progress = progress or gained
            if not inside and not last_attention:
                inside = True
            elif not progress:
                return

    def assign(self, name: str, similarity: Tensor) -> bool:
        rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
        best = torch.zeros_like(similarity)
        best[rows, columns] = 1
        gained = bool((best * similarity).sum() - (self.p[name] * similarity).sum() > 1e-12)
        if gained:
            self.p[name] = best
        return gained

    def whole_heads(self, name: str, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        size = len(self.p[name]) // self.heads
        cost = torch.zeros(self.heads, self.heads, dtype=torch.float64)
        for i in range(self.heads):
            for j in range(self.heads):
                for a, b in pairs:
                    ours = torch.linalg.svdvals(a[j * size : (j + 1) * size])
                    theirs = torch.linalg.svdvals(b[i * size : (i + 1) * size])
                    cost[i, j] += (theirs - ours).norm()
        rows, columns = linear_sum_assignment(cost.numpy())
        before = sum(cost[i, self.head_of(name, i)] for i in range(self.heads))
        if not before - cost[rows, columns].sum() > 1e-12:
            return False
        p = torch.zeros_like(self.p[name])
        for i, j in zip(rows, columns, strict=True):
            p[i * size : (i + 1) * size, j * size : (j + 1) * size] = torch.eye(size)
        self.p[name] = p  # heads are matched before anything is moved inside them
        return True

    def inside_heads(self, name: str, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        size, gained = len(self.p[name]) // self.heads, False
        for i in range(self.heads):
            mine = slice(i * size, (i + 1) * size)
            j = self.head_of(name, i)
            theirs = slice(j * size, (j + 1) * size)
            similarity = sum(b[mine] @ a[theirs].T for a, b in pairs)
            rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
            best = torch.zeros_like(similarity)
            best[rows, columns] = 1
            if ((best - self.p[name][mine, theirs]) * similarity).sum() > 1e-12:
                self.p[name][mine, theirs] = best
                gained = True
        return gained

    def head_of(self, name: str, i: int) -> int:
        """The source's head that stands at place i."""
        size = len(self.p[name]) // self.heads
        return int(self.p[name][i * size].argmax()) // size

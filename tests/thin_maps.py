"""Alignment maps between tiny models as thin factors, and what carrying an adapter by them gives when it is done densely."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bico.adapters.dense import as_task_vector
from bico.adapters.maps import Map, Maps, Sides
from bico.adapters.names import Located, locate
from bico.adapters.transport import Carried, matches
from bico.models.experts import everything
from bico.models.protocol import Calibratable
from bico.models.sites import Site
from bico.task_vector import StateDict
from tests.tiny_encoder import tiny_encoder


@dataclass(frozen=True)
class Factors:
    """A map as calibration solves it."""

    left: Tensor
    right: Tensor


def thin_maps(seed: int = 0, rank: int = 6, gain: float = 1.5) -> Maps:
    """Partial isometries between any two sites, one for each tensor that is read, as factors."""
    made: dict[tuple[str, str, str], Map] = {}

    def map_of(kind: str, ours: str, theirs: str, source: int, target: int) -> Map:
        key = (kind, ours, theirs)
        if key not in made:
            generator = torch.Generator().manual_seed(seed + len(made))
            k = min(rank, source, target)
            ends = (torch.randn(n, k, generator=generator, dtype=torch.float64) for n in (source, target))
            made[key] = Factors(*(torch.linalg.qr(end).Q for end in ends))
        return made[key]

    def sides(ours: Site, theirs: Site) -> Sides:
        (out_a, in_a), (out_b, in_b) = ours.shape, theirs.shape
        q_in, q_out = (
            map_of("in", ours.reads, theirs.reads, in_a, in_b),
            map_of("out", ours.name, theirs.name, out_a, out_b),
        )
        return Sides(q_in, q_out, gain, gain / 2)

    return sides


def dense(q: Map | None, width: int) -> Tensor:
    if q is None:
        return torch.eye(width, dtype=torch.float64)
    return q.double() if isinstance(q, Tensor) else (q.left @ q.right.T).double()


def by_hand(found: Located, source: Calibratable, target: Calibratable, maps: Maps) -> StateDict:
    """The target's task vector, formed with whole matrices."""
    tau, state = as_task_vector(found), everything(target)
    tau = {name: tau.get(name, torch.zeros_like(t)).double() for name, t in found.state.items()}
    vector = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in state.items()}
    for name, (ours,) in matches(found, source, target).items():
        site = next(site for site in target.sites if site.name == name)
        sides = maps(ours, site)
        q_in, q_out = dense(sides.reads, ours.shape[1]), dense(sides.gives, ours.shape[0])
        site.weight.write(vector, sides.gain * q_out.T @ ours.weight.read(tau) @ q_in)
        if ours.bias is not None and site.bias is not None:
            site.bias.write(vector, sides.bias_gain * q_out.T @ ours.bias.read(tau))
    return vector


def change_of(carried: Carried, target: Calibratable) -> StateDict:
    """What a carried adapter adds to the target, all tensors."""
    found = locate(carried.adapter, target)
    tau = as_task_vector(found)
    return {name: tau.get(name, torch.zeros_like(tensor)).double() for name, tensor in found.state.items()}


def bert(seed: int, **shape: int) -> Any:
    return tiny_encoder(seed=seed, dtype=torch.float32, **shape)


def module_of(model: Any) -> torch.nn.Module:
    return model.module if hasattr(model, "module") else model.model

"""An adapter's updates site by site, and back: fused modules are cut by rows of B and share A."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from bico.adapters.config import INNER, TWICE
from bico.adapters.factors import LowRank, concatenated
from bico.adapters.names import FUSED, Located, paths_of, rows_of
from bico.models.protocol import Calibratable
from bico.models.sites import Site


def at_sites(found: Located, sites: Iterable[Site]) -> dict[str, LowRank]:
    """Returns the update of every site that an adapter changes, by the site's name; DoRA's magnitudes are not looked at.

    A site that is some outputs of a module gets these rows of B, and the very A of the module.
    """
    of_parameter: dict[str, list[str]] = {}
    for path, slot in found.weights.items():
        if path in found.adapter.modules:
            of_parameter.setdefault(slot.parameter, []).append(path)
    updates = {}
    for site in sites:
        parts = []
        for path in of_parameter.get(site.weight.parameter, ()):
            parts += _part(found, path, site)
        if parts:
            updates[site.name] = concatenated(parts)
    return updates


def _part(found: Located, path: str, site: Site) -> list[LowRank]:
    """What one module's update is at a site; nothing if they share no output."""
    update = found.adapter.modules[path]
    ours, theirs = rows_of(found.weights[path], found.state), rows_of(site.weight, found.state)
    if torch.equal(ours, theirs):
        return [update]
    place = {int(row): n for n, row in enumerate(ours)}
    into = torch.tensor([n for n, row in enumerate(theirs.tolist()) if row in place], dtype=torch.long)
    if not len(into):
        return []
    taken = torch.tensor([place[row] for row in theirs.tolist() if row in place])
    up = update.up.new_zeros(len(theirs), update.rank).index_copy(0, into, update.up[taken])
    bias = update.bias
    if bias is not None:
        bias = bias.new_zeros(len(theirs)).index_copy(0, into, bias[taken])
    return [LowRank(update.down, up, update.alpha, update.rslora, bias)]


def as_modules(
    updates: Mapping[str, LowRank], sites: Sequence[Site], model: Calibratable, state: Mapping[str, Tensor]
) -> tuple[dict[str, LowRank], list[str]]:
    """Returns the updates of a model's modules from those of its sites, exactly, and the sites that no module of PEFT's holds.

    Sites of a fused module that share one A make one update of its rank; of other sites ranks add up. Outputs of a fused
    module whose site has no update get rows of zeros.
    """
    paths = paths_of(model, state)
    together: dict[str, list[Site]] = {}
    homeless = []
    for site in sites:
        if site.name not in updates:
            continue
        if site.weight.parameter in paths:
            together.setdefault(site.weight.parameter, []).append(site)
        else:
            homeless.append(site.name)
    modules = {}
    for parameter, members in together.items():
        shape = state[parameter].shape
        outputs = shape[-1] if members[0].weight.transposed else shape[0]
        blocks: dict[int, list[Site]] = {}
        for site in members:
            blocks.setdefault(id(updates[site.name].down), []).append(site)
        modules[paths[parameter]] = concatenated([_block(part, updates, state, outputs) for part in blocks.values()])
    return paired(modules, paths, state), homeless


def _block(sites: Sequence[Site], updates: Mapping[str, LowRank], state: Mapping[str, Tensor], outputs: int) -> LowRank:
    """One update of a whole module from those of its sites that share an A."""
    first = updates[sites[0].name]
    rows = [rows_of(site.weight, state) for site in sites]
    if len(sites) == 1 and torch.equal(rows[0], torch.arange(outputs)):
        return first
    parts = [updates[site.name].scaled_to(first.scale or 1.0) for site in sites]
    up = first.up.new_zeros(outputs, first.rank)
    bias = first.up.new_zeros(outputs) if any(part.bias is not None for part in parts) else None
    for part, where in zip(parts, rows, strict=True):
        up[where] = part.up
        if bias is not None and part.bias is not None:
            bias[where] = part.bias
    return LowRank(first.down, up, parts[0].alpha, first.rslora, bias)


def paired(modules: dict[str, LowRank], paths: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """PEFT wraps an `nn.MultiheadAttention` whole, with one rank and α for both of its maps: zeros are added where needed, and
    the output's scale is what PEFT makes of the α.
    """
    for parameter, path in paths.items():
        inner = path + INNER
        if not parameter.endswith(f".{FUSED}") or not {path, inner} & modules.keys():
            continue
        there = [modules[name] for name in (path, inner) if name in modules]
        rank = max(update.rank for update in there)
        scale = modules[path].scale if path in modules else modules[inner].scale / TWICE
        at = parameter.removesuffix(FUSED)
        for name, weight, at_scale in ((path, parameter, scale), (inner, f"{at}out_proj.weight", TWICE * scale)):
            if name not in modules:
                out, into = state[weight].shape
                like = there[0]
                empty = LowRank(like.down.new_zeros(1, into), like.up.new_zeros(out, 1), 1.0, like.rslora)
                modules[name] = empty.padded(rank).scaled_to(at_scale or 1.0)
            else:
                modules[name] = modules[name].padded(rank).scaled_to(at_scale or 1.0)
    return modules

r"""Adapters carried from one base to another, exactly and in the factors.

A LoRA's update is :math:`\tau_A = s B A`. An aligned method gives :math:`\tau_B = Q_{out}^\top \tau_A Q_{in}`, which is
:math:`s (Q_{out}^\top B) (A Q_{in})`: two thin factors again, of the same rank and α, without a matrix as large as a weight and
without a decomposition. A gain goes into B. DoRA's update is no product of thin factors: it is formed site by site, carried,
and cut to the rank of its factors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bico.adapters.adapter import Adapter
from bico.adapters.beside import carry_beside, left_behind
from bico.adapters.dense import as_task_vector
from bico.adapters.factors import LowRank, alpha_for, concatenated, factorised, truncated
from bico.adapters.maps import Maps, Sides, Thin, size_of, through
from bico.adapters.names import Located, paths_of
from bico.adapters.sites import as_modules, at_sites
from bico.errors import MethodError, ShapeError
from bico.methods.protocol import Others
from bico.models.depth import Depth, TakenSites, take_sites
from bico.models.experts import everything
from bico.models.protocol import Calibratable
from bico.models.sites import Site

Matched = Mapping[str, Sequence[Site]]
"""The source's sites that a site of the target takes its update from, by its name; usually one."""


@dataclass(frozen=True)
class Carried:
    """An adapter of the target, and what became of the source's."""

    adapter: Adapter
    paths: frozenset[str]
    """All modules of the target, for `write_adapter`."""
    kept: Mapping[str, float] = field(default_factory=dict)
    """The share of its update's energy that a module kept, where something was cut."""
    notes: tuple[str, ...] = ()
    """What was left behind, in lines for people."""


def transport(
    found: Located,
    source: Calibratable,
    target: Calibratable,
    maps: Maps,
    rank: int | None = None,
    others: Others = Others.LEAVE,
    matched: Matched | None = None,
) -> Carried:
    """Carries an adapter to another base.

    Arguments:
        found: The adapter, in the source.
        maps: How each pair of sites is aligned (`bico.adapters.maps`).
        rank: Cuts updates to it; None keeps every rank.
        others: What becomes of what lies at no site (embeddings, heads, norms): left behind, or taken as it is where
            shapes and tokenizers are the same.
        matched: From which sites each takes its update, several of which add up; by relative depth unless told.

    Raises:
        MethodError: If nothing would be carried, a role has no counterpart, or `others` is "add" and something does not fit.
        ShapeError: If a map is of another pair of models.
    """
    matched = matches(found, source, target) if matched is None else matched
    updates = at_sites(found, source.sites)
    dora = {found.weights[path].parameter for path in found.adapter.magnitudes}
    read = _Reader()
    carried: dict[str, LowRank] = {}
    kept: dict[str, float] = {}
    for site in target.sites:
        parts = []
        for ours in matched.get(site.name, ()):
            if ours.name not in updates:
                continue
            sides = maps(ours, site)
            check_sides(ours, site, sides)
            if ours.weight.parameter in dora:
                part, share = _carry_dense(found, ours, updates[ours.name], sides)
                kept[site.name] = min(share, kept.get(site.name, 1.0))
            else:
                part = _carry(updates[ours.name], sides, read, (ours.reads, site.reads))
            parts.append(part)
        if parts:
            carried[site.name] = concatenated(parts)
    state = everything(target)
    modules, homeless = as_modules(carried, target.sites, target, state)
    modules, cut = cut_to(modules, rank)
    beside = carry_beside(found, source, target, matched, maps, Others(others))
    if not any(update.moves for update in modules.values()) and not beside:
        raise MethodError(_nothing(found, updates, target))
    notes = [*found.adapter.notes, *beside.notes, *left_behind(found, source.sites)]
    notes += [f"No module of {target.name} holds {', '.join(homeless)}: its update is left out."] * bool(homeless)
    notes += _unused(updates, matched)
    config = {
        **found.adapter.config,
        "base_model_name_or_path": target.name,
        "revision": None,
        "bias": found.adapter.config.get("bias", "none") if beside.whole else "none",
        "modules_to_save": None,
        "fan_in_fan_out": any(site.weight.transposed for site in target.sites if site.name in carried),
    }
    adapter = Adapter(target.name, modules, config, beside.embeddings, {}, beside.whole)
    return Carried(adapter, frozenset(paths_of(target, state).values()), kept | cut, tuple(notes))


def matches(found: Located, source: Calibratable, target: Calibratable) -> dict[str, tuple[Site, ...]]:
    """The source site of each target site by relative depth, as `takes` finds it."""
    return {name: taken.sites for name, taken in takes(found, source, target).items()}


def takes(
    found: Located, source: Calibratable, target: Calibratable, depth: Depth = Depth.ONE
) -> dict[str, TakenSites]:
    """What each site of the target takes, of the roles that both have; biases do not matter, an adapter may have none.

    Raises:
        MethodError: If the adapter changes a role that the target has not.
    """
    roles = {(site.stack, site.role) for site in target.sites} & {(site.stack, site.role) for site in source.sites}
    changed = at_sites(found, source.sites)
    for site in source.sites:
        if site.name in changed and (site.stack, site.role) not in roles:
            raise MethodError(
                f"{found.adapter.place} has a LoRA of {site.name}, and {target.name} has no linear map of the role {site.role}: source "
                "and target must be of kinds with the same roles."
            )
    ours, theirs = (
        [replace(site, bias=None) for site in model.sites if (site.stack, site.role) in roles]
        for model in (source, target)
    )
    whole = {site.name: site for site in source.sites}
    taken = take_sites(ours, theirs, depth)
    return {name: replace(one, sites=tuple(whole[site.name] for site in one.sites)) for name, one in taken.items()}


def cut_to(modules: Mapping[str, LowRank], rank: int | None) -> tuple[dict[str, LowRank], dict[str, float]]:
    """Returns updates of at most a rank, and the share of its energy that each one kept that was cut."""
    if rank is None:
        return dict(modules), {}
    cut = {path: truncated(update, rank) for path, update in modules.items()}
    kept = {path: share for path, (_, share) in cut.items() if modules[path].rank > rank}
    return {path: update for path, (update, _) in cut.items()}, kept


def check_moves(found: Located, source: Calibratable, target: Calibratable, depth: Depth = Depth.ONE) -> None:
    """Raises MethodError if an adapter would change nothing of the target, whatever the maps; before there are any."""
    updates = at_sites(found, source.sites)
    matched = {name: taken.sites for name, taken in takes(found, source, target, depth).items()}
    used = {ours.name for site in target.sites for ours in matched.get(site.name, ())}
    kept = bool(
        found.adapter.whole or found.adapter.magnitudes
    )  # whether they differ from the base is told when it is read
    if not kept and not any(update.moves for name, update in updates.items() if name in used):
        raise MethodError(_nothing(found, updates, target))


def check_sides(ours: Site, theirs: Site, sides: Sides) -> None:
    """Raises ShapeError if maps do not fit two sites, or a side without a map has another width."""
    for side, q, axis in (("output", sides.gives, 0), ("input", sides.reads, 1)):
        expected = (ours.shape[axis], theirs.shape[axis])
        if q is None and expected[0] != expected[1]:
            raise ShapeError(
                f"{theirs.name} has {expected[1]} {side} features and the source's {ours.name} {expected[0]}: a copy needs equal "
                "widths; use a method that aligns both sides (bico, theseus)."
            )
        if q is not None and size_of(q) != expected:
            raise ShapeError(
                f"{theirs.name}: a map of shape {size_of(q)} cannot carry {expected[0]} {side} features to {expected[1]}; it belongs "
                "to another pair of models."
            )


def _nothing(found: Located, updates: Mapping[str, LowRank], target: Calibratable) -> str:
    """Why a carried adapter would change nothing."""
    place = found.adapter.place
    if not any(update.moves for update in found.adapter.updates.values()):
        return f"{place} changes nothing: every lora_B, or scale, is zero, as before training; give a trained adapter."
    if not any(update.moves for update in updates.values()):
        return f"{place} changes no linear map that is carried: nothing of {target.name} would change."
    return (
        f"{place} changes {len(updates)} linear maps, none of which a block of {target.name} takes its update from by relative "
        "depth: nothing would change; train it on more layers, or say which go where."
    )


def _unused(updates: Mapping[str, LowRank], matched: Matched) -> list[str]:
    """Updates that no site of a shallower target takes."""
    used = {site.name for sites in matched.values() for site in sites}
    if not (left := [name for name in updates if name not in used]):
        return []
    return [
        f"{len(left)} of the {len(updates)} linear maps that the adapter changes lie in blocks that no block of the target takes its "
        f"update from, such as {left[0]}: their updates are left out (of aligned methods, depth=sum takes them all)."
    ]


class _Reader:
    """A Q_in of each A, once: sites that read one tensor, and have one A, have one again."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, str, str], tuple[Tensor, Tensor]] = {}

    def __call__(self, down: Tensor, sides: Sides, reads: tuple[str, str]) -> Tensor:
        key = (id(down), *reads)
        if key not in self._done:
            self._done[key] = (down, _kept_in(down, lambda wide: through(wide, sides.reads)))
        return self._done[key][1]


def _carry(update: LowRank, sides: Sides, read: _Reader, reads: tuple[str, str]) -> LowRank:
    up = _kept_in(update.up, lambda wide: sides.gain * through(wide.T, sides.gives).T)
    bias = update.bias
    if bias is not None:
        bias = _kept_in(bias, lambda wide: sides.bias_gain * through(wide[None], sides.gives)[0])
    return replace(update, down=read(update.down, sides, reads), up=up, bias=bias)


def _carry_dense(found: Located, site: Site, update: LowRank, sides: Sides) -> tuple[LowRank, float]:
    """The update of a site with DoRA, carried and cut to the rank of its factors, and the share of its energy that is kept."""
    tau = site.weight.read(as_task_vector(found, only=[site.weight.parameter]))
    if isinstance(sides.reads, Thin) and isinstance(sides.gives, Thin):
        # Of rank k at most, and never as large as the target's weight.
        core = sides.gives.left.to(tau).T @ tau @ sides.reads.left.to(tau)
        up, down = sides.gives.right.to(tau) @ core, sides.reads.right.to(tau).T
        made, share = truncated(LowRank(down, up, alpha_for(1.0, len(down), False)), update.rank)
    else:
        moved = through(through(tau, sides.reads).T, sides.gives).T
        made, share = factorised(moved, update.rank, float(update.rank))
    scale = update.scale or 1.0
    made = made.padded(update.rank)
    up = sides.gain * made.scale / scale * made.up
    alpha = alpha_for(scale, update.rank, update.rslora)
    return LowRank(made.down, up, alpha, update.rslora).to(update.down.dtype), share


def _kept_in(tensor: Tensor, carry: Callable[[Tensor], Tensor]) -> Tensor:
    """Half precision is carried in float32, and kept in its own dtype."""
    return carry(tensor.to(torch.promote_types(tensor.dtype, torch.float32))).to(tensor.dtype)

"""Which of two models' sites belong together: by role, and blocks of models of different depth by relative depth."""

from collections.abc import Iterable, Mapping

from bico.errors import MethodError, ShapeError
from bico.models.sites import Site


def match_blocks(source: int, target: int) -> list[int]:
    """Returns, for each of the target's blocks, the source block it takes its update from.

    Target block j takes source block round(j (L_source - 1) / (L_target - 1)) (BiCo, section 5.3): order is kept,
    first goes to first and last to last, blocks repeat where the target is deeper and are skipped where it is
    shallower. Halves are rounded up.

    Example:
        >>> match_blocks(source=3, target=5)
        [0, 1, 1, 2, 2]
        >>> match_blocks(source=5, target=3)
        [0, 2, 4]
    """
    if source < 1 or target < 1:
        raise ShapeError(f"Blocks to match must be at least one on each side, got {source} and {target}.")
    if target == 1:
        return [source - 1]  # the last block carries the task's features to the head
    # floor(x + 1/2) in integers; Python's round() would send halves to the even neighbour.
    return [(2 * j * (source - 1) + target - 1) // (2 * (target - 1)) for j in range(target)]


def match_sites(source: Iterable[Site], target: Iterable[Site]) -> dict[str, Site]:
    """Returns the source site of every target site: of the same stack and role, and of the matched block.

    Blocks are matched by depth among those that have the role.

    Raises:
        MethodError: If the target has a role that the source lacks, such as another family's.
    """
    target = list(target)
    ours, theirs = by_role(source), by_role(target)
    matched: dict[str, Site] = {}
    for role, sites in theirs.items():
        if role not in ours:
            raise MethodError(
                f"Target site {sites[0].name} (role {sites[0].role}) has no counterpart in the source: source and target "
                "must be of the same family."
            )
        blocks = match_blocks(len(ours[role]), len(sites))
        matched |= {site.name: ours[role][block] for site, block in zip(sites, blocks, strict=True)}
    return {site.name: matched[site.name] for site in target}


def check_biases(matched: Mapping[str, Site], target: Iterable[Site]) -> None:
    """Raises MethodError if a site of the source has a bias and its match has none, so that an update of it would be lost.

    A target's bias without a counterpart is no loss: the source's expert has changed none, and so it stays.
    """
    for site in target:
        if site.bias is None and matched[site.name].bias is not None:
            raise MethodError(
                f"Site {site.name} has a bias in the source and none in the target, so an update of it has no "
                "counterpart: leave the site out, or give both models biases."
            )


def by_role(sites: Iterable[Site]) -> dict[tuple[str, bool, str], list[Site]]:
    """The sites of each stack and role, by depth; those behind the blocks are apart."""
    found: dict[tuple[str, bool, str], list[Site]] = {}
    for site in sites:
        found.setdefault((site.stack, site.block is None, site.role), []).append(site)
    return {role: sorted(members, key=lambda site: site.block or 0) for role, members in found.items()}

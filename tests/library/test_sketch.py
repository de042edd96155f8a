"""A sketch gives the strongest directions of a covariance that nobody has held."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import add_rows
from bico.calibration.signals import Signal
from bico.errors import CalibrationError, ConfigError
from bico.linalg.procrustes import Completion, MapRule, procrustes
from bico.linalg.sketch import Sketch, kept_values, worth_sketching

SOURCE, TARGET, RANK = 120, 160, 10
KEY = ("site", Signal.INPUT)


def rows(count: int, features: int, inner: int, seed: int) -> Tensor:
    """Rows of a low rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, inner, generator=generator) @ torch.randn(
        inner, features, generator=torch.Generator().manual_seed(features)
    )


def sketched(parts: list[tuple[Tensor, Tensor]]) -> Sketch:
    sums: dict = {}
    for ours, theirs in parts:
        add_rows(sums, KEY, ours, theirs, RANK)
    assert isinstance(sums[KEY], Sketch)
    return sums[KEY]


def test_a_covariance_of_low_rank_is_recovered_whole() -> None:
    ours, theirs = rows(50, SOURCE, 8, 0), rows(50, TARGET, 8, 1)
    exact = procrustes(ours.T @ theirs, MapRule())
    found = procrustes(sketched([(ours, theirs)]), MapRule(rank=RANK))
    assert exact.rank == found.rank == 8 and found.shape == (SOURCE, TARGET)
    assert_close(found.matrix, exact.matrix, atol=1e-4, rtol=0)
    assert_close(found.spectrum[:8], exact.spectrum[:8], rtol=1e-4, atol=0)


def test_sketches_add_up_over_batches_and_do_not_depend_on_their_size() -> None:
    ours, theirs = rows(60, SOURCE, 30, 0), rows(60, TARGET, 30, 1)
    whole = sketched([(ours, theirs)])
    pieces = sketched(list(zip(ours.split(7), theirs.split(7), strict=True)))
    added = sketched([(ours[:25], theirs[:25])]) + sketched([(ours[25:], theirs[25:])])
    for other in (pieces, added):
        assert_close(other.range, whole.range, rtol=1e-4, atol=1e-3)
        assert_close(other.corange, whole.corange, rtol=1e-4, atol=1e-3)
    kept = whole.clone()
    whole.add(ours, theirs)
    assert_close(whole.range, 2 * kept.range)


def test_the_strongest_directions_of_a_decaying_spectrum() -> None:
    scale = torch.logspace(0, -3, 60)
    ours, theirs = rows(400, SOURCE, SOURCE, 0), rows(400, TARGET, TARGET, 1)
    ours[:, :60] *= 30 * scale
    theirs[:, :60] = ours[:, :60] + 0.1 * theirs[:, :60]
    cross = ours.T @ theirs
    found = procrustes(sketched([(ours, theirs)]), MapRule(rank=RANK))
    values = torch.linalg.svdvals(cross.double())[:RANK]
    assert found.rank == RANK
    assert 0.9 < (found.matrix.double() * cross.double()).sum() / values.sum() <= 1 + 1e-6
    unlike = procrustes(sketched([(ours, theirs.flip(0))]), MapRule(rank=RANK))
    assert (unlike.matrix.double() * cross.double()).sum() / values.sum() < 0.3  # rows that do not belong together


def test_a_sketch_is_used_where_it_is_worth_it() -> None:
    assert worth_sketching(SOURCE, TARGET, RANK) and not worth_sketching(SOURCE, TARGET, 40)
    assert not worth_sketching(SOURCE, TARGET, None)
    assert kept_values(SOURCE, TARGET, RANK) == SOURCE * 20 + TARGET * 40
    assert kept_values(SOURCE, TARGET, None) == SOURCE * TARGET
    sums: dict = {}
    add_rows(sums, KEY, torch.ones(2, SOURCE), torch.ones(2, TARGET))
    assert sums[KEY].shape == (SOURCE, TARGET) and isinstance(sums[KEY], Tensor)


def test_more_than_it_was_made_for_is_refused() -> None:
    found = sketched([(rows(50, SOURCE, 40, 0), rows(50, TARGET, 40, 1))])
    assert procrustes(found, MapRule(rank=RANK)).rank == RANK
    for rule, asked in ((MapRule(rank=RANK + 1), "11"), (MapRule(), "all")):
        with pytest.raises(
            CalibrationError, match=rf"20 columns cannot give a map of {asked} directions: collect again"
        ):
            procrustes(found, rule)


@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_nothing_to_align_is_refused(bad: float) -> None:
    empty = sketched([(torch.full((3, SOURCE), bad), torch.ones(3, TARGET))])
    with pytest.raises(CalibrationError, match=r"\(120, 160\) is zero or not finite"):
        procrustes(empty, MapRule(rank=RANK))


def test_a_rank_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank=-1 of a map must be"):
        MapRule(rank=-1)
    with pytest.raises(ConfigError, match="completion=svd keeps all directions"):
        MapRule(Completion.SVD, 5)


@pytest.mark.parametrize(("source", "target"), [(300, 340), (340, 300)])
def test_a_search_finds_what_the_whole_decomposition_has_first(source: int, target: int) -> None:
    ours, theirs = rows(500, source, source, 0), rows(500, target, target, 1)
    both = min(source, target)
    theirs[:, :both] = ours[:, :both] * torch.logspace(0.5, -2.5, both) + 0.01 * theirs[:, :both]
    cross = ours.T @ theirs
    values = torch.linalg.svdvals(cross.double())
    found = procrustes(cross, MapRule(rank=20))
    assert found.rank == 20 and len(found.spectrum) == 25  # searched, not decomposed
    assert 0.98 < (found.matrix.double() * cross.double()).sum() / values[:20].sum() < 1 + 1e-6
    assert_close(found.spectrum[:20], values[:20], rtol=0.1, atol=0)
    again = procrustes(7.0 * cross, MapRule(rank=20))
    assert_close(again.matrix, found.matrix, atol=1e-5, rtol=0)

"""Factors of low rank: sums, cuts, a sketch of wide ones, and sites of a module put together."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.adapters.factors import LowRank, concatenated, factorised, truncated
from bico.adapters.files import read_adapter
from bico.adapters.names import locate
from bico.adapters.sites import as_modules, at_sites
from bico.adapters.transport import cut_to
from bico.errors import ShapeError
from tests.thin_maps import bert
from tests.tiny_adapters import save_lora


def draws(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_sums_and_cuts_of_factors_are_those_of_matrices() -> None:
    a, b, c, d, shift = draws([(3, 7), (5, 3), (2, 7), (5, 2), (5,)], 0)
    one, two = LowRank(a, b, 6.0, True, shift), LowRank(c, d, 5.0, False, shift)
    both = concatenated([one, two])
    assert_close(both.dense(), one.dense() + two.dense())
    assert_close(both.shift(), one.shift() + two.shift())
    assert both.energy() == pytest.approx(float(both.dense().square().sum()))
    assert both.rslora and both.scale == pytest.approx(one.scale)
    cut, kept = truncated(both, 2)
    u, s, vh = torch.linalg.svd(both.dense())
    assert_close(cut.dense(), (u[:, :2] * s[:2]) @ vh[:2])
    assert kept == pytest.approx(float(s[:2].square().sum() / s.square().sum())) and cut.scale == pytest.approx(
        both.scale
    )
    assert truncated(both, 5)[0] is both and cut_to({"x": both}, None) == ({"x": both}, {})
    assert_close(one.padded(6).dense(), one.dense())
    with pytest.raises(ShapeError, match="cannot be added"):
        concatenated([one, LowRank(c[:, :6], d, 1.0)])


def test_a_wide_matrix_is_factorised_by_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = draws([(40, 30), (30, 50)], 1)
    matrix = (torch.linalg.qr(u).Q * 0.7 ** torch.arange(30)) @ torch.linalg.qr(v.T).Q.T
    exact, kept = factorised(matrix, 4, 8.0)
    monkeypatch.setattr("bico.adapters.factors._EXACT", 10)
    sketched, share = factorised(matrix, 4, 8.0)
    assert_close(sketched.dense(), exact.dense(), atol=1e-6, rtol=1e-6)
    assert share == pytest.approx(kept, abs=1e-8) and exact.scale == 2
    again, _ = factorised(matrix, 4, 8.0)
    assert torch.equal(again.up, sketched.up)


def test_sites_of_a_module_are_put_together_again(tmp_path: Path) -> None:
    model = bert(1, kind="modernbert")
    adapter = read_adapter(save_lora(model.model, tmp_path, target_modules=["Wqkv", "attn.Wo"]))
    found = locate(adapter, model)
    again, homeless = as_modules(at_sites(found, model.sites), model.sites, model, found.state)
    assert not homeless and again.keys() == adapter.modules.keys()
    assert all(
        torch.equal(again[path].up, update.up) and again[path].down is update.down
        for path, update in adapter.modules.items()
    )

"""The analyses against planted answers and literal formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.analysis import (
    Measurement,
    Moments,
    compare_signals,
    curve,
    describe_map,
    input_drift,
    kept_geometry,
    linear_cka,
    output_similarity,
)
from bico.analysis.pairs import AFTER, BEFORE
from bico.calibration.covariances import Batch, collect_signals
from bico.calibration.signals import Signal
from bico.errors import CalibrationError, ShapeError
from bico.linalg.procrustes import Completion, MapRule, procrustes
from bico.models.clip.vit import ClipViT
from tests.library.test_procrustes import randn, rotation
from tests.symmetry import permuted_copy
from tests.tiny import covariances_of, head, pictures, random_task_vector, tiny_clip


def gram_cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA by its definition on n x n Gram matrices, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    n = len(a)
    centre = torch.eye(n, dtype=a.dtype) - 1 / n

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        return torch.trace(k @ centre @ m @ centre) / (n - 1) ** 2

    k, m = a @ a.T, b @ b.T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


class TestCka:
    @given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 1000))
    def test_agrees_with_the_definition_on_gram_matrices(self, a: int, b: int, seed: int) -> None:
        torch.manual_seed(seed)
        x = randn(25, a) + 3 * randn(a)
        y = x @ randn(a, b) + 0.5 * randn(25, b) - 5
        assert linear_cka(Moments.of(x, y)) == pytest.approx(gram_cka(x, y), rel=1e-9)

    def test_a_rotated_shifted_scaled_copy_is_the_same(self) -> None:
        x = randn(200, 12) * torch.arange(1, 13)
        assert linear_cka(Moments.of(x, 3 * (x @ rotation(12)) - 7)) == pytest.approx(1)

    def test_a_sheared_copy_is_not_the_same(self) -> None:
        x = randn(200, 12)
        assert linear_cka(Moments.of(x, x @ randn(12, 12))) < 0.9

    def test_noise_shares_nothing(self) -> None:
        x, y = randn(20_000, 8), randn(20_000, 8)
        assert linear_cka(Moments.of(x, y)) < 0.002  # about width / rows by chance
        # ... also when both have a large mean, which an uncentred kernel takes for likeness
        assert linear_cka(Moments.of(x + 50, y + 50)) < 0.002

    @given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(0, 1000))
    def test_streaming_in_pieces_equals_at_once(self, pieces: list[int], seed: int) -> None:
        torch.manual_seed(seed)
        x, y = randn(sum(pieces), 5) + 10, randn(sum(pieces), 7) - 4
        parts = [Moments.of(a, b) for a, b in zip(x.split(pieces), y.split(pieces), strict=True)]
        streamed, whole = sum(parts[1:], start=parts[0]), Moments.of(x, y)
        assert streamed.count == whole.count
        for name in ("mean_a", "mean_b", "aa", "bb", "ab"):
            assert_close(getattr(streamed, name), getattr(whole, name))

    def test_float32_survives_a_large_mean(self) -> None:
        x = randn(400, 6)
        y = x @ rotation(6)
        exact = linear_cka(Moments.of(x, y + 0.3 * randn(400, 6)))
        shifted = [(x + 1000).float(), (y + 1000).float()]
        parts = [Moments.of(a, b) for a, b in zip(*(t.split(50) for t in shifted), strict=True)]
        assert linear_cka(sum(parts[1:], start=parts[0])) == pytest.approx(1, abs=1e-3)
        assert exact < 0.99  # so that 1 is no foregone conclusion

    @pytest.mark.parametrize("width", [5, 7])
    def test_mapped_moments_are_those_of_mapped_rows(self, width: int) -> None:
        x, y, q = randn(30, 5) + 2, randn(30, 7), randn(5, width)
        mapped, literal = Moments.of(x, y).mapped(q), Moments.of(x @ q, y)
        for name in ("mean_a", "mean_b", "aa", "bb", "ab"):
            assert_close(getattr(mapped, name), getattr(literal, name))

    def test_rows_that_do_not_vary_are_refused(self) -> None:
        with pytest.raises(CalibrationError, match=r"CKA of 5 rows \(3 and 4 wide\) is not defined"):
            linear_cka(Moments.of(torch.ones(5, 3), randn(5, 4).float()))


def select(records: list[Measurement], quantity: str, series: str) -> dict[str, float]:
    return {r.tensor: r.value for r in records if (r.quantity, r.series) == (quantity, series)}


def compared(source: ClipViT, target: ClipViT, labels: Tensor, sizes: list[int], mapped: bool = True) -> list:
    ours, theirs = (pictures(len(labels), m.model.visual.image_size[0]) for m in (source, target))
    signals = [Signal.INPUT]
    covariances = covariances_of(source, target, labels, signals, [len(labels)])[len(labels)]
    maps = (lambda key: procrustes(covariances[key]).matrix) if mapped else None
    batches = [Batch(*parts) for parts in zip(*(t.split(sizes) for t in (ours, theirs, labels)), strict=True)]
    return compare_signals(source, target, batches, (head(source), head(target)), maps)


class TestPairs:
    def test_a_planted_change_of_basis_is_seen_and_undone(self, source: ClipViT, labels: Tensor) -> None:
        found = compared(source, permuted_copy(source, seed=5), labels, [12])
        for series in (BEFORE, AFTER):
            assert min(select(found, "cka", series).values()) == pytest.approx(1)
        assert max(select(found, "cosine", BEFORE).values()) < 0.7
        assert min(select(found, "cosine", AFTER).values()) == pytest.approx(1)

    def test_a_model_is_like_itself(self, source: ClipViT, labels: Tensor) -> None:
        assert all(r.value == pytest.approx(1) for r in compared(source, source, labels, [12]))

    def test_another_model_is_not_made_the_same_by_a_map(
        self, source: ClipViT, target: ClipViT, labels: Tensor
    ) -> None:
        found = compared(source, target, labels, [12])
        before, after = select(found, "cosine", BEFORE), select(found, "cosine", AFTER)
        assert all(before[tensor] < after[tensor] < 0.999 for tensor in before)

    def test_batches_change_nothing(self, source: ClipViT, target: ClipViT, labels: Tensor) -> None:
        whole, pieces = (compared(source, target, labels, sizes) for sizes in ([12], [5, 1, 6]))
        assert [r.tensor for r in whole] == [r.tensor for r in pieces]
        assert [r.value for r in whole] == pytest.approx([r.value for r in pieces])

    def test_values_are_those_of_the_rows(self, source: ClipViT, target: ClipViT, labels: Tensor) -> None:
        found = compared(source, target, labels, [4, 8], mapped=False)
        rows = []
        for model in (source, target):
            seen = collect_signals(model, pictures(12), labels, head(model), model.sites, [Signal.INPUT])
            rows.append(seen["blocks.1.c_fc_in", Signal.INPUT].flatten(0, 1))
        a, b = rows
        cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
        assert select(found, "cosine", BEFORE)["blocks.1.c_fc_in"] == pytest.approx(float(cosine))
        assert select(found, "cka", BEFORE)["blocks.1.c_fc_in"] == pytest.approx(gram_cka(a, b))

    def test_widths_and_grids_may_differ_and_then_there_is_no_cosine_before(self, labels: Tensor) -> None:
        found = compared(tiny_clip(1), tiny_clip(2, width=24, layers=3, image=16), labels, [12])
        assert not select(found, "cosine", BEFORE)
        after = select(found, "cosine", AFTER)
        assert set(after) == set(select(found, "cka", BEFORE)) and len(after) == 3 * 4 + 1
        assert {r.layer for r in found} == {0, 1, 2, None}


class TestOutputs:
    def similarity(self, model: ClipViT, reference: dict, vector: dict, labels: Tensor, size: int = 12) -> dict:
        batches = zip(pictures(len(labels)).split(size), labels.split(size), strict=True)
        return {
            r.tensor: r.value for r in output_similarity(model, reference, vector, batches, head(model), series="it")
        }

    def test_the_reference_is_like_itself_and_the_start_is_not(self, target: ClipViT, labels: Tensor) -> None:
        tuned = random_task_vector(target)
        before = {k: v.clone() for k, v in target.state().items()}
        same, start = (self.similarity(target, tuned, vector, labels) for vector in (tuned, {}))
        assert set(same) == {site.name for site in target.sites}
        assert all(value == pytest.approx(1) for value in same.values())
        assert all(value < 0.999 for value in start.values())
        assert all(torch.equal(v, before[k]) for k, v in target.state().items())

    def test_half_of_the_way_is_nearer_than_none(self, target: ClipViT, labels: Tensor) -> None:
        tuned = {k: 0.3 * v for k, v in random_task_vector(target).items()}
        half = self.similarity(target, tuned, {k: v / 2 for k, v in tuned.items()}, labels)
        none = self.similarity(target, tuned, {}, labels)
        assert sum(half[name] > none[name] for name in half) == len(half)

    def test_batches_and_alpha(self, target: ClipViT, labels: Tensor) -> None:
        tuned = random_task_vector(target)
        whole, pieces = (self.similarity(target, tuned, {}, labels, size) for size in (12, 5))
        assert list(whole.values()) == pytest.approx(list(pieces.values()))
        batch = [(pictures(12), labels)]
        twice = output_similarity(
            target, tuned, {k: v / 2 for k, v in tuned.items()}, batch, head(target), "x", alpha=2
        )
        assert all(r.value == pytest.approx(1) and r.series == "x" for r in twice)


class TestDrift:
    def drift(self, model: ClipViT, vector: dict, labels: Tensor, size: int = 12) -> list[Measurement]:
        batches = zip(pictures(len(labels)).split(size), labels.split(size), strict=True)
        return input_drift(model, vector, 7, batches, head(model))

    def test_an_unmoved_model_does_not_drift(self, source: ClipViT, labels: Tensor) -> None:
        still = self.drift(source, {k: torch.zeros_like(v) for k, v in source.state().items()}, labels)
        assert len(still) == 2 * (2 * 4 + 1) and {r.at for r in still} == {7}
        assert all(abs(r.value) < 1e-12 for r in still)

    def test_a_planted_drift_is_measured(self, source: ClipViT, labels: Tensor) -> None:
        """Doubling a LayerNorm doubles what its readers read: magnitude 1, direction 0, and only there and behind."""
        state = source.state()
        at = "visual.transformer.resblocks.1.ln_2"
        vector = {f"{at}.{part}": state[f"{at}.{part}"].clone() for part in ("weight", "bias")}
        moved = self.drift(source, vector, labels)
        direction, magnitude = select(moved, "direction", "fine-tuning"), select(moved, "magnitude", "fine-tuning")
        assert magnitude["blocks.1.c_fc_in"] == pytest.approx(1)
        assert direction["blocks.1.c_fc_in"] == pytest.approx(0, abs=1e-12)
        for earlier in ("blocks.0.c_proj_in", "blocks.1.attn_in", "blocks.1.out_proj_in"):
            assert (magnitude[earlier], direction[earlier]) == pytest.approx((0, 0), abs=1e-12)
        assert direction["pooled"] > 1e-3

    def test_turning_back_is_a_direction_of_two(self, source: ClipViT, labels: Tensor) -> None:
        state = source.state()
        at = "visual.transformer.resblocks.1.ln_2"
        vector = {f"{at}.{part}": -2 * state[f"{at}.{part}"] for part in ("weight", "bias")}
        moved = self.drift(source, vector, labels)
        assert select(moved, "direction", "fine-tuning")["blocks.1.c_fc_in"] == pytest.approx(2)
        assert select(moved, "magnitude", "fine-tuning")["blocks.1.c_fc_in"] == pytest.approx(0, abs=1e-12)

    def test_shrinking_counts_as_growing_does(self, source: ClipViT, labels: Tensor) -> None:
        state = source.state()
        at = "visual.transformer.resblocks.1.ln_2"
        vector = {f"{at}.{part}": -0.5 * state[f"{at}.{part}"] for part in ("weight", "bias")}
        moved = self.drift(source, vector, labels)
        assert select(moved, "magnitude", "fine-tuning")["blocks.1.c_fc_in"] == pytest.approx(0.5)

    def test_batches_change_nothing(self, source: ClipViT, labels: Tensor) -> None:
        whole, pieces = (self.drift(source, random_task_vector(source), labels, size) for size in (12, 5))
        assert [r.value for r in whole] == pytest.approx([r.value for r in pieces])


class TestMaps:
    @pytest.mark.parametrize("completion", Completion)
    @pytest.mark.parametrize("shape", [(8, 8), (6, 10), (10, 6)])
    def test_maps_keep_geometry_on_their_span(self, shape: tuple[int, int], completion: Completion) -> None:
        solved = procrustes(randn(40, shape[0]).T @ randn(40, shape[1]), MapRule(completion))
        geometry = kept_geometry(solved.matrix)
        assert geometry.length < 1e-6 and geometry.angle < 1e-6
        assert geometry.kept == pytest.approx(min(shape) / shape[0])  # all of it, unless it narrows

    def test_undetermined_directions_are_lost_by_the_partial_map_only(self) -> None:
        cross = randn(3, 8).T @ randn(3, 12)
        partial, plain = (procrustes(cross, MapRule(completion)) for completion in Completion)
        assert kept_geometry(partial.matrix).kept == pytest.approx(3 / 8)
        assert kept_geometry(partial.matrix).length < 1e-6
        assert kept_geometry(plain.matrix).kept == pytest.approx(1)

    @pytest.mark.parametrize("broken", [2 * torch.eye(6), torch.eye(6) + 0.3 * torch.ones(6, 6).triu(1)])
    def test_a_map_that_is_no_isometry_shows(self, broken: Tensor) -> None:
        geometry = kept_geometry(broken)
        assert geometry.length > 0.1 and geometry.angle > 0.1

    def test_a_map_of_zeros_is_refused(self) -> None:
        with pytest.raises(ShapeError, match=r"\(3, 4\) that is all zeros"):
            kept_geometry(torch.zeros(3, 4))

    def test_a_map_is_described_by_its_rank_and_spectrum(self) -> None:
        solved = procrustes(randn(3, 8).T @ randn(3, 12))
        found = describe_map(solved.matrix, solved.spectrum, solved.rank, "blocks.0.q", Signal.OUTPUT_GRAD, 0, 3)
        values = {r.quantity: r.value for r in found}
        assert (values["rank"], values["determined"]) == (3, 3 / 8)
        spectrum = [(r.at, r.value) for r in found if r.quantity == "spectrum"]
        assert spectrum[0] == (0, 1) and [at for at, _ in spectrum] == pytest.approx([i / 7 for i in range(8)])
        assert [value for _, value in spectrum] == pytest.approx((solved.spectrum / solved.spectrum[0]).tolist())
        assert {(r.series, r.tensor, r.layer, r.samples) for r in found} == {("output_grad", "blocks.0.q", 0, 3)}

    def test_wide_spectra_are_thinned_but_keep_both_ends(self) -> None:
        spectrum = torch.arange(1000, 0, -1).double()
        found = describe_map(torch.eye(1000), spectrum, 1000, "x", Signal.INPUT, None, 1)
        points = [r for r in found if r.quantity == "spectrum"]
        assert len(points) == 33 and points[0].value == 1 and points[-1].value == 1e-3 and points[-1].at == 1


def test_curves_average_over_everything_but_their_axis() -> None:
    records = [
        Measurement("cka", "before", "q", layer, value, task=task)
        for layer, task, value in [(1, "a", 0.2), (0, "a", 0.5), (1, "b", 0.6), (None, "a", 9.0)]
    ]
    found = curve(records)
    assert found.x == [0, 1] and found.mean == [0.5, pytest.approx(0.4)]
    assert (found.low, found.high) == ([0.5, 0.2], [0.5, 0.6])

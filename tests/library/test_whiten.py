"""Partly whitened maps: their formula, what is left as it was, and that they are methods like the others."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import add_rows
from bico.calibration.memory import covariance_bytes
from bico.calibration.signals import Signal
from bico.errors import CalibrationError, ConfigError
from bico.linalg.grams import Grams
from bico.linalg.procrustes import Completion, MapRule, procrustes
from bico.linalg.sketch import Sketch, added
from bico.methods import METHODS, Pair, get_method
from bico.models.clip.vit import ClipViT
from tests.library.test_methods import carried
from tests.library.test_methods_aligned import SIGNALS
from tests.symmetry import permuted_copy
from tests.tiny import evidence_for, pictures, random_task_vector, tiny_clip

POWERS = [0.25, 0.5]


def rows(count: int = 60, source: int = 8, target: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Of two models that see one thing, each at scales of its own."""
    torch.manual_seed(seed)
    seen = torch.randn(count, 5)
    return (
        ((seen @ torch.randn(5, d) + 0.3 * torch.randn(count, d)) * torch.logspace(0, -1, d)).double()
        for d in (source, target)
    )


def grams(ours: Tensor, theirs: Tensor) -> Grams:
    return Grams.of(ours, theirs)


def power_of(gram: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors @ torch.diag(values.pow(power)) @ vectors.T


@pytest.mark.parametrize("power", POWERS)
def test_a_map_is_the_polar_factor_of_the_whitened_product(power: float) -> None:
    ours, theirs = rows()
    left, right = (power_of(x.T @ x, -power) for x in (ours, theirs))
    u, _, vh = torch.linalg.svd(left @ ours.T @ theirs @ right, full_matrices=False)
    found = procrustes(grams(ours, theirs), MapRule(whiten=power))
    assert_close(found.matrix, u @ vh)
    assert not torch.allclose(found.matrix, procrustes(ours.T @ theirs).matrix, atol=1e-2)


def test_at_a_half_singular_values_are_canonical_correlations() -> None:
    ours, theirs = rows()
    bases = [torch.linalg.qr(x)[0] for x in (ours, theirs)]
    found = procrustes(grams(ours, theirs), MapRule(whiten=0.5))
    assert_close(found.spectrum, torch.linalg.svdvals(bases[0].T @ bases[1]))


def test_nothing_whitened_is_what_it_was_bit_for_bit(source: ClipViT) -> None:
    ours, theirs = rows()
    plain, zero = procrustes(ours.T @ theirs), procrustes(grams(ours, theirs), MapRule(whiten=0.0))
    assert torch.equal(plain.left, zero.left) and torch.equal(plain.right, zero.right)
    target, tau = tiny_clip(2, width=24), random_task_vector(source)
    one, other = (carried(get_method(name), source, target, tau) for name in ("bico", "bico:whiten=0"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert get_method("bico:whiten=0") == get_method("bico")


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", SIGNALS)
def test_whitened_methods_are_methods(name: str, power: float, source: ClipViT) -> None:
    """The chief of the conformance suite: every site, linear, whatever the batch size, no model touched."""
    target, method = tiny_clip(2), get_method(f"{name}:whiten={power}")
    first, second = random_task_vector(source, 3), random_task_vector(source, 4)
    # Gradients of few pictures span few directions; those between all and none are at the mercy of rounding.
    about = {"count": 40}
    one, two, both = (
        carried(method, source, target, tau, **about)
        for tau in (first, second, {k: first[k] - 2 * second[k] for k in first})
    )
    assert all(site.weight.read(one).norm() > 0 for site in target.sites)
    for key, tensor in both.items():
        assert_close(tensor, one[key] - 2 * two[key], atol=1e-6, rtol=1e-4)
    again = carried(method, source, target, first, count=40)
    assert all(torch.equal(one[key], again[key]) for key in one)


@pytest.mark.parametrize("power", POWERS)
def test_sums_of_grams_do_not_depend_on_batches(power: float) -> None:
    ours, theirs = rows()
    whole = grams(ours, theirs)
    parts: dict = {}
    for part in (slice(0, 20), slice(20, 23), slice(23, 60)):
        add_rows(parts, ("a", Signal.INPUT), ours[part], theirs[part], grams=True)
    joined = added(grams(ours[:30], theirs[:30]), grams(ours[30:], theirs[30:]))
    for found in (parts["a", Signal.INPUT], joined):
        assert_close(vars(found), vars(whole))
        rule = MapRule(whiten=power)
        assert_close(procrustes(found, rule).matrix, procrustes(whole, rule).matrix)


@pytest.mark.parametrize("power", POWERS)
def test_the_function_after_transfer_does_not_depend_on_the_targets_basis(power: float, source: ClipViT) -> None:
    """What rotates a target's features rotates its whitened maps alike."""
    method, target = get_method(f"theseus:whiten={power}"), tiny_clip(2)
    moved, tau, images = permuted_copy(target, seed=6), random_task_vector(source), pictures(6, seed=9)
    outputs = []
    for model in (target, moved):
        vector = method.transport(tau, Pair.of(source, model), evidence_for(method, source, model, count=200))
        with model.updated(vector):
            outputs.append(model.features(images))
    assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-3)


def test_a_model_keeps_its_own_directions(source: ClipViT) -> None:
    """Of a model and itself the whitened product is a power of its Gram matrix: the map is the identity on what it spans."""
    method = get_method("theseus:rank=0:whiten=0.25")
    evidence = evidence_for(method, source, source)
    for key, found in evidence.covariances.items():
        solved = procrustes(found, method.rule)
        assert_close(solved.matrix, solved.matrix.T, atol=1e-6, rtol=0)
        assert_close(solved.matrix @ solved.matrix, solved.matrix, atol=1e-6, rtol=0), key


def test_what_has_no_grams_cannot_be_whitened() -> None:
    ours, theirs = rows()
    with pytest.raises(CalibrationError, match=r"whiten=0\.5 needs the Gram matrices of both sides"):
        procrustes(ours.T @ theirs, MapRule(whiten=0.5))
    with pytest.raises(CalibrationError, match="cannot be added"):
        added(grams(ours, theirs), Sketch.of(8, 6, 1))
    for broken in (torch.zeros_like(ours), ours * torch.nan):
        with pytest.raises(CalibrationError, match="zero or not finite"):
            procrustes(grams(broken, theirs), MapRule(whiten=0.5))


@pytest.mark.parametrize("text", ["bico:whiten=0.6", "bico:whiten=-0.1", "theseus:whiten=nan"])
def test_a_power_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"whiten=.* must lie in 0\.\.0\.5"):
        get_method(text)


def test_a_completion_by_the_svd_can_be_whitened() -> None:
    ours, theirs = rows(count=4)
    found = procrustes(grams(ours, theirs), METHODS["bico"](completion=Completion.SVD, whiten=0.25).rule)
    assert found.rank == 4
    assert_close(found.matrix.T @ found.matrix, torch.eye(6, dtype=torch.float64))


def test_memory_counts_the_grams(source: ClipViT) -> None:
    target = tiny_clip(2, width=24)
    found = evidence_for(get_method("bico:whiten=0.5"), source, target, count=12).covariances
    taken = sum(part.numel() for one in found.values() for part in vars(one).values())
    wanted = dict.fromkeys([Signal.INPUT, Signal.OUTPUT_GRAD])
    assert covariance_bytes(source.sites, target.sites, target.sites, wanted, grams=True) == 4 * taken

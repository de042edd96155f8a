import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.errors import CalibrationError
from bico.evaluation.probe import as_head, fit_probe
from bico.linalg.logistic import logistic
from tests.tiny_t5 import texts, tiny_t5


def clusters(count: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) * 7 % 3
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 3
    return 100 + centres[labels] + spread * torch.randn(count, 6, generator=generator, dtype=torch.float64), labels


def test_it_is_a_logistic_regression_on_standardised_features() -> None:
    features, labels = clusters(60, spread=3.0)
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    weight, bias = logistic(standard, labels, 3)
    wanted = standard @ weight + bias
    assert_close(fit_probe(features, labels, 3).scores(features), wanted)


def test_it_generalises_to_new_samples() -> None:
    probe, (features, labels) = fit_probe(*clusters(60), 3), clusters(300, seed=1)
    assert (probe.scores(features).argmax(1) == labels).double().mean() > 0.95


def test_it_does_not_depend_on_scale_shift_or_a_constant_feature() -> None:
    features, labels = clusters(40, spread=3.0)
    changed = torch.cat([features * torch.logspace(-3, 3, 6, dtype=torch.float64) - 7, torch.ones(40, 1)], 1)
    plain = fit_probe(features, labels, 3).scores(features)
    assert_close(fit_probe(changed, labels, 3).scores(changed), plain, rtol=1e-4, atol=1e-4)


def test_twice_is_the_same_to_the_bit() -> None:
    assert torch.equal(as_head(fit_probe(*clusters(40), 3)), as_head(fit_probe(*clusters(40), 3)))


def test_a_class_without_samples_is_never_predicted() -> None:
    features, labels = clusters(40)
    labels[labels == 1] = 3
    assert set(fit_probe(features, labels, 5).scores(features).argmax(1).tolist()) == {0, 2, 3}


def test_as_a_head_it_gives_the_same_scores() -> None:
    model = tiny_t5(1)
    inputs, labels = model.prepare(texts(12)), torch.arange(12) % 3
    probe = fit_probe(model.features(inputs), labels, 3)
    assert_close(model.logits(inputs, as_head(probe)), probe.scores(model.features(inputs)))


def test_features_that_are_not_finite_are_an_error() -> None:
    features, labels = clusters(6)
    features[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="not finite"):
        fit_probe(features, labels, 3)

"""What becomes of scores that are NaN or infinite: never a class, wherever scores are turned into predictions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bico.calibration.covariances import Batch
from bico.calibration.pseudo_labels import PseudoLabels, expert_scores, pseudo_labels
from bico.errors import CalibrationError
from bico.evaluation.accuracy import accuracy, percent_right
from bico.evaluation.linear_head import LinearHead, linear_head_accuracy
from bico.evaluation.predictions import predicted
from bico.evaluation.probe import fit_probe, probe_accuracy
from bico.last_steps import Samples, StepContext
from bico.last_steps.head import Head
from bico.methods import Gathered
from bico.models.clip.vit import ClipViT
from tests.tiny import CLASSES, head, pictures

ZEROS = torch.zeros(6, dtype=torch.long)
"""Labels that the first class would be right for."""


def test_scores_give_the_class_that_is_highest() -> None:
    assert predicted(torch.tensor([[0.0, 2.0, 1.0], [-1.0, -3.0, -2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_score_that_is_not_finite_is_an_error_even_where_another_is_highest(value: float) -> None:
    scores = torch.tensor([[0.0, 1.0], [value, 5.0]])
    with pytest.raises(CalibrationError, match="scores of m are not finite for 1 of 2 samples"):
        predicted(scores, "m")


def overflowing(model: ClipViT) -> dict[str, Tensor]:
    """A task vector that is finite itself, and makes features overflow."""
    return {name: torch.full_like(tensor, 1e300) for name, tensor in model.state().items() if "c_proj.weight" in name}


def by_own_head(model: ClipViT) -> object:
    return accuracy(model, [(pictures(6), ZEROS)], head(model))


def by_probe(model: ClipViT) -> object:
    return probe_accuracy(model, [(pictures(6), ZEROS)], LinearHead(torch.ones(8, 2), torch.zeros(2)))


def by_linear_head(model: ClipViT) -> object:
    return linear_head_accuracy(model, [(pictures(6), ZEROS)], LinearHead(torch.ones(16, 2), torch.zeros(2)))


@pytest.mark.parametrize("measure", [by_own_head, by_probe, by_linear_head])
def test_a_model_that_overflows_has_no_accuracy(source: ClipViT, measure: Callable[[ClipViT], object]) -> None:
    assert measure(source) is not None
    with (
        source.updated(overflowing(source)),
        pytest.raises(CalibrationError, match="scores of .*tiny-1 are not finite for 6 of 6"),
    ):
        measure(source)


@pytest.mark.parametrize("kind", PseudoLabels)
def test_an_expert_that_overflows_gives_no_pseudo_labels(source: ClipViT, kind: PseudoLabels) -> None:
    with pytest.raises(CalibrationError, match="scores of the expert of tiny-1 are not finite"):
        expert_scores(source, overflowing(source), [pictures(6)], head(source))
    with pytest.raises(CalibrationError, match="not finite for 1 of 2"):
        pseudo_labels(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), kind)


def test_no_head_is_fitted_to_an_expert_that_overflows(source: ClipViT, target: ClipViT) -> None:
    batch = Batch(pictures(6), pictures(6), ZEROS)
    context = StepContext(source, target, (head(source), head(target)), overflowing(source), Samples([batch]))
    with pytest.raises(CalibrationError, match="expert of tiny-1 are not finite"):
        Head().take({}, context, Gathered())


def test_a_probe_of_a_model_with_a_projection_reads_the_features_that_it_was_fitted_on(source: ClipViT) -> None:
    """The projection's inputs are 16 wide here and its outputs 8: what it was fitted on and reads must be the same."""
    inputs, labels = pictures(20), torch.arange(20) % CLASSES
    probe = fit_probe(source.features(inputs), labels, CLASSES)
    right = (probe.scores(source.features(inputs)).argmax(1) == labels).double().mean()
    found = probe_accuracy(source, [(inputs[:7], labels[:7]), (inputs[7:], labels[7:])], probe)
    assert found == pytest.approx(100 * float(right)) and found > 50  # chance is 20


def test_percent_right_names_whose_scores_they_are() -> None:
    with pytest.raises(CalibrationError, match="scores of ours"):
        percent_right(lambda inputs: inputs / 0, [(torch.zeros(2, 3), ZEROS[:2])], of="ours")

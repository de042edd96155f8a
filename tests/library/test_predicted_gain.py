import pytest
import torch

from bico.calibration.parameter_gradients import loss_gradients
from bico.errors import ShapeError
from bico.models.clip.vit import ClipViT
from bico.reporting.predicted_gain import predicted_gain
from tests.tiny import head, pictures, random_task_vector


@pytest.mark.parametrize("name", ["blocks.0.k", "blocks.1.c_fc", "proj"])
def test_the_gain_is_the_slope_of_the_mean_loss(source: ClipViT, name: str) -> None:
    """Against a difference quotient along the part of a task vector that one site holds."""
    images, labels, classes, step = pictures(6), torch.arange(6) % 5, head(source), 1e-6
    vector = random_task_vector(source)
    gains = predicted_gain(loss_gradients(source, images, labels, classes), vector, source.sites, 6)
    site = next(s for s in source.sites if s.name == name)
    alone = {k: torch.zeros_like(v) for k, v in vector.items()}
    for slot in (site.weight, site.bias):
        if slot is not None:
            slot.write(alone, slot.read(vector))
    losses = []
    for alpha in (step, -step):
        with source.updated(alone, alpha):
            losses.append(float(source.loss(images, labels, classes)) / 6)
    assert gains[name] == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=1e-4)


def test_sites_without_an_update_gain_nothing(source: ClipViT) -> None:
    gradient = {name: torch.ones_like(t) for name, t in source.state().items()}
    gains = predicted_gain(gradient, {"visual.proj": -gradient["visual.proj"]}, source.sites, 4)
    assert gains["proj"] == 16 * 8 / 4 and sum(gains.values()) == gains["proj"]
    with pytest.raises(ShapeError, match="over 0 samples"):
        predicted_gain(gradient, {}, source.sites, 0)

"""The rival of a carried adapter: a LoRA trained on the same samples, from nothing or from what was carried."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch
from bico.errors import CalibrationError, ConfigError
from bico.last_steps import Samples, StepContext
from bico.last_steps.lora import Lora
from bico.methods import Gathered
from bico.models.protocol import Model
from bico.reporting.adapter_card import hub_name
from bico.reporting.measures import measures_table, with_measures
from bico.reporting.references import ZERO_SHOT
from bico.reporting.rows import Cell, Row
from tests.tiny import pictures, tiny_clip
from tests.tiny_decoder import examples, tiny_decoder


def decoder() -> tuple[Model, Any, Tensor]:
    model = tiny_decoder(1, dtype=torch.float32)
    return model, model.prepare(examples(12, 5)), torch.zeros(0)


def fused() -> tuple[Model, Any, Tensor]:
    """q, k and v in one parameter."""
    model = tiny_clip(1, torch.float32)
    return model, pictures(12).float(), torch.nn.functional.normalize(torch.randn(3, 8), dim=1)


def context_of(model: Model, inputs: Any, head: Tensor, tau: dict[str, Tensor]) -> StepContext:
    labels = torch.arange(12) % max(1, len(head))
    return StepContext(model, model, (head, head), tau, Samples([Batch(inputs, inputs, labels)]))


def thin(model: Model, roles: tuple[str, ...]) -> dict[str, Tensor]:
    """An update of rank two of every map of some roles."""
    generator = torch.Generator().manual_seed(3)
    vector: dict[str, Tensor] = {}
    for site in model.sites:
        if site.role in roles:
            shape, slot = site.shape, site.weight
            vector.setdefault(slot.parameter, torch.zeros_like(model.state()[slot.parameter]))
            ends = torch.randn(shape[0], 2, generator=generator), torch.randn(2, shape[1], generator=generator)
            slot.write(vector, 0.05 * ends[0] @ ends[1])
    return vector


@pytest.mark.parametrize("make", [decoder, fused])
def test_it_starts_from_what_was_carried_and_leaves_the_model_as_it_was(make: Callable[[], Any]) -> None:
    model, inputs, head = make()
    before = {name: tensor.clone() for name, tensor in model.state().items()}
    vector = thin(model, ("q", "v"))
    context = context_of(model, inputs, head, vector)
    still = Lora(r=2, steps=1, lr=1e-12).take(vector, context, Gathered(12)).vector
    assert still.keys() == vector.keys()
    for name, tensor in vector.items():
        assert_close(still[name], tensor, atol=1e-5, rtol=1e-4)

    def loss(of: dict[str, Tensor]) -> float:
        with model.updated(of), torch.no_grad():
            return float(model.loss(inputs, context.labels, head))

    for start in (vector, {}):
        trained = Lora(r=2, steps=25, lr=1e-3).take(start, context, Gathered(12)).vector
        assert loss(trained) < loss(start) - 0.02
        for site in model.sites:  # of no other role than the expert's, and of no higher rank
            update = site.weight.read(trained) if site.weight.parameter in trained else torch.zeros(1, 1)
            assert (site.role in ("q", "v")) == bool(update.any())
            assert torch.linalg.matrix_rank(update, rtol=1e-4) <= 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state().items())


def test_nothing_to_train_or_to_train_on_is_an_error() -> None:
    model, inputs, head = decoder()
    with pytest.raises(CalibrationError, match="the expert changes no linear map"):
        Lora().take({}, context_of(model, inputs, head, {}), Gathered(12))
    with pytest.raises(CalibrationError, match="lora needs samples"):
        Lora().take({}, StepContext(model, model, (head, head), {}, Samples()), Gathered(0))
    with pytest.raises(ConfigError, match="lora needs r"):
        Lora(r=0)


def test_all_measures_stand_in_a_table() -> None:
    cell = Cell("qa", ZERO_SHOT.spec)
    row = Row.of(cell, 50.0, {"exact match": 50.0, "loss": 1.23456, "perplexity": 3.4372})
    assert measures_table([Row.of(cell, 50.0)]) == ""
    table = measures_table([row]).splitlines()
    assert table[0] == "| model | N | loss (nats per token) | perplexity | exact match (%) |"
    assert table[2] == "| zero-shot | – | 1.2346 | 3.437 | 50.0 |"
    plain = Row.parse(row.record())
    assert plain == row and not plain.measures
    assert with_measures([plain], {row.label: row.measures})[0].measures == row.measures
    assert hub_name("hf:org/model@main") == "org/model" and hub_name("/some/where/model") == "model"

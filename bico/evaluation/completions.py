"""How well a model completes texts: by likelihood, by what it would write itself, and by which of a few answers it prefers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch

from bico.errors import CalibrationError, ConfigError, ShapeError
from bico.evaluation.measures import Measures
from bico.models.protocol import Answers, Completing, Model

LOSS, PERPLEXITY, BITS = "loss", "perplexity", "bits per character"
TOKENS, EXACT, LABELS = "token accuracy", "exact match", "label accuracy"


def measure_of(answers: Sequence[str]) -> str:
    """The measure that stands for a model: which answer it prefers, or how many tokens it tells."""
    return LABELS if answers else TOKENS


@torch.no_grad()
def measure_completions(
    model: Model,
    batches: Iterable[Sequence[Any]],
    answers: Sequence[str] = (),
    on_batch: Callable[[int], None] = lambda seen: None,
) -> Measures:
    """Measures a model on completions, with the true tokens before each that is asked for.

    Greedy decoding would write a completion if, and only if, each of its tokens is the likeliest after the true ones before
    it; so `exact match` needs no decoding. Losses per token compare models of one tokenizer; bits per character all models.

    Arguments:
        batches: Examples.
        answers: Completions to choose from: the likeliest, over all its tokens, is the model's answer.
        on_batch: Called with the number of examples seen so far.

    Raises:
        ConfigError: If the model completes no texts.
        ShapeError: If there are no examples.
        CalibrationError: If a loss is not finite.
    """
    if not isinstance(model, Completing):
        raise ConfigError(f"{model.name} completes no texts: use a decoder.")
    cost, tokens, characters, right, whole, labels, seen = 0.0, 0, 0, 0, 0, 0, 0
    for examples in batches:
        if answers:
            found, preferred = _answered(model, examples, answers)
            labels += preferred
        else:
            found = model.answers(model.prepare(examples))
        cost, tokens = cost + float(found.costs.double().sum()), tokens + int(found.tokens.sum())
        characters, right = characters + int(found.characters.sum()), right + int(found.right.sum())
        whole, seen = whole + int(found.whole.sum()), seen + len(examples)
        on_batch(seen)
    if not seen:
        raise ShapeError("There is nothing to evaluate: the split has no completions.")
    if not math.isfinite(cost):
        raise CalibrationError(f"The loss of {model.name} is not finite: its weights are broken.")
    loss = cost / tokens
    shares = {EXACT: 100 * whole / seen, TOKENS: 100 * right / tokens}
    if answers:
        shares = {LABELS: 100 * labels / seen, **shares}
    numbers = {LOSS: loss, PERPLEXITY: math.exp(min(loss, 700.0)), BITS: cost / math.log(2) / max(characters, 1)}
    return Measures(measure_of(answers), shares | numbers)


def _answered(model: Any, examples: Sequence[Any], answers: Sequence[str]) -> tuple[Answers, int]:
    """What is told of the examples' own answers, and of how many the own one is the likeliest. One that another equals is
    not preferred.
    """
    told = model.choose(examples, answers)
    own = torch.tensor([answers.index(example.answer) for example in examples], device=told.costs.device)[:, None]

    def of_own(values: torch.Tensor) -> torch.Tensor:
        return values.view(len(examples), len(answers)).gather(1, own)[:, 0]

    found = Answers(**{field.name: of_own(getattr(told, field.name)) for field in fields(Answers)})
    costs = told.costs.view(len(examples), len(answers))
    return found, int(((costs <= found.costs[:, None]).sum(1) == 1).sum())

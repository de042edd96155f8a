"""A model's card says what was done, as method and steps say it of themselves."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bico.calibration.budget import Budget
from bico.data.tasks import get_task
from bico.evaluation.head_files import save_head
from bico.evaluation.linear_head import LinearHead
from bico.last_steps import LAST_STEPS
from bico.methods import METHODS
from bico.methods.variant import get_variant
from bico.reporting.card import Origin, model_card
from tests.releases import write_release
from tests.rows import row, spec

ORIGIN = Origin("zoo:old", "zoo:new", {"source": "ab", "target": "cd"}, "random", 0.5, "clip")


def card(method: str, seed: int | None = 0, unlabelled: int = 0, lr: float = 1e-3) -> str:
    cell = row("digits", method, 10 if seed is not None else 0, seed, 90.0, unlabelled)
    return model_card(cell, get_variant(spec(method), lr=lr), 80.0, ORIGIN, "digits-x")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("bico", "Nothing of the target was trained."),
        ("bico+tune:steps=30", "fine-tuned for 30 AdamW steps at learning rate 0.001"),
        ("few-shot", "took one AdamW step at learning rate 0.001"),
        ("bico+head", "a linear classifier on its pooled features was fitted to the expert's scores by ridge"),
        ("none+head:targets=labels:fit=logistic", "fitted to the labels by logistic regression"),
        ("none+head:fit=logistic", "fitted to the expert's predictions by logistic regression"),
        ("bico+projection", "last projection was refitted to the expert's change of features by ridge regression"),
    ],
)
def test_it_says_what_was_trained(method: str, words: str) -> None:
    assert words in card(method)
    assert ("Nothing of the target was trained" in card(method)) is (method == "bico")


def test_all_steps_are_told_in_their_order() -> None:
    said = card("bico+projection+head")
    assert said.index("last projection was refitted") < said.index("; then a linear classifier")


def test_every_method_and_step_says_whether_it_trains() -> None:
    assert {name for name, method in METHODS.items() if method().trained} == {"few-shot"}
    assert all(step().trained for step in LAST_STEPS.values())


@pytest.mark.parametrize("method", ["few-shot", "none+head", "none+tune"])
def test_what_carries_no_expert_over_does_not_say_so(method: str) -> None:
    assert "no weights of an expert were carried over" in card(method) and "learnt on" not in card(method)
    assert "learnt on digits, carried over by BiCo with 10 labelled" in card("bico")


def test_the_settings_are_those_that_were_used() -> None:
    assert "| bico | completion svd, others leave, rank 0, strength fixed, rope free, depth one, whiten 0.0 |" in card(
        "bico:completion=svd"
    )
    assert (
        "| bico | completion partial, others add, rank 128, strength fixed, rope free, depth one, whiten 0.0 |"
        in card("bico:others=add")
    )
    assert "completion" not in card("naive", seed=None) and "| sampling |" not in card("naive", seed=None)
    assert "| tune | steps 7, lr 0.001, batch_size 48, seed 0 |" in card("none+tune:steps=7")
    assert "α of the transport | 0.5" in card("bico") and "α" not in card("none+head")


def test_the_samples_are_counted_as_they_were_drawn() -> None:
    assert "10 labelled calibration samples and 50 inputs without labels (seed 0)" in card("bico", unlabelled=50)
    cell = replace(row("digits", "bico", 2, 0, 90.0), budget=Budget(2, size=20))  # two of each class
    assert "20 labelled" in model_card(cell, get_variant("bico"), None, ORIGIN, "x")
    assert "with no calibration samples." in card("naive", seed=None)


def test_one_draw_has_no_spread() -> None:
    assert "| 90.00 %, +10.00 points over zero-shot (one draw of the calibration samples) |" in card("bico")
    assert "±" not in card("bico+head") and "one draw" not in card("naive", seed=None)


def test_the_lines_that_a_card_shows_classify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every third picture is told apart by a head that was made to know no class but the third."""
    write_release(tmp_path / "digits-x", seed=1)
    digits = get_task("digits")
    bias = torch.zeros(10).index_fill_(0, torch.tensor([3]), 1e6)
    save_head(tmp_path / "digits-x", LinearHead(torch.zeros(16, 10), bias), digits.class_names)
    (lines,) = re.findall(r"```python\n(.*?)```", card("bico+head"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines, {"example": digits.open("test").example(0)})
    assert capsys.readouterr().out.strip() == str([digits.class_names[3]])
    assert "```" not in card("bico") and "linear_head.json" in card("bico+head")

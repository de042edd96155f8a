"""The search of a strength on the labels: what it chooses, when it stays, and what it remembers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch
from bico.errors import CalibrationError
from bico.evaluation.probe import probe_losses
from bico.last_steps import Samples, StepContext, search
from bico.last_steps.curve import StrengthCurve
from bico.last_steps.search import STRENGTHS, Search, choose
from bico.methods import Gathered
from bico.methods.variant import get_variant, run
from bico.models.clip.vit import ClipViT
from bico.reporting.strengths import plot_strengths, strength_lines
from bico.task_vector import scale
from tests.library.test_methods import gradient_step
from tests.rows import row
from tests.tiny import CLASSES, head, pictures, random_task_vector
from tests.tiny_t5 import texts, tiny_t5

OCTAVES = torch.tensor([-4.0 if not s else math.log2(s) for s in STRENGTHS], dtype=torch.float64)[:, None]
"""Of each strength from one; the untouched target stands left of all."""


def noise(samples: int, generator: torch.Generator) -> Tensor:
    """Losses that differ between strengths by chance alone: smoothly, as those of one vector do."""
    slope, bend = torch.randn(2, 1, samples, dtype=torch.float64, generator=generator)
    return 2.0 + slope * OCTAVES + 0.5 * bend * OCTAVES**2


# The choice ---------------------------------------------------------------------------------------------------------------


def test_nothing_is_added_where_every_strength_harms_by_far() -> None:
    generator = torch.Generator().manual_seed(0)
    harm = torch.tensor(STRENGTHS, dtype=torch.float64)[:, None] * (1 + 0.1 * torch.rand(10, generator=generator))
    assert STRENGTHS[choose(harm, STRENGTHS, 1.0)] == 0.0
    assert STRENGTHS[choose(-harm, STRENGTHS, 1.0)] == STRENGTHS[-1]  # the control: help at every strength


@pytest.mark.parametrize(("margin", "rate"), [(1.0, 0.26), (2.0, 0.05), (3.0, 0.01)])
@pytest.mark.parametrize("samples", [10, 200])
def test_noise_seldom_moves_the_strength(margin: float, rate: float, samples: int) -> None:
    """The rates that the margin's docstring tells, of 300 searches: within three standard errors."""
    generator = torch.Generator().manual_seed(samples)
    moved = [STRENGTHS[choose(noise(samples, generator), STRENGTHS, margin)] != 1.0 for _ in range(300)]
    assert abs(sum(moved) / 300 - rate) < 0.01 + 3 * math.sqrt(rate * (1 - rate) / 300)


@pytest.mark.parametrize("best", [0.25, 1.0, 4.0])
def test_many_labels_find_the_right_strength_and_few_come_near_it(best: float) -> None:
    """A bowl around the best, under noise as large as its depth: in the mean over draws, more labels are nearer."""
    bowl = 0.3 * (OCTAVES - math.log2(best)) ** 2

    def miss(samples: int) -> float:
        generator = torch.Generator().manual_seed(samples)
        found = [STRENGTHS[choose(bowl + 0.3 * noise(samples, generator), STRENGTHS, 1.0)] for _ in range(40)]
        assert all(found)  # never the untouched target
        return sum(abs(math.log2(strength / best)) for strength in found) / len(found)

    few, many = miss(10), miss(1000)
    assert many < 0.1 and few < 1.0 and many <= few


def test_a_single_label_changes_nothing() -> None:
    assert STRENGTHS[choose(noise(1, torch.Generator().manual_seed(0)), STRENGTHS, 1.0)] == 1.0


# The step -----------------------------------------------------------------------------------------------------------------


def clip_context(source: ClipViT, target: ClipViT, count: int = 40) -> StepContext:
    labels, images = torch.arange(count) % CLASSES, pictures(count)
    batches = [Batch(images[s], images[s], labels[s]) for s in (slice(0, 25), slice(25, count))]
    return StepContext(source, target, (head(source), head(target)), {}, Samples(batches))


def test_what_a_head_says_of_every_strength_is_the_curve(source: ClipViT, target: ClipViT) -> None:
    """The first step downhill helps, its opposite harms: one is made longer, of the other nothing is left."""
    context, images, labels = clip_context(source, target), pictures(40), torch.arange(40) % CLASSES
    downhill = scale(gradient_step(target, 40), 0.01)
    found = Search().take(downhill, context, Gathered())
    assert found.curve.strengths == STRENGTHS and found.curve.chosen > 1.0
    assert_close(found.vector, scale(downhill, found.curve.chosen))
    for strength, loss in zip(STRENGTHS[::4], found.curve.losses[::4], strict=True):
        with target.updated(downhill, strength):
            assert loss == pytest.approx(float(F.cross_entropy(target.logits(images, head(target)), labels)))
    uphill = Search().take(scale(downhill, -10.0), context, Gathered())
    assert uphill.curve.chosen == 0.0 and not any(tensor.any() for tensor in uphill.vector.values())


def test_a_probed_model_is_judged_by_probes_of_the_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "STRENGTHS", (0.0, 2.0))  # probes take their time
    source, target = tiny_t5(1), tiny_t5(2)
    inputs, labels = target.prepare(texts(6)), torch.arange(6) % 3
    heads = tuple(torch.randn(3, 13, dtype=torch.float64) for _ in range(2))
    context = StepContext(source, target, heads, {}, Samples([Batch(inputs, inputs, labels)]))
    vector = random_task_vector(target)
    found = Search().take(vector, context, Gathered()).curve
    assert found.strengths == (0.0, 2.0) and found.losses[0] != found.losses[1]
    for strength, loss in zip(found.strengths, found.losses, strict=True):
        with target.updated(vector, strength):
            assert loss == pytest.approx(float(probe_losses(target.features(inputs), labels, 3).mean()))


def test_nothing_to_scale_stays_nothing_and_labels_are_needed(source: ClipViT, target: ClipViT) -> None:
    context = clip_context(source, target)
    nothing = Search().take({}, context, Gathered())
    assert nothing.vector == {} and nothing.curve is None
    bare = StepContext(source, target, context.heads, {}, Samples((), context.samples.labelled))
    with pytest.raises(
        CalibrationError, match="search compares strengths on labels, and there are none: raise --samples"
    ):
        Search().take(random_task_vector(target), bare, Gathered())


def test_the_curve_outlives_the_steps_behind_the_search(source: ClipViT, target: ClipViT) -> None:
    tau, samples = random_task_vector(source), clip_context(source, target).samples
    heads = head(source), head(target)
    alone, more = (run(get_variant(f"naive+search{s}"), tau, source, target, samples, heads) for s in ("", "+head"))
    assert more.curve == alone.curve is not None and more.linear_head is not None
    assert run(get_variant("naive+head"), tau, source, target, samples, heads).curve is None


# The report ---------------------------------------------------------------------------------------------------------------

CURVE = StrengthCurve((0.0, 1.0, 2.0), (1.5, 1.0, 0.75), chosen=2.0)


def test_a_report_tells_and_draws_what_was_found() -> None:
    curves = {row("a", "bico+search", 50, seed, 0.0).cell: CURVE for seed in (0, 1)}
    curves |= {row("a", "theseus+search", 50, 0, 0.0).cell: StrengthCurve(CURVE.strengths, CURVE.losses, 1.0)}
    one, other = strength_lines(curves)
    assert one.startswith("- BiCo + strength searched, N=50: strength 2 (2 of 2), ") and "0.25 nats below" in one
    assert other.startswith("- THESEUS + strength searched, N=50: strength 1, by the loss") and "0 nats below" in other
    ax = plot_strengths(curves)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 3 and [*lines[0].get_ydata()] == [0.0, -0.5, -0.75]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "BiCo + strength searched",
        "THESEUS + strength searched",
    ]

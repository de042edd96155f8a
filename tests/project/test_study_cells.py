"""The study's shortcuts (features read once, trunks shared) change nothing: its numbers are the library's."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.beyond.ask import lines_of, ref
from benchmarks.beyond.averages import share, spread
from benchmarks.beyond.cell import StudyCell
from benchmarks.beyond.ideas import BICO, IDEAS, blended, completed, likeness, taking
from benchmarks.beyond.measured import Regime, append, read_cells
from benchmarks.beyond.questions import Arm, Question
from benchmarks.beyond.setting import Data, Draw, Setting
from benchmarks.beyond.sides import Expert, Side
from benchmarks.beyond.table import accuracy_table, axis_table, prediction
from bico.calibration.budget import Budget
from bico.calibration.pseudo_labels import expert_scores
from bico.evaluation.accuracy import accuracy
from bico.evaluation.linear_head import linear_head_accuracy, read
from bico.finetune import MINI
from bico.last_steps import Samples
from bico.methods import Gathered, Pair
from bico.methods.bico import BiCo
from bico.methods.variant import get_variant, run
from bico.models.matching import match_blocks
from tests.rows import spec
from tests.tiny import CLASSES, head, pictures, random_task_vector, size, tiny_clip

SAMPLES = 60


class Pictures:
    """Prepared pictures in memory."""

    def __init__(self, image: int, seed: int) -> None:
        self.images, labels = pictures(SAMPLES, image, seed), torch.arange(SAMPLES) % CLASSES
        self.split = SimpleNamespace(labels=labels)

    def __len__(self) -> int:
        return SAMPLES

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.split.labels[indices]

    def batches(self, size: int, limit: int | None = None):
        for indices in torch.arange(min(limit or SAMPLES, SAMPLES)).split(size):
            yield self.batch(indices)


def side(seed: int, **shape: int) -> Side:
    model = tiny_clip(seed, **shape)
    task = SimpleNamespace(name="made-up")
    data = [Pictures(size(model), s) for s in (1, 2)]
    return Side(f"zoo:tiny-{seed}", task, model, head(model), *data, limit=40)


@pytest.fixture(scope="module")
def cell() -> StudyCell:
    source, target = side(1), side(2, width=24)
    tau = random_task_vector(source.model)
    inputs = source.inputs(source.pool)
    with source.model.updated(tau):
        after = read(source.model, inputs)
    expert = Expert(source, tau, after, expert_scores(source.model, tau, inputs, source.head))
    return StudyCell(expert, target, Draw.of(len(source.pool), labels=12, unlabelled=10, seed=0))


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("bico", Data.MIXED),
        ("bico", Data.UNLABELLED),
        ("theseus", Data.LABELLED),
        ("bico+projection", Data.LABELLED),
        ("bico+projection", Data.MIXED),
        ("none+projection", Data.MIXED),
        ("bico+head", Data.MIXED),
        ("none+head:targets=labels", Data.LABELLED),
        ("none+tune:steps=30", Data.LABELLED),
        ("bico+tune:steps=30", Data.MIXED),
    ],
)
def test_a_cell_measures_what_the_library_does(cell: StudyCell, method: str, data: Data) -> None:
    target, expert = cell.target, cell.expert
    samples = {
        Data.LABELLED: Samples(cell.labelled),
        Data.UNLABELLED: Samples([], cell.unlabelled),
        Data.MIXED: Samples(cell.labelled, cell.unlabelled),
    }[data]
    variant = get_variant(method, lr=MINI.lr)
    outcome = run(variant, expert.tau, expert.side.model, target.model, samples, (expert.side.head, target.head))
    test = list(target.test.batches(40, 40))
    with target.model.updated(outcome.vector):
        if outcome.linear_head is None:
            expected = accuracy(target.model, test, target.head)
        else:
            expected = linear_head_accuracy(target.model, test, outcome.linear_head)
    assert cell.measure(spec(method), data) == pytest.approx(expected)
    assert len(cell.unlabelled) and not set(cell.draw.labelled.tolist()) & set(cell.draw.unlabelled.tolist())
    assert not spec(method).carries or any(t.any() for t in outcome.vector.values())


def test_experts_do_not_see_the_pool() -> None:
    one = side(1)
    seen = set(one.order[len(one.pool) :].tolist())
    assert len(one.pool) == SAMPLES // 2 and not seen & set(one.pool.tolist()) and len(seen) == SAMPLES // 2


def test_larger_draws_hold_smaller_ones() -> None:
    small, large = Draw.of(100, 5, 10, seed=1), Draw.of(100, 20, 40, seed=1)
    assert large.labelled[:5].equal(small.labelled) and large.unlabelled[:10].equal(small.unlabelled)
    assert len(Draw.of(100, 5, 0, seed=1).unlabelled) == 0 and len(set(large.places(Data.MIXED).tolist())) == 60
    assert not small.labelled.equal(Draw.of(100, 5, 10, seed=2).labelled)


ARMS = [
    Arm(spec("bico"), Data.LABELLED),
    Arm(spec("bico+projection"), Data.LABELLED),
    Arm(spec("bico"), Data.UNLABELLED),
    Arm(spec("bico"), Data.MIXED),
    Arm(spec("bico+projection"), Data.MIXED),
    Arm(spec("none+projection"), Data.MIXED),
]


def test_cells_are_written_whole_and_read_again(
    cell: StudyCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Side, "fine_tuned", lambda self, seed, folder, steps=100: random_task_vector(self.model))
    question = Question((), pairs=(("tiny-1", "tiny-2"),), labels=(12,), unlabelled=(10,))
    (setting,) = question.settings(["digits"], [0], [0])
    assert setting == Setting("tiny-1", "tiny-2", "digits", 100, 0, 0, 12, 10)
    lines, path = list(lines_of(cell, setting, ARMS)), tmp_path / "cells.csv"
    append(path, lines)
    (found,) = read_cells(path)
    assert found.setting == setting and read_cells(tmp_path / "other.csv") == []
    assert len(found.accuracy) == len(lines) == 3 + len(ARMS)
    of_labels, of_both = Regime(BICO, Budget(12)), Regime(BICO, Budget(12, 10))
    assert found.accuracy[of_both] == pytest.approx(cell.measure(BICO, Data.MIXED), abs=1e-3)
    assert found.accuracy[of_labels] == pytest.approx(cell.measure(BICO, Data.LABELLED), abs=1e-3)
    of_inputs = found.accuracy[BICO, Budget(0, 10)]
    assert of_inputs == pytest.approx(cell.measure(BICO, Data.UNLABELLED), abs=1e-3)
    zero, fine = Regime(spec("zero-shot")), Regime(spec("fine-tuned"))
    found.accuracy.update({zero: 10.0, fine: 60.0, of_labels: 35.0})
    assert share([found], zero) == 0 and share([found], of_labels) == 50
    assert "| BiCo + projection | 12 | 10 |" in accuracy_table([found]) and prediction([found]) == []
    assert "| recipe | 10 |" in axis_table("unlabelled", [found])
    assert spread([1.0, 3.0]) == "2.0 ± 1.4" and spread([2.0], "+") == "+2.0"


def test_models_are_of_the_zoo_or_beside_it(tmp_path) -> None:
    assert ref("mini-a", tmp_path) == "zoo:mini-a" and ref("mini-a-550", tmp_path) == f"{tmp_path}/mini-a-550"


def test_without_unlabelled_inputs_mixed_is_labels(cell: StudyCell) -> None:
    alone = StudyCell(cell.expert, cell.target, Draw(cell.draw.labelled, cell.draw.unlabelled[:0]))
    for method in ("bico", "bico+projection", "none+head"):
        assert alone.measure(spec(method), Data.MIXED) == cell.measure(spec(method), Data.LABELLED)


def test_ideas_are_ideas_of_their_own(cell: StudyCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives another task vector than BiCo, of the same parameters and of finite values."""
    monkeypatch.setattr(Expert, "other", lambda self: random_task_vector(self.side.model, seed=9))
    plain = cell.vector(BICO, Data.MIXED)
    before = {name: tensor.clone() for name, tensor in cell.target.model.state().items()}
    for name in IDEAS:
        found = cell.vector(spec(name), Data.MIXED)
        assert found.keys() == plain.keys() and all(tensor.isfinite().all() for tensor in found.values())
        assert max((found[key] - plain[key]).abs().max() for key in plain) > 1e-6, name
    assert all(tensor.equal(before[name]) for name, tensor in cell.target.model.state().items())


def test_ideas_for_models_of_two_depths() -> None:
    source, target = side(1), side(2, layers=3)
    tau = random_task_vector(source.model)
    scores = expert_scores(source.model, tau, source.inputs(source.pool), source.head)
    deep = StudyCell(Expert(source, tau, source.pool_before, scores), target, Draw.of(len(source.pool), 12, 10, seed=0))
    plain, part = deep.vector(BICO, Data.MIXED), deep.vector(spec("bico-shared"), Data.MIXED)
    halved = {site.block: site.weight.parameter for site in target.model.sites if site.role == "c_fc"}
    # three blocks take theirs from the first, the second and the second of two
    assert match_blocks(2, 3) == [0, 1, 1]
    for block, portion in enumerate([1, 0.5, 0.5]):
        torch.testing.assert_close(part[halved[block]], portion * plain[halved[block]])
    likenesses = likeness(deep)
    assert likenesses.shape == (2, 3) and (likenesses > 0).all() and (likenesses <= 1 + 1e-6).all()
    with taking([0, 1, 1]):
        again = BiCo().transport(tau, deep.pair, Gathered(12, deep.collect(Data.MIXED)))
    assert all(torch.allclose(again[name], plain[name], atol=1e-4) for name in plain)
    with taking([0, 0, 1]):
        other = BiCo().transport(tau, Pair.of(*deep.models), Gathered(12, deep.collect(Data.MIXED)))
    assert not torch.allclose(other[halved[1]], plain[halved[1]], atol=1e-2)
    torch.testing.assert_close(other[halved[0]], plain[halved[0]], atol=1e-4, rtol=1e-3)
    assert deep.vector(spec("bico-matched"), Data.MIXED).keys() == plain.keys()


def test_completed_maps_keep_the_gradients_directions_and_fill_the_rest() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, rotation = torch.randn(3, 8, generator=draw), torch.linalg.qr(torch.randn(8, 8, generator=draw))[0]
    outputs = torch.randn(50, 8, generator=draw)
    found = completed(rows.T @ rows @ rotation, outputs.T @ outputs @ rotation)
    torch.testing.assert_close(
        found, rotation, atol=1e-4, rtol=0
    )  # three rows alone would leave five directions at zero
    torch.testing.assert_close(
        blended(rows.T @ rows @ rotation, outputs.T @ outputs @ rotation), rotation, atol=1e-4, rtol=0
    )

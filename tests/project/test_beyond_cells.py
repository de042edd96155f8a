"""The study's shortcuts (features read once, trunks shared) change nothing: its numbers are the library's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.beyond import groups
from benchmarks.beyond.ask import Question, measured, places, ref
from benchmarks.beyond.cells import Cell, Draw, Line, Place, append, lines_of
from benchmarks.beyond.groups import average, axis_values, read_cells, share, spread
from benchmarks.beyond.ideas import IDEAS, blended, completed, likeness, taking
from benchmarks.beyond.plot import plot
from benchmarks.beyond.setting import Expert, Side
from benchmarks.beyond.table import accuracy_table, axis_table, by_task, gain_table, in_short, page, prediction
from bico.calibration.pseudo_labels import expert_scores
from bico.evaluation.accuracy import accuracy
from bico.evaluation.linear_head import linear_head_accuracy, read
from bico.finetune import MINI
from bico.last_steps import Samples
from bico.methods import Gathered
from bico.methods.bico import BiCo
from bico.methods.variant import get_variant, run
from bico.models.sites import match_blocks
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
def cell() -> Cell:
    source, target = side(1), side(2, width=24)
    tau = random_task_vector(source.model)
    inputs = source.inputs(source.pool)
    with source.model.updated(tau):
        after = read(source.model, inputs)
    expert = Expert(source, tau, after, expert_scores(source.model, tau, inputs, source.head))
    return Cell(expert, target, Draw.of(len(source.pool), labels=12, unlabelled=10, seed=0))


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("bico", "mixed"),
        ("bico", "pseudo_labels"),
        ("theseus", "labels"),
        ("bico+projection", "labels"),
        ("bico+projection", "mixed"),
        ("none+projection", "mixed"),
        ("bico+head", "mixed"),
        ("none+head:targets=labels", "labels"),
        ("none+tune:steps=30", "labels"),
        ("bico+tune:steps=30", "mixed"),
    ],
)
def test_a_cell_measures_what_the_library_does(cell: Cell, method: str, data: str) -> None:
    target, expert = cell.target, cell.expert
    samples = {
        "labels": Samples(cell.labelled),
        "pseudo_labels": Samples([], cell.unlabelled),
        "mixed": Samples(cell.labelled, cell.unlabelled),
    }[data]
    variant = get_variant(method, lr=MINI.lr)
    outcome = run(variant, expert.tau, expert.side.model, target.model, samples, (expert.side.head, target.head))
    test = list(target.test.batches(40, 40))
    with target.model.updated(outcome.vector):
        if outcome.linear_head is None:
            expected = accuracy(target.model, test, target.head)
        else:
            expected = linear_head_accuracy(target.model, test, outcome.linear_head)
    assert cell.measure(method, data) == pytest.approx(expected)
    bare = {} if method.startswith("none") else outcome.vector
    assert len(cell.unlabelled) and not set(cell.draw.labelled.tolist()) & set(cell.draw.unlabelled.tolist())
    assert bare == {} or any(t.any() for t in bare.values())


def test_experts_do_not_see_the_pool() -> None:
    one = side(1)
    seen = set(one.order[len(one.pool) :].tolist())
    assert len(one.pool) == SAMPLES // 2 and not seen & set(one.pool.tolist()) and len(seen) == SAMPLES // 2


def test_larger_draws_hold_smaller_ones() -> None:
    small, large = Draw.of(100, 5, 10, seed=1), Draw.of(100, 20, 40, seed=1)
    assert large.labelled[:5].equal(small.labelled) and large.unlabelled[:10].equal(small.unlabelled)
    assert len(Draw.of(100, 5, 0, seed=1).unlabelled) == 0 and len(set(large.all.tolist())) == 60
    assert not small.labelled.equal(Draw.of(100, 5, 10, seed=2).labelled)


RECIPES = [("bico", "labels"), ("bico+projection", "labels"), ("bico", "mixed"), ("bico+projection", "mixed"),
           ("none+projection", "mixed")]  # fmt: skip


def test_cells_are_written_whole_and_skipped(cell: Cell, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Side, "fine_tuned", lambda self, seed, folder, steps=100: random_task_vector(self.model))
    question = Question((), pairs=(("tiny-1", "tiny-2"),), labels=(12,), unlabelled=(10,))
    (place,) = places(question, ["digits"], [0], [0])
    assert place == Place("tiny-1", "tiny-2", "digits", 100, 0, 0, 12, 10)
    lines, path = list(lines_of(cell, place, RECIPES)), tmp_path / "cells.csv"
    append(path, lines)
    assert measured(path) == {place}
    (read,) = read_cells(path)
    assert len(read.accuracy) == len(lines) == 3 + len(RECIPES)
    assert read.accuracy["bico", 12, 10] == pytest.approx(cell.measure("bico", "mixed"), abs=1e-3)
    assert read.accuracy["bico", 12, 0] == pytest.approx(cell.measure("bico", "labels"), abs=1e-3)
    read.accuracy.update({("zero-shot", 0, 0): 10.0, ("fine-tuned", 0, 0): 60.0, ("bico", 12, 0): 35.0})
    assert share([read], ("zero-shot", 0, 0)) == 0 and share([read], ("bico", 12, 0)) == 50
    assert "| BiCo + projection | 12 | 10 |" in accuracy_table([read]) and prediction([read]) == []
    assert "| recipe | 10 |" in axis_table("unlabelled", [read])
    assert spread([1.0, 3.0]) == "2.0 ± 1.4" and spread([2.0], "+") == "+2.0"


def test_values_of_an_axis_come_in_their_order() -> None:
    def cells(axis: str, values: list) -> list:
        place = Place("mini-a", "mini-b", "digits", 100, 0, 0, 100, 500)
        return [groups.Cell(replace(place, **{axis: value}), {}, {}) for value in values]

    assert axis_values("unlabelled", cells("unlabelled", [2000, 0, 100])) == ["0", "100", "2000"]
    found = axis_values("target", cells("target", ["mini-b-1000", "mini-l", "mini-b", "mini-b-250"]))
    assert found == [f"mini-a → mini-{name}" for name in ("b-250", "b-1000", "b", "l")]


def test_averages_are_over_the_same_tasks_at_every_value() -> None:
    """A small task that was not measured at the last value is left out there, and only there."""
    base = Place("mini-a", "mini-b", "digits", 100, 0, 0, 100, 0)
    measured_at = {"digits": (0, 100), "mnist": (0, 100, 2000), "gtsrb": (0, 100, 2000)}
    cells = [groups.Cell(replace(base, task=task, unlabelled=u), {("bico", 100, u): 50.0}, {})
             for task, counts in measured_at.items() for u in counts]  # fmt: skip
    parts = groups.comparable("unlabelled", cells)
    assert list(parts) == ["All tasks", "Only mnist, gtsrb"]
    assert axis_values("unlabelled", parts["All tasks"]) == ["0", "100"]
    assert axis_values("unlabelled", parts["Only mnist, gtsrb"]) == ["0", "100", "2000"]
    assert list(groups.comparable("unlabelled", parts["All tasks"])) == ["All tasks"]


def test_models_are_of_the_zoo_or_beside_it(tmp_path) -> None:
    assert ref("mini-a", tmp_path) == "zoo:mini-a" and ref("mini-a-550", tmp_path) == f"{tmp_path}/mini-a-550"


def test_without_unlabelled_inputs_mixed_is_labels(cell: Cell) -> None:
    alone = Cell(cell.expert, cell.target, Draw(cell.draw.labelled, cell.draw.unlabelled[:0]))
    for method in ("bico", "bico+projection", "none+head"):
        assert alone.measure(method, "mixed") == cell.measure(method, "labels")


def test_ideas_are_ideas_of_their_own(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives another task vector than BiCo, of the same parameters and of finite values."""
    monkeypatch.setattr(Expert, "other", lambda self: random_task_vector(self.side.model, seed=9))
    plain = cell.vector("bico", "mixed")
    before = {name: tensor.clone() for name, tensor in cell.target.model.state().items()}
    for name in IDEAS:
        found = cell.vector(name, "mixed")
        assert found.keys() == plain.keys() and all(tensor.isfinite().all() for tensor in found.values())
        assert max((found[key] - plain[key]).abs().max() for key in plain) > 1e-6, name
    assert all(tensor.equal(before[name]) for name, tensor in cell.target.model.state().items())


def test_ideas_for_models_of_two_depths() -> None:
    source, target = side(1), side(2, layers=3)
    tau = random_task_vector(source.model)
    scores = expert_scores(source.model, tau, source.inputs(source.pool), source.head)
    deep = Cell(Expert(source, tau, source.pool_before, scores), target, Draw.of(len(source.pool), 12, 10, seed=0))
    plain, part = deep.vector("bico", "mixed"), deep.vector("bico-shared", "mixed")
    halved = {site.block: site.weight.parameter for site in target.model.sites if site.role == "c_fc"}
    # three blocks take theirs from the first, the second and the second of two
    assert match_blocks(2, 3) == [0, 1, 1]
    for block, portion in enumerate([1, 0.5, 0.5]):
        torch.testing.assert_close(part[halved[block]], portion * plain[halved[block]])
    likenesses = likeness(deep)
    assert likenesses.shape == (2, 3) and (likenesses > 0).all() and (likenesses <= 1 + 1e-6).all()
    with taking([0, 1, 1]):
        again = BiCo().transport(tau, deep.pair, Gathered(12, deep.collect("mixed")))
    assert all(torch.allclose(again[name], plain[name], atol=1e-4) for name in plain)
    with taking([0, 0, 1]):
        other = BiCo().transport(tau, deep.pair, Gathered(12, deep.collect("mixed")))
    assert not torch.allclose(other[halved[1]], plain[halved[1]], atol=1e-2)
    torch.testing.assert_close(other[halved[0]], plain[halved[0]], atol=1e-4, rtol=1e-3)
    assert deep.vector("bico-matched", "mixed").keys() == plain.keys()


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


def test_a_page_says_what_was_measured(tmp_path) -> None:
    """Planted numbers: BiCo closes half of each gap, its head 80 %, the head alone 60 %."""
    rows = []
    for task, (zero, fine) in {"digits": (50.0, 90.0), "lamps": (20.0, 80.0), "gtsrb": (40.0, 60.0)}.items():
        for seed in (0, 1):
            place, gap = Place("mini-a", "mini-b", task, 100, 0, seed, 100, 500), fine - zero
            shares = {"bico": 0.5, "bico+head": 0.8, "none+head": 0.6}
            rows += [Line(place, "zero-shot", 0, 0, zero), Line(place, "fine-tuned", 0, 0, fine)]
            rows += [Line(place, name, 100, 500, zero + share * gap, share * gap) for name, share in shares.items()]
    append(tmp_path / "cells.csv", rows)
    cells = read_cells(tmp_path / "cells.csv")
    lines = {line.split("|")[1].strip(): line for line in in_short(cells).splitlines()}
    assert lines["BiCo + head"].endswith("| 80 % | 80 % | 1.60 | +8.0 ± 5.7 | 2/2 |")  # 12 and 4 points
    assert lines["no transport + head"].endswith("| 60 % | 60 % | 1.20 |  |  |")
    assert [line.split("|")[1].strip() for line in by_task(cells, ("bico", 100, 500)).splitlines()[4:]] == [
        "lamps", "gtsrb", "digits"]  # fmt: skip
    assert "BiCo + head (100 labels, 500 unlabelled): 62.0 ± 0.0 %" in page("regimes", cells)
    assert all("ρ = 1.00" in line for line in prediction(cells))
    assert average(cells, "bico") == [pytest.approx(170 / 3)] * 2
    (gains,) = gain_table("unlabelled", cells).splitlines()[2:]  # only the head has a control: 8, 12 and 4 points
    assert gains == "| BiCo + head | +8.0 ± 4.0 (3/3) |"
    figure = plot("unlabelled", cells)
    assert len(figure.axes[0].get_lines()) >= 3 and figure.axes[0].get_ylabel().startswith("test accuracy")

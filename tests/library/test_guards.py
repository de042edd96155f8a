"""What must not creep back: work that is done twice, counted and not timed."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch
from bico.calibration.sampling import draw_samples
from bico.calibration.signals import Signal
from bico.data.tasks import get_task
from bico.linalg.procrustes import MapRule, procrustes
from bico.linalg.sketch import Sketch
from bico.methods import evidence
from bico.methods.bico import BiCo
from bico.models.clip.vit import ClipViT
from bico.models.loading import load, resolve
from bico.rehoming.in_memory import gather, transfer
from tests.tiny import count_alive, count_passes, head, pictures, random_task_vector


def test_a_transfer_makes_one_pass_of_each_model_and_solves_each_distinct_signal_once(
    source: ClipViT, target: ClipViT, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[Tensor] = []
    monkeypatch.setattr(evidence, "procrustes", lambda cross, *args: solved.append(cross) or procrustes(cross, *args))
    passes = count_passes(monkeypatch)
    batch = Batch(pictures(12), pictures(12), labels)
    transfer(random_task_vector(source), source, target, [batch], (head(source), head(target)), BiCo())
    assert passes == {"forward": 2, "backward": 2}
    # two blocks of four inputs (q, k and v share theirs) and six outputs, and both sides of `proj`
    assert len({id(cross) for cross in solved}) == len(solved) == 2 * (4 + 6) + 2


def test_a_covariance_goes_with_the_last_map_that_is_made_of_it(
    source: ClipViT, target: ClipViT, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = count_alive(monkeypatch, evidence)
    batch = Batch(pictures(12), pictures(12), labels)
    transfer(random_task_vector(source), source, target, [batch], (head(source), head(target)), BiCo())
    assert len(alive) == 22 and max(alive) == 1
    rules = [MapRule(), MapRule(rank=2)]
    both = frozenset((Signal.INPUT, rule) for rule in rules)
    found = evidence.Gathered(1, {(name, Signal.INPUT): torch.eye(3) for name in "ab"}, wanted=both)
    found.map(("a", Signal.INPUT), rules[0])
    assert len(found.covariances) == 2
    found.map(("a", Signal.INPUT), rules[1])
    assert [name for name, _ in found.covariances] == ["b"]
    assert found.map(("a", Signal.INPUT), rules[1]).shape == (3, 3)  # maps are kept


def test_maps_of_two_pre_trained_models_are_the_strongest_directions_of_the_svd() -> None:
    """Real covariances: their spectra decay without a gap, which random matrices do not show."""
    models = [load(resolve(f"zoo:mini-{name}"), torch.device("cpu")) for name in "ab"]
    digits = get_task("digits")
    train, heads = digits.open("train"), tuple(m.head(digits.class_names, digits.prompts) for m in models)
    chosen = draw_samples(len(train), 20, seed=0).tolist()
    inputs = [m.prepare([train.example(i) for i in chosen]) for m in models]
    batch = Batch(*inputs, train.labels[chosen])
    whole, sketched = (gather(*models, [batch], heads, BiCo(rank=rank)).covariances for rank in (0, 40))
    wide = [key for key in whole if min(whole[key].shape) == 512]
    assert len(wide) == 2 * 6 and {signal for _, signal in wide} == {Signal.INPUT, Signal.OUTPUT_GRAD}
    for key in wide:
        assert isinstance(sketched[key], Sketch) and not isinstance(whole[key], Sketch)
        values = torch.linalg.svdvals(whole[key].double())
        searched, found = procrustes(whole[key], MapRule(rank=40)), procrustes(sketched[key], MapRule(rank=40))
        kept = min(40, int((values > 1e-6 * values[0]).sum()))
        assert searched.rank == found.rank == kept and searched.left.shape == found.left.shape == (512, kept), key
        for one, least in ((searched, 0.99), (found, 0.93)):
            assert_close(one.left.T @ one.left, torch.eye(kept), atol=1e-5, rtol=0)
            gained = (one.matrix.double() * whole[key].double()).sum() / values[:kept].sum()
            assert least < gained < 1 + 1e-6, (key, gained)

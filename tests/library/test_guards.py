"""What must not creep back: work that is done twice, counted and not timed."""

import pytest
import torch
from torch import Tensor

from bico.calibration.covariances import Batch
from bico.calibration.sampling import draw_samples
from bico.calibration.signals import Signal
from bico.data.tasks import get_task
from bico.in_memory import gather, transfer
from bico.linalg import polar
from bico.linalg.procrustes import Completion, by_svd, procrustes
from bico.methods import evidence
from bico.methods.bico import BiCo
from bico.models.clip.vit import ClipViT
from bico.models.loading import load, resolve
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
    both = frozenset((Signal.INPUT, completion) for completion in Completion)
    found = evidence.Gathered(1, {(name, Signal.INPUT): torch.eye(3) for name in "ab"}, wanted=both)
    found.map(("a", Signal.INPUT), Completion.PARTIAL)
    assert len(found.covariances) == 2
    found.map(("a", Signal.INPUT), Completion.SVD)
    assert [name for name, _ in found.covariances] == ["b"]
    assert found.map(("a", Signal.INPUT), Completion.SVD).shape == (3, 3)  # maps are kept


def test_maps_of_two_pre_trained_models_are_those_of_the_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real covariances: their spectra decay through the cut without a gap, which random matrices do not show."""
    models = [load(resolve(f"zoo:mini-{name}"), torch.device("cpu")) for name in "ab"]
    digits = get_task("digits")
    train, heads = digits.open("train"), tuple(m.head(digits.class_names, digits.prompts) for m in models)
    chosen = draw_samples(len(train), 20, seed=0).tolist()
    inputs = [m.prepare([train.example(i) for i in chosen]) for m in models]
    found = gather(*models, [Batch(*inputs, train.labels[chosen])], heads, BiCo()).covariances
    block = [key for key in found if key[0].startswith(("blocks.0.", "blocks.5."))]
    assert {min(found[key].shape) for key in block} == {128, 512}
    gram, calls = polar.by_gram, []
    monkeypatch.setattr(polar, "by_gram", lambda *args: calls.append(1) or gram(*args))
    for key in block:
        fast, slow = procrustes(found[key]), by_svd(found[key], Completion.PARTIAL, 1e-6)
        assert fast.rank == slow.rank, key
        assert (fast.matrix - slow.matrix).abs().max() < 1e-5, key
    assert len(calls) >= 4  # c_proj's input and c_fc's gradient in two blocks
    assert {signal for _, signal in block} == {Signal.INPUT, Signal.OUTPUT_GRAD}

"""Last steps: their equations, what they must reproduce, and what must not matter."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch, split_at
from bico.calibration.pseudo_labels import PseudoLabels, expert_scores, pseudo_labels
from bico.errors import BicoError, CalibrationError, ConfigError, MethodError, UnknownMethodError
from bico.evaluation.linear_head import linear_head_accuracy, projection_of, read
from bico.last_steps import LAST_STEPS, Samples, StepContext, StepResult
from bico.last_steps.projection import Projection, added
from bico.linalg.procrustes import AlignmentMap, Completion
from bico.methods import Gathered, get_method
from bico.methods.variant import get_variant, run
from bico.models.clip.vit import ClipViT
from bico.rehoming.in_memory import transfer
from tests import tiny_t5
from tests.library.test_methods import gradient_step
from tests.rows import spec
from tests.symmetry import permuted_copy
from tests.tiny import CLASSES, head, pictures, random_task_vector, size, tiny_clip

COUNT = 40


def batches_of(source: ClipViT, target: ClipViT, labels: Tensor, batch_size: int = 16, seed: int = 0) -> list[Batch]:
    ours, theirs = (pictures(len(labels), size(model), seed) for model in (source, target))
    return [Batch(ours[s], theirs[s], labels[s]) for s in split_at(len(labels), batch_size, [len(labels)])]


def samples_of(source: ClipViT, target: ClipViT, **kwargs: int) -> Samples:
    return Samples(batches_of(source, target, torch.arange(COUNT) % CLASSES, **kwargs))


def at_sites(tau: dict[str, Tensor], model: ClipViT) -> dict[str, Tensor]:
    """The part of a task vector that methods carry."""
    inside = {slot.parameter for s in model.sites for slot in (s.weight, s.bias) if slot}
    return {name: t if name in inside else torch.zeros_like(t) for name, t in tau.items()}


def done(text: str, source: ClipViT, target: ClipViT, tau: dict, samples: Samples | None = None, **kw) -> StepResult:
    samples = samples or samples_of(source, target)
    return run(get_variant(text), tau, source, target, samples, (head(source), head(target)), **kw)


def features(model: ClipViT, vector: dict, images: Tensor) -> Tensor:
    with model.updated(vector):
        return model.features(images)


def test_readings_are_what_the_projection_reads_and_gives(source: ClipViT) -> None:
    images = pictures(7)
    found = read(source, [images[:3], images[3:]])
    assert_close(found.features, source.features(images))
    assert_close(found.pooled @ source.state()["visual.proj"], found.features)


def test_projection_is_its_equation(source: ClipViT, target: ClipViT) -> None:
    """Against the normal equations of the issue, written out, at one penalty."""
    tau, samples = random_task_vector(source), samples_of(source, target)
    ours, theirs = (torch.cat([getattr(b, side) for b in samples.batches]) for side in ("source", "target"))
    vector = done("bico", source, target, tau, samples).vector
    q_out = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    found = Projection(0.3).take(
        vector, StepContext(source, target, (head(source), head(target)), tau, samples), _fixed(q_out)
    )
    missing = target.features(theirs) + (features(source, tau, ours) - source.features(ours)) @ q_out
    missing = missing - features(target, vector, theirs)
    with target.updated(vector):
        x = read(target, [theirs]).pooled
    gram = x.T @ x
    step = torch.linalg.solve(gram + 0.3 * gram.diagonal().mean() * torch.eye(16, dtype=gram.dtype), x.T @ missing)
    assert_close(found.vector["visual.proj"], vector["visual.proj"] + step)
    assert all(torch.equal(found.vector[k], vector[k]) for k in vector if k != "visual.proj")
    assert step.norm() > 0.01 * vector["visual.proj"].norm()


class _fixed(Gathered):  # noqa: N801 - reads as a value
    """Evidence with one map for everything."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def map(self, key: object, rule: object) -> AlignmentMap:
        rank = self.matrix.shape[1]
        return AlignmentMap(self.matrix, torch.eye(rank).to(self.matrix), rank, torch.ones(rank))


@pytest.mark.parametrize("text", ["bico+projection", "none+projection", "bico+projection+head", "none+head"])
def test_a_rotated_copy_of_the_source_gets_the_experts_function(source: ClipViT, text: str) -> None:
    """What is missing without transport is more than the projection can give, unless the expert changed only that."""
    target, tau = permuted_copy(source, seed=5), at_sites(gradient_step(source, COUNT), source)
    if text.startswith("none"):
        tau = {k: v if k == "visual.proj" else torch.zeros_like(v) for k, v in tau.items()}
    fresh, outcome = pictures(30, seed=9), done(text, source, target, tau)
    expert = features(source, tau, fresh)
    assert (expert - source.features(fresh)).norm() > 0.01 * expert.norm()
    if "head" not in text:
        assert_close(features(target, outcome.vector, fresh), expert, atol=1e-4, rtol=1e-3)
        return
    # Scores of unit features are not linear in what the projection reads, so a head comes near.
    with source.updated(tau):
        wanted = source.logits(fresh, head(source))
    with target.updated(outcome.vector):
        given = outcome.linear_head.scores(read(target, [fresh]).pooled)
    wanted, given = (t - t.mean(1, keepdim=True) for t in (wanted, given))
    assert (given - wanted).norm() < 0.2 * wanted.norm()
    assert (given.argmax(1) == wanted.argmax(1)).double().mean() > 0.8


def test_the_refit_mends_what_transport_has_missed(source: ClipViT, target: ClipViT) -> None:
    """On another model the features come nearer to where the expert's change would put them; transport alone less."""
    tau = random_task_vector(source)
    q = torch.eye(8, dtype=torch.float64)
    samples = samples_of(source, target)
    context = StepContext(source, target, (head(source), head(target)), tau, samples)
    wanted = context.target_before().features + context.source_after().features - context.source_before().features
    vector = done("bico", source, target, tau).vector
    refitted = Projection().take(vector, context, _fixed(q)).vector
    gaps = [float((wanted - context.target_after(v).features).norm()) for v in (vector, refitted)]
    assert gaps[1] < 0.9 * gaps[0]


def test_an_infinite_penalty_changes_nothing(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    plain = done("bico", source, target, tau).vector
    same = done("bico+projection:penalty=inf", source, target, tau).vector
    assert plain.keys() == same.keys() and all(torch.equal(plain[k], same[k]) for k in plain)
    bare = done("none+projection:penalty=inf", source, target, tau).vector
    assert not any(t.any() for t in bare.values())
    assert not done("none+head:penalty=inf", source, target, tau).linear_head.weight.any()


@pytest.mark.parametrize("text", ["bico+projection", "none+projection", "theseus+head", "none+head:targets=labels"])
def test_batch_size_and_order_change_nothing(source: ClipViT, target: ClipViT, text: str) -> None:
    tau = random_task_vector(source)
    whole, split = (done(text, source, target, tau, samples_of(source, target, batch_size=b)) for b in (64, 7))
    turned = Samples(
        [
            Batch(b.source.flip(0), b.target.flip(0), b.labels.flip(0))
            for b in reversed(samples_of(source, target, batch_size=7).labelled)
        ]
    )
    for other in (split, done(text, source, target, tau, turned)):
        for name, tensor in whole.vector.items():
            assert_close(other.vector[name], tensor, atol=1e-8, rtol=1e-6)
        if whole.linear_head:
            assert_close(other.linear_head.weight, whole.linear_head.weight, atol=1e-7, rtol=1e-5)
            assert_close(other.linear_head.bias, whole.linear_head.bias, atol=1e-7, rtol=1e-5)


def test_models_and_arguments_are_left_as_they_were(source: ClipViT, target: ClipViT) -> None:
    before = [{k: v.clone() for k, v in m.state().items()} for m in (source, target)]
    tau = random_task_vector(source)
    for text in ("bico+projection+tune:steps=2:lr=1e-3+head", "none+head:fit=logistic"):
        done(text, source, target, tau)
    for model, state in zip((source, target), before, strict=True):
        assert all(torch.equal(t, state[k]) for k, t in model.state().items())
    assert all(torch.equal(t, tau[k]) for k, t in random_task_vector(source).items())
    vector = {"visual.proj": torch.ones(16, 8, dtype=torch.float64)}
    grown = added(vector, projection_of(target), torch.ones(8, 16, dtype=torch.float64), target.state())
    assert (vector["visual.proj"] == 1).all() and (grown["visual.proj"] == 2).all()


def test_alpha_scales_the_transport_and_the_refit_sees_it(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    nothing = done("bico+projection", source, target, tau, alpha=0.0).vector
    bare = done("none+projection", source, target, tau).vector
    assert_close(nothing["visual.proj"], bare["visual.proj"])
    assert not any(t.any() for k, t in nothing.items() if k != "visual.proj")


def test_a_head_of_labels_looks_at_labelled_samples_only(source: ClipViT, target: ClipViT) -> None:
    tau, labels = random_task_vector(source), torch.arange(20) % CLASSES
    known = batches_of(source, target, labels)
    more = batches_of(source, target, (labels + 1) % CLASSES, seed=3)
    for text in ("none+head:targets=labels", "none+head:targets=labels:fit=logistic"):
        alone, both = (done(text, source, target, tau, Samples(known, m)).linear_head for m in ([], more))
        assert torch.equal(alone.weight, both.weight)
    alone, both = (done("none+head", source, target, tau, Samples(known, m)).linear_head for m in ([], more))
    assert not torch.allclose(alone.weight, both.weight)
    with pytest.raises(CalibrationError, match="needs labelled samples"):
        done("none+head:targets=labels", source, target, tau, Samples([], more))


@pytest.mark.parametrize("fit", ["ridge", "logistic"])
def test_a_head_learns_classes_that_can_be_told_apart(source: ClipViT, target: ClipViT, fit: str) -> None:
    """Samples of a class share a picture but for noise: a head of labels finds them again, one of wrong labels does not."""
    prototypes, labels = pictures(CLASSES), torch.arange(COUNT) % CLASSES
    images = prototypes[labels] + 0.05 * pictures(COUNT, seed=1)
    held_out = prototypes[labels] + 0.05 * pictures(COUNT, seed=2)
    for shift, bound in ((0, 95), (1, 5)):
        samples = Samples([Batch(images, images, (labels + shift) % CLASSES)])
        found = done(f"none+head:targets=labels:fit={fit}", source, target, random_task_vector(source), samples)
        percent = linear_head_accuracy(target, [(held_out, labels)], found.linear_head)
        assert percent >= bound if shift == 0 else percent <= bound


def test_tuning_is_fine_tuning_on_the_samples(source: ClipViT, target: ClipViT) -> None:
    tau, samples = random_task_vector(source), samples_of(source, target)

    def loss(vector: dict) -> float:
        with target.updated(vector):
            return sum(float(target.loss(b.target, b.labels, head(target))) for b in samples.batches)

    tuned = done("none+tune:steps=20:lr=1e-3", source, target, tau, samples).vector
    carried = done("bico", source, target, tau, samples).vector
    both = done("bico+tune:steps=20:lr=1e-3", source, target, tau, samples).vector
    assert loss(tuned) < loss({}) and loss(both) < loss(carried)
    assert (both["visual.proj"] - carried["visual.proj"]).norm() < carried["visual.proj"].norm()  # it starts there


def test_the_teacher_is_the_expert(source: ClipViT, target: ClipViT) -> None:
    tau, images, classes = random_task_vector(source), pictures(12), head(source)
    scores = expert_scores(source, tau, [images[:5], images[5:]], classes)
    with source.updated(tau):
        assert_close(scores, source.logits(images, classes))
    assert torch.equal(pseudo_labels(scores), scores.argmax(1))
    assert_close(pseudo_labels(scores, PseudoLabels.SOFT).sum(1), torch.ones(12, dtype=torch.float64))


def test_soft_targets_that_are_certain_are_labels(source: ClipViT, target: ClipViT) -> None:
    tau, labels = random_task_vector(source), torch.arange(COUNT) % CLASSES
    certain = torch.nn.functional.one_hot(labels, CLASSES).double()
    hard, soft = (
        transfer(tau, source, target, batches_of(source, target, t), (head(source), head(target)), get_method("bico"))
        for t in (labels, certain)
    )
    for name in hard:
        assert_close(soft[name], hard[name], atol=1e-8, rtol=1e-6)


def test_labelled_and_unlabelled_samples_add_up(source: ClipViT, target: ClipViT) -> None:
    """True labels from the pseudo_labels make a mix the same as the labelled whole; other targets do not."""
    tau, labels = random_task_vector(source), torch.arange(COUNT) % CLASSES
    whole = batches_of(source, target, labels, batch_size=10)
    expected = done("bico", source, target, tau, Samples(whole)).vector
    mixed = done("bico", source, target, tau, Samples(whole[:2], whole[2:])).vector
    assert all(torch.allclose(mixed[k], expected[k], atol=1e-9) for k in expected)
    wrong = [Batch(b.source, b.target, (b.labels + 1) % CLASSES) for b in whole[2:]]
    other = done("bico", source, target, tau, Samples(whole[:2], wrong)).vector
    assert not torch.allclose(other["visual.proj"], expected["visual.proj"], atol=1e-9)


def test_pairs_of_other_widths_and_sizes_are_served(source: ClipViT) -> None:
    target = tiny_clip(2, width=24, layers=3, image=16, embed=12)
    outcome = done("bico+projection+head", source, target, random_task_vector(source))
    assert outcome.vector["visual.proj"].shape == (24, 12) and outcome.linear_head.weight.shape == (24, CLASSES)


def test_text_models_get_heads_and_steps_of_tuning() -> None:
    """The family without a projection: heads read pooled features, padding differs between batches."""
    ours, theirs = tiny_t5.tiny_t5(1), tiny_t5.tiny_t5(2, d_model=16)
    words, labels = tiny_t5.texts(12), torch.arange(12) % 3
    heads = tuple(model.head(tiny_t5.CLASS_NAMES) for model in (ours, theirs))
    tau = tiny_t5.random_task_vector(ours)

    def of(size: int) -> Samples:
        parts = [slice(start, start + size) for start in range(0, 12, size)]
        return Samples([Batch(ours.prepare(words[p]), theirs.prepare(words[p]), labels[p]) for p in parts])

    whole, split = (run(get_variant("bico+head"), tau, ours, theirs, of(size), heads).linear_head for size in (12, 5))
    assert whole.weight.shape == (16, 3) and whole.weight.any()
    assert_close(split.weight, whole.weight, atol=1e-7, rtol=1e-5)
    tuned = run(get_variant("none+tune:steps=10:lr=1e-3"), tau, ours, theirs, of(5), heads).vector

    def loss() -> float:
        return float(theirs.loss(theirs.prepare(words), labels, heads[1]))

    before = loss()
    with theirs.updated(tuned):
        assert loss() < before
    with pytest.raises(MethodError, match="tiny-t5-1 has none: use head"):
        run(get_variant("bico+projection"), tau, ours, theirs, of(12), heads)


def test_spelling() -> None:
    assert get_variant("bico").steps == () and get_variant("none+head").method is None
    variant = get_variant("bico:completion=svd+projection:penalty=1e+3", completion=Completion.PARTIAL)
    assert variant.method.completion == "svd" and variant.steps[0].penalty == 1000.0
    assert get_variant("none+tune", lr=0.25).steps[0].lr == 0.25
    assert spec("bico").control is None and spec("none+head").control is None
    assert spec("theseus+head:fit=logistic").control == spec("none+head:fit=logistic")
    assert not get_variant("naive").uses_samples and get_variant("naive+head").uses_samples
    assert not get_variant("none+head:targets=labels").uses_unlabelled and get_variant("none+head").uses_unlabelled


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("none", ConfigError, "'none' does nothing"),
        ("bico+projektion", UnknownMethodError, "unknown last step 'projektion': did you mean 'projection'"),
        ("biko+head", UnknownMethodError, "did you mean 'bico'"),
        ("bico+head+projection", ConfigError, "head is the end"),
        ("bico+head:target=labels", ConfigError, "head has no setting 'target': did you mean 'targets'"),
        ("none+head:fit=logistic:penalty=1", ConfigError, "chooses its own"),
        ("none+tune:steps=0", ConfigError, "tune needs steps >= 1"),
    ],
)
def test_misspelt_variants(text: str, error: type[BicoError], message: str) -> None:
    with pytest.raises(error, match=message):
        get_variant(text)


def test_a_family_without_projection_is_refused(
    source: ClipViT, target: ClipViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "sites", target.sites[:-1])
    with pytest.raises(MethodError, match="tiny-2 has none: use head"):
        get_variant("none+projection").check(source, target)
    assert torch.equal(read(target, [pictures(3)]).pooled, target.features(pictures(3)))


@pytest.mark.parametrize("text", ["bico", "gradfix:mask=force:vote=mean", "none+tune:steps=30", "bico:others=add+head"])
def test_a_spec_is_spelt_as_it_was_read(text: str) -> None:
    assert str(spec(text)) == text and spec(spec(text)) is not None and spec(str(spec(text))) == spec(text)


def test_the_infinite_penalty_can_be_spelt() -> None:
    assert math.isinf(get_variant("none+head:penalty=inf").steps[0].penalty)


@pytest.mark.parametrize("step", LAST_STEPS.values())
def test_only_steps_that_leave_a_classifier_end_a_variant(step: type) -> None:
    follow = f"bico+{step.name}+projection"
    if step.keeps_vocabulary:
        assert not get_variant(follow).ends_in_head
    else:
        with pytest.raises(ConfigError, match="put it last"):
            get_variant(follow)

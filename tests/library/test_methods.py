"""One suite over the whole table of methods: what every method must do, and what some must and others cannot."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.parameter_gradients import loss_gradients
from bico.errors import MethodError
from bico.methods import METHODS, Gathered, Method, Pair, Serves, get_method
from bico.models.clip.vit import ClipViT
from tests.symmetry import permuted_copy
from tests.tiny import evidence_for, head, pictures, random_task_vector, tiny_clip

WIDER, NARROWER = {"width": 24}, {"width": 8}
IDENTICAL = [name for name, method in METHODS.items() if method.serves is Serves.ONE_ARCHITECTURE]
ANY_PAIR = [name for name, method in METHODS.items() if method.serves is Serves.ANY]
WHOLE_MODEL = [*IDENTICAL, "few-shot"]
"""They carry every parameter, not the sites only."""
NOT_LINEAR = {"gradfix", "few-shot"}
"""GradFix looks at signs, and few-shot does not look at the task vector at all."""


def labels_of(count: int) -> Tensor:
    return torch.arange(count) % 5


def carried(
    method: Method, source: ClipViT, target: ClipViT, tau: dict, count: int = 40, **kwargs: object
) -> dict[str, Tensor]:
    return method.transport(tau, Pair.of(source, target), evidence_for(method, source, target, count, **kwargs))


def target_for(name: str) -> ClipViT:
    return tiny_clip(2, **{Serves.WIDER: WIDER, Serves.NARROWER: NARROWER}.get(METHODS[name].serves, {}))


def gradient_step(model: ClipViT, count: int) -> dict[str, Tensor]:
    """Minus the loss gradient on the calibration pictures: a task vector made exactly as eq. 4 says."""
    gradients = loss_gradients(model, pictures(count), labels_of(count), head(model))
    return {name: -0.01 * gradient for name, gradient in gradients.items()}


def without_key_biases(vector: dict[str, Tensor]) -> dict[str, Tensor]:
    """Softmax does not feel what is added to all keys alike: the gradient of a key's bias is zero but for rounding."""
    kept = dict(vector)
    for name, tensor in vector.items():
        if name.endswith("in_proj_bias"):
            width = len(tensor) // 3
            kept[name] = torch.cat([tensor[:width], tensor[2 * width :]])
    return kept


SERVED = {
    Serves.ANY: {"wider", "narrower", "deeper", "larger pictures", "other features"},
    Serves.ONE_ARCHITECTURE: set(),
    Serves.EQUAL_INPUTS: {"deeper", "larger pictures", "other features"},
    Serves.EQUAL_OUTPUTS: {"deeper", "larger pictures"},
    Serves.WIDER: {"wider", "deeper", "larger pictures", "other features"},
    Serves.NARROWER: {"narrower", "deeper", "larger pictures"},
}
OTHERS = {
    "wider": WIDER,
    "narrower": NARROWER,
    "deeper": {"layers": 3},
    "larger pictures": {"image": 16},
    "other features": {"embed": 12},
}
"""Targets that differ from the source in one thing."""


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_serves_exactly_the_pairs_that_it_says(name: str, other: str, source: ClipViT) -> None:
    pair = Pair.of(source, tiny_clip(2, **OTHERS[other]))
    if other in SERVED[METHODS[name].serves]:
        METHODS[name]().check(pair)
    else:
        with pytest.raises(MethodError):
            METHODS[name]().check(pair)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_carries_no_expert_does_not_look_at_it(name: str, source: ClipViT) -> None:
    target, method = target_for(name), METHODS[name]()
    one, other = (carried(method, source, target, random_task_vector(source, seed), count=12) for seed in (3, 4))
    assert method.carries_expert is any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_every_site_an_update_of_its_shape(name: str, source: ClipViT) -> None:
    target, method = target_for(name), METHODS[name]()
    before = {k: v.clone() for k, v in target.state().items()}
    tau = random_task_vector(source)
    vector = carried(method, source, target, tau)
    state = target.state()
    for site in target.sites:
        assert site.weight.read(vector).shape == site.shape
        assert site.weight.read(vector).norm() > 0  # the classic silent failure: a layer of zeros
        if site.bias is not None:
            assert site.bias.read(vector).norm() > 0
    assert all(vector[k].shape == state[k].shape and vector[k].isfinite().all() for k in vector)
    assert all(torch.equal(state[k], before[k]) for k in state)  # the target is not touched
    assert not any(p.requires_grad or p.grad is not None for p in target.model.parameters())
    assert all(torch.equal(t, random_task_vector(source)[k]) for k, t in tau.items())  # nor is the task vector


@pytest.mark.parametrize("name", WHOLE_MODEL)
def test_methods_for_the_whole_model_leave_no_parameter_out(name: str, source: ClipViT, target: ClipViT) -> None:
    vector = carried(METHODS[name](), source, target, random_task_vector(source))
    assert set(vector) == set(target.state())
    assert all(tensor.norm() > 0 for tensor in vector.values())


@pytest.mark.parametrize("name", sorted(set(METHODS) - NOT_LINEAR))
def test_methods_are_linear_in_the_task_vector(name: str, source: ClipViT) -> None:
    target, method = target_for(name), METHODS[name]()
    one, two = random_task_vector(source, 3), random_task_vector(source, 4)
    both = carried(method, source, target, {k: one[k] - 2 * two[k] for k in one})
    apart = [carried(method, source, target, tau) for tau in (one, two)]
    for key, tensor in both.items():
        assert_close(tensor, apart[0][key] - 2 * apart[1][key])


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_deterministic_and_ignore_the_batch_size(name: str, source: ClipViT) -> None:
    target, tau, method = target_for(name), random_task_vector(source), METHODS[name]()
    results = [carried(method, source, target, tau, batch_size=size) for size in (40, 40, 7)]
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    for key, tensor in without_key_biases(results[0]).items():
        assert_close(tensor, without_key_biases(results[2])[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bico", "theseus", "input-only", "output-only", "gradient-only"])
def test_an_aligned_transfer_to_itself_returns_the_update(name: str, source: ClipViT) -> None:
    """Where the data determine the maps; one gradient step on the calibration set lies in that span, on BiCo's sides."""
    tau = gradient_step(source, 40)
    # A covariance squares the rows' singular values: to keep directions down to 1e-6 of the rows, 1e-12 of it.
    vector = carried(METHODS[name](), source, tiny_clip(1), tau, rtol=1e-12)
    # THESEUS' outputs and gradient-only's input gradients have a lower rank than their spaces, by construction.
    undetermined = {
        "theseus": ("c_fc", "c_proj", "proj"),
        "gradient-only": ("q", "k", "v", "out_proj", "c_fc", "c_proj", "proj"),
    }
    for site in source.sites:
        if site.role not in undetermined.get(name, ()):
            assert_close(site.weight.read(vector), site.weight.read(tau), atol=1e-6, rtol=1e-4)
        if site.bias is not None and name in ("gradient-only", "output-only"):
            assert_close(site.bias.read(vector), site.bias.read(tau), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", IDENTICAL)
def test_a_transfer_to_itself_returns_the_whole_update(name: str, source: ClipViT) -> None:
    """For GradFix, one step downhill on the very samples: the mean gradient agrees with it everywhere."""
    tau = gradient_step(source, 40)
    method = get_method("gradfix:vote=mean" if name == "gradfix" else name)
    vector = carried(method, source, tiny_clip(1), tau)
    assert all(torch.equal(vector[k], tau[k]) for k in tau)


def in_two_bases(name: str, source: ClipViT, target: ClipViT) -> list[Tensor]:
    """Features after a transfer to a target, and to the same target in another basis."""
    moved, tau = permuted_copy(target, seed=6), random_task_vector(source)
    images = pictures(6, seed=9)
    outputs = []
    for model in (target, moved):
        with model.updated(carried(METHODS[name](), source, model, tau)):
            outputs.append(model.features(images))
    return outputs


@pytest.mark.parametrize("name", ["bico", "theseus", "gradient-only"])
def test_the_function_after_transfer_does_not_depend_on_the_targets_basis(
    name: str, source: ClipViT, target: ClipViT
) -> None:
    outputs = in_two_bases(name, source, target)
    assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["naive", "gradfix", "input-only", "output-only"])
def test_methods_with_an_unaligned_side_do_depend_on_the_targets_basis(
    name: str, source: ClipViT, target: ClipViT
) -> None:
    """The negative control of the test above."""
    outputs = in_two_bases(name, source, target)
    assert (outputs[0] - outputs[1]).norm() > 0.05 * outputs[0].norm()


def test_few_shot_does_not_depend_on_the_order_of_the_targets_features(source: ClipViT, target: ClipViT) -> None:
    """AdamW treats entries alike but one by one: it commutes with permutations, not with rotations."""
    moved = permuted_copy(target, seed=6, rotate_heads=False)
    images, outputs = pictures(6, seed=9), []
    for model in (target, moved):
        with model.updated(carried(METHODS["few-shot"](lr=1e-2), source, model, {})):
            outputs.append(model.features(images))
    assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


SHAPES = [
    WIDER,
    NARROWER,
    {"layers": 3},
    {"layers": 1},
    {"image": 16},
    {"width": 24, "layers": 4, "image": 16},
    {"embed": 12},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ANY_PAIR)
def test_methods_for_any_pair_serve_every_pair(name: str, shape: dict, source: ClipViT) -> None:
    for ours, theirs in ((source, tiny_clip(2, **shape)), (tiny_clip(2, **shape), source)):
        vector = carried(METHODS[name](), ours, theirs, random_task_vector(ours), count=12)
        assert all(site.weight.read(vector).norm() > 0 for site in theirs.sites)


@pytest.mark.parametrize("shape", [{"layers": 3}, {"image": 16}])
@pytest.mark.parametrize("name", ["input-only", "output-only"])
def test_an_identity_side_serves_pairs_of_one_width(name: str, shape: dict, source: ClipViT) -> None:
    target = tiny_clip(2, **shape)
    vector = carried(METHODS[name](), source, target, random_task_vector(source), count=12)
    assert all(site.weight.read(vector).norm() > 0 for site in target.sites)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "naive",
            WIDER,
            r"naive needs two .* visual\.class_embedding is \(16,\) in the source and \(24,\) .* zero-pad",
        ),
        ("gradfix", {"image": 16}, r"gradfix needs .* visual\.positional_embedding is \(10, 16\) .*\(17, 16\)"),
        (
            "transfusion",
            {"layers": 3},
            r"transfusion needs .* but visual\.transformer\.resblocks\.2\.\S+ is missing in",
        ),
        (
            "naive",
            {"layers": 1},
            r"naive needs .* visual\.transformer\.resblocks\.1\.\S+ is \(16,\) .* missing in the t",
        ),
        ("input-only", WIDER, r"input-only leaves the output side as it is, but blocks\.0\.q has 24 output features"),
        ("output-only", NARROWER, r"output-only leaves the input .* blocks\.0\.q has 8 input .* has 16: use a method"),
        ("input-only", {"embed": 12}, r"input-only leaves the output side as it is, but proj has 12 output features"),
        ("zero-pad", NARROWER, "narrower than the source's .* use crop"),
        ("crop", WIDER, "wider than the source's .* use zero-pad"),
    ],
)
def test_a_pair_that_a_method_cannot_serve_is_refused(name: str, shape: dict, message: str, source: ClipViT) -> None:
    """By its check, before any work, and by the transport of one who did not ask."""
    pair = Pair.of(source, tiny_clip(2, **shape))
    with pytest.raises(MethodError, match=message):
        METHODS[name]().check(pair)
    with pytest.raises(MethodError, match=message):
        METHODS[name]().transport(random_task_vector(source), pair, Gathered())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method().needs])
def test_needs_that_nobody_gathered_are_refused(name: str, source: ClipViT, target: ClipViT) -> None:
    with pytest.raises(MethodError, match="must declare it in `needs`"):
        METHODS[name]().transport(random_task_vector(source), Pair.of(source, target), Gathered())

"""One suite over the whole table of methods, and what the paper's construction promises."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.errors import MethodError, ShapeError, UnknownMethodError
from bico.methods import METHODS, Others, get_method
from bico.methods.protocol import no_maps
from bico.models.clip_vit import ClipViT
from bico.procrustes import Completion
from bico.signals import Signal
from tests.symmetry import permuted_copy
from tests.tiny import covariances_of, head, maps_from, pair_of, pictures, random_task_vector, tiny_clip

SIGNALS = [Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD]
ALIGNED = [name for name, method in METHODS.items() if method().needs]
WIDER, NARROWER = {"width": 24}, {"width": 8}


def labels_of(count: int) -> Tensor:
    return torch.arange(count) % 5


def transported(
    name: str, source: ClipViT, target: ClipViT, tau: dict, count: int = 40, **kwargs: object
) -> dict[str, Tensor]:
    sums = covariances_of(source, target, labels_of(count), SIGNALS, [count])[count]
    return METHODS[name]().transport(tau, pair_of(source, target), maps_from(sums, **kwargs))


def target_for(name: str) -> ClipViT:
    return tiny_clip(2, **{"zero-pad": WIDER, "crop": NARROWER}.get(name, {}))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_every_site_an_update_of_its_shape(name: str, source: ClipViT) -> None:
    target = target_for(name)
    before = {k: v.clone() for k, v in target.state().items()}
    vector = transported(name, source, target, random_task_vector(source))
    state = target.state()
    for site in target.sites:
        assert site.weight.read(vector).shape == site.shape
        assert site.weight.read(vector).norm() > 0  # the classic silent failure: a layer of zeros
        if site.bias is not None:
            assert site.bias.read(vector).norm() > 0
    assert all(vector[k].shape == state[k].shape and vector[k].isfinite().all() for k in vector)
    assert all(torch.equal(state[k], before[k]) for k in state)  # the target is not touched


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_linear_in_the_task_vector(name: str, source: ClipViT) -> None:
    target = target_for(name)
    one, two = random_task_vector(source, 3), random_task_vector(source, 4)
    both = transported(name, source, target, {k: one[k] - 2 * two[k] for k in one})
    apart = [transported(name, source, target, tau) for tau in (one, two)]
    for key, tensor in both.items():
        assert_close(tensor, apart[0][key] - 2 * apart[1][key])


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_deterministic_and_ignore_the_batch_size(name: str, source: ClipViT) -> None:
    target, tau = target_for(name), random_task_vector(source)
    method = METHODS[name]()
    results = []
    for batch_size in (40, 40, 7):
        sums = covariances_of(source, target, labels_of(40), SIGNALS, [40], batch_size)[40]
        results.append(method.transport(tau, pair_of(source, target), maps_from(sums)))
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    for key, tensor in results[0].items():
        assert_close(tensor, results[2][key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bico", "theseus", "naive"])
def test_a_model_transferred_to_itself_gets_its_own_update(name: str, source: ClipViT, labels: Tensor) -> None:
    """Where the data determine the maps; one gradient step on the calibration set lies in that span, on BiCo's sides."""
    tau = gradient_step(source, 40)
    # A covariance squares the rows' singular values: to keep directions down to 1e-6 of the rows, 1e-12 of it.
    vector = transported(name, source, tiny_clip(1), tau, rtol=1e-12)
    for site in source.sites:
        determined = name != "theseus" or site.role not in ("c_fc", "c_proj", "proj")
        if determined:
            assert_close(site.weight.read(vector), site.weight.read(tau), atol=1e-6, rtol=1e-4)


def gradient_step(model: ClipViT, count: int) -> dict[str, Tensor]:
    """Minus the loss gradient on the calibration pictures: a task vector made exactly as eq. 4 says."""
    model.model.visual.requires_grad_(True)
    model.loss(pictures(count), labels_of(count), head(model)).backward()
    tau = {"visual." + name: -0.01 * p.grad.clone() for name, p in model.model.visual.named_parameters()}
    model.model.visual.requires_grad_(False)
    for parameter in model.model.visual.parameters():
        parameter.grad = None
    return tau


def test_bico_recovers_a_planted_change_of_basis(source: ClipViT) -> None:
    """B is A in another basis (permuted residual stream and hidden units, rotated heads): the same function. BiCo
    finds the basis, and the transferred B computes what the expert A computes; unaligned addition does not.
    """
    target = permuted_copy(source, seed=5)
    images = pictures(40)
    assert_close(target.features(images), source.features(images))
    tau = dict(gradient_step(source, 40))
    in_sites = {slot.parameter for s in source.sites for slot in (s.weight, s.bias) if slot}
    tau = {k: v if k in in_sites else torch.zeros_like(v) for k, v in tau.items()}
    with source.updated(tau):
        expert = source.features(images)
    assert (expert - source.features(images)).norm() > 0.05 * expert.norm()  # the expert differs
    with target.updated(transported("bico", source, target, tau)):
        assert_close(target.features(images), expert, atol=1e-5, rtol=1e-4)
    with target.updated(transported("naive", source, target, tau)):
        assert (target.features(images) - expert).norm() > 0.05 * expert.norm()


@pytest.mark.parametrize("name", ALIGNED)
def test_the_function_after_transfer_does_not_depend_on_the_targets_basis(
    name: str, source: ClipViT, target: ClipViT
) -> None:
    moved, tau = permuted_copy(target, seed=6), random_task_vector(source)
    images = pictures(6, seed=9)
    outputs = []
    for model in (target, moved):
        with model.updated(transported(name, source, model, tau)):
            outputs.append(model.features(images))
    assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        WIDER,
        NARROWER,
        {"layers": 3},
        {"layers": 1},
        {"image": 16},
        {"width": 24, "layers": 4, "image": 16},
        {"embed": 12},
    ],
)
@pytest.mark.parametrize("name", ALIGNED)
def test_aligned_methods_serve_every_pair(name: str, shape: dict, source: ClipViT) -> None:
    for ours, theirs in ((source, tiny_clip(2, **shape)), (tiny_clip(2, **shape), source)):
        vector = transported(name, ours, theirs, random_task_vector(ours), count=12)
        assert all(site.weight.read(vector).norm() > 0 for site in theirs.sites)


def test_orthogonal_maps_keep_norms_where_the_source_is_not_wider(source: ClipViT) -> None:
    """Appendix D: |Qᵀu| = |u| for maps that do not narrow. Checked with the paper's own completion."""
    target = tiny_clip(2, width=24, embed=12)
    tau = random_task_vector(source)
    vector = transported("bico", source, target, tau, completion=Completion.SVD)
    for site in target.sites:
        assert_close(
            site.weight.read(vector).norm(),
            next(s for s in source.sites if s.name == site.name).weight.read(tau).norm(),
        )


def test_bico_is_its_equation(source: ClipViT, target: ClipViT) -> None:
    """Against eq. 8 written out with plain SVDs, for one site of each orientation."""
    sums = covariances_of(source, target, labels_of(40), SIGNALS, [40])[40]
    tau = random_task_vector(source)
    vector = METHODS["bico"]().transport(tau, pair_of(source, target), maps_from(sums, Completion.SVD))

    def q(tensor: str, signal: Signal) -> Tensor:
        u, _, vh = torch.linalg.svd(sums[(tensor, signal)], full_matrices=False)
        return u @ vh

    step = tau["visual.transformer.resblocks.1.attn.in_proj_weight"][16:32]  # k
    expected = q("blocks.1.k", Signal.OUTPUT_GRAD).T @ step @ q("blocks.1.attn_in", Signal.INPUT)
    assert_close(vector["visual.transformer.resblocks.1.attn.in_proj_weight"][16:32], expected)
    bias = q("blocks.0.c_proj", Signal.OUTPUT_GRAD).T @ tau["visual.transformer.resblocks.0.mlp.c_proj.bias"]
    assert_close(vector["visual.transformer.resblocks.0.mlp.c_proj.bias"], bias)
    projection = q("pooled", Signal.INPUT).T @ tau["visual.proj"] @ q("proj", Signal.OUTPUT_GRAD)  # stored (in, out)
    assert_close(vector["visual.proj"], projection)


def test_theseus_uses_outputs_where_bico_uses_gradients() -> None:
    bico, theseus = METHODS["bico"](), METHODS["theseus"]()
    assert bico.needs == {Signal.INPUT, Signal.OUTPUT_GRAD}
    assert theseus.needs == {Signal.INPUT, Signal.OUTPUT}


def test_naive_is_plain_addition(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    vector = METHODS["naive"]().transport(tau, pair_of(source, target), no_maps)
    assert set(vector) == set(target.state())
    assert all(torch.equal(vector[k], tau[k]) for k in tau)


def test_padding_then_cropping_gives_the_update_back(source: ClipViT) -> None:
    wide, tau = tiny_clip(2, **WIDER), random_task_vector(source)
    padded = METHODS["zero-pad"]().transport(tau, pair_of(source, wide), no_maps)
    full = {k: torch.zeros_like(v) for k, v in wide.state().items()} | padded
    back = METHODS["crop"]().transport(full, pair_of(wide, source), no_maps)
    assert all(torch.equal(site.weight.read(back), site.weight.read(tau)) for site in source.sites)
    total = sum(float(s.weight.read(tau).square().sum()) for s in source.sites)
    assert sum(float(s.weight.read(padded).square().sum()) for s in wide.sites) == pytest.approx(
        total
    )  # zeros elsewhere


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("naive", WIDER, "naive needs two models of one architecture, but visual.* differs: use zero-pad"),
        ("zero-pad", NARROWER, "narrower than the source's .* use crop"),
        ("crop", WIDER, "wider than the source's .* use zero-pad"),
    ],
)
def test_a_pair_that_a_method_cannot_serve_is_refused(name: str, shape: dict, message: str, source: ClipViT) -> None:
    with pytest.raises(MethodError, match=message):
        METHODS[name]().transport(random_task_vector(source), pair_of(source, tiny_clip(2, **shape)), no_maps)


def test_maps_of_another_pair_are_refused(source: ClipViT, target: ClipViT) -> None:
    def wrong(_key: object) -> Tensor:
        return torch.eye(3).double()

    with pytest.raises(ShapeError, match=r"blocks\.0\.q: maps of shape \(3, 3\)"):
        METHODS["bico"]().transport(random_task_vector(source), pair_of(source, target), wrong)


def test_undeclared_needs_are_refused(source: ClipViT, target: ClipViT) -> None:
    with pytest.raises(MethodError, match="must declare the signal in `needs`"):
        METHODS["bico"]().transport(random_task_vector(source), pair_of(source, target), no_maps)


def test_other_parameters_follow_the_named_policy(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    sums = covariances_of(source, target, labels_of(12), SIGNALS, [12])[12]
    left, added = (METHODS["bico"](others=o).transport(tau, pair_of(source, target), maps_from(sums)) for o in Others)
    norms = "visual.transformer.resblocks.0.ln_1.weight"
    assert norms not in left and "visual.conv1.weight" not in left
    assert torch.equal(added[norms], tau[norms]) and set(added) == set(target.state())


def test_adding_others_needs_equal_shapes(source: ClipViT) -> None:
    target = tiny_clip(2, image=16)
    sums = covariances_of(source, target, labels_of(12), SIGNALS, [12])[12]
    with pytest.raises(MethodError, match=r"others=add: visual\.positional_embedding is \(10, 16\).*\(17, 16\)"):
        METHODS["bico"](others=Others.ADD).transport(
            random_task_vector(source), pair_of(source, target), maps_from(sums)
        )


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(UnknownMethodError, match="'bicoo': did you mean 'bico'"):
        get_method("bicoo")
    with pytest.raises(TypeError, match="otters"):
        METHODS["bico"](otters="leave")

"""Methods that are a pair of signals: their equation, what the paper promises, and how others are told apart."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.signals import Signal
from bico.errors import MethodError, ShapeError
from bico.linalg.procrustes import Completion, MapRule
from bico.methods import METHODS, Gathered, Needs, Others, Pair
from bico.models.clip.vit import ClipViT
from tests.library.test_methods import WIDER, carried, gradient_step
from tests.symmetry import permuted_copy
from tests.tiny import evidence_for, pictures, random_task_vector, tiny_clip

SIGNALS = {
    "bico": (Signal.INPUT, Signal.OUTPUT_GRAD),
    "theseus": (Signal.INPUT, Signal.OUTPUT),
    "input-only": (Signal.INPUT, None),
    "output-only": (None, Signal.OUTPUT_GRAD),
    "gradient-only": (Signal.INPUT_GRAD, Signal.OUTPUT_GRAD),
}
"""(input side, output side), as DESIGN and the paper's table 5 have them."""


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("completion", Completion)
def test_needs_are_the_signals_with_the_completion(name: str, completion: Completion) -> None:
    rule = MapRule.of(completion, 5)
    expected = frozenset((signal, rule) for signal in SIGNALS[name] if signal is not None)
    assert METHODS[name](completion=completion, rank=5).needs == Needs(maps=expected)


@pytest.mark.parametrize("name", SIGNALS)
def test_an_aligned_method_is_its_equation(name: str, source: ClipViT, target: ClipViT) -> None:
    """Against eq. 8 written out with plain SVDs, for one site of each orientation."""
    method, tau = METHODS[name](completion=Completion.SVD), random_task_vector(source)
    evidence = evidence_for(method, source, target)
    covariances = dict(evidence.covariances)  # the evidence lets each go with its last map
    vector = method.transport(tau, Pair.of(source, target), evidence)
    side_in, side_out = SIGNALS[name]

    def q(tensor: str, signal: Signal | None, width: int) -> Tensor:
        if signal is None:
            return torch.eye(width, dtype=torch.float64)
        u, _, vh = torch.linalg.svd(covariances[(tensor, signal)], full_matrices=False)
        return u @ vh

    def close(actual: Tensor, expected: Tensor) -> None:
        assert_close(actual, expected, atol=1e-9, rtol=1e-7)

    fused, block = "visual.transformer.resblocks.1.attn.in_proj_weight", "visual.transformer.resblocks.0."
    step = tau[fused][16:32]  # k
    close(vector[fused][16:32], q("blocks.1.k", side_out, 16).T @ step @ q("blocks.1.attn_in", side_in, 16))
    bias = q("blocks.0.out_proj", side_out, 16).T @ tau[block + "attn.out_proj.bias"]
    close(vector[block + "attn.out_proj.bias"], bias)
    projection = q("pooled", side_in, 16).T @ tau["visual.proj"] @ q("proj", side_out, 8)  # stored (in, out)
    close(vector["visual.proj"], projection)


def test_bico_recovers_a_planted_change_of_basis(source: ClipViT) -> None:
    """B is A in another basis (permuted residual stream and hidden units, rotated heads): the same function. BiCo
    finds the basis, and the transferred B computes what the expert A computes; unaligned addition does not.
    """
    target = permuted_copy(source, seed=5)
    images = pictures(40)
    assert_close(target.features(images), source.features(images))
    tau = gradient_step(source, 40)
    in_sites = {slot.parameter for s in source.sites for slot in (s.weight, s.bias) if slot}
    tau = {k: v if k in in_sites else torch.zeros_like(v) for k, v in tau.items()}
    with source.updated(tau):
        expert = source.features(images)
    assert (expert - source.features(images)).norm() > 0.05 * expert.norm()  # the expert differs
    with target.updated(carried(METHODS["bico"](), source, target, tau)):
        assert_close(target.features(images), expert, atol=1e-5, rtol=1e-4)
    with target.updated(carried(METHODS["naive"](), source, target, tau)):
        assert (target.features(images) - expert).norm() > 0.05 * expert.norm()


def test_orthogonal_maps_keep_norms_where_the_source_is_not_wider(source: ClipViT) -> None:
    """Appendix D: |Qᵀu| = |u| for maps that do not narrow. Checked with the paper's own completion."""
    target = tiny_clip(2, width=24, embed=12)
    tau = random_task_vector(source)
    vector = carried(METHODS["bico"](completion=Completion.SVD), source, target, tau)
    for site in target.sites:
        assert_close(
            site.weight.read(vector).norm(),
            next(s for s in source.sites if s.name == site.name).weight.read(tau).norm(),
        )


def test_completions_differ_only_where_data_are_silent(source: ClipViT, target: ClipViT) -> None:
    """With few samples the gradients of the last block have low rank, and the completion decides much there."""
    tau = random_task_vector(source)
    partial, plain = (carried(METHODS["bico"](completion=c), source, target, tau, count=4) for c in Completion)
    name = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    assert partial[name].norm() < 0.5 * plain[name].norm()


def test_padding_then_cropping_gives_the_update_back(source: ClipViT) -> None:
    wide, tau = tiny_clip(2, **WIDER), random_task_vector(source)
    padded = METHODS["zero-pad"]().transport(tau, Pair.of(source, wide), Gathered())
    full = {k: torch.zeros_like(v) for k, v in wide.state().items()} | padded
    back = METHODS["crop"]().transport(full, Pair.of(wide, source), Gathered())
    assert all(torch.equal(site.weight.read(back), site.weight.read(tau)) for site in source.sites)
    total = sum(float(s.weight.read(tau).square().sum()) for s in source.sites)
    padded_total = sum(float(s.weight.read(padded).square().sum()) for s in wide.sites)
    assert padded_total == pytest.approx(total)  # zeros elsewhere


def test_naive_is_plain_addition(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    vector = METHODS["naive"]().transport(tau, Pair.of(source, target), Gathered())
    assert set(vector) == set(target.state())
    assert all(torch.equal(vector[k], tau[k]) for k in tau)


def test_maps_of_another_pair_are_refused(source: ClipViT, target: ClipViT) -> None:
    method = METHODS["bico"]()
    wrong = evidence_for(method, tiny_clip(3, width=24), target)
    with pytest.raises(ShapeError, match=r"blocks\.0\.q: a map of shape \(24, 16\) cannot carry 16 output features"):
        method.transport(random_task_vector(source), Pair.of(source, target), wrong)


def test_other_parameters_follow_the_named_policy(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    left, added = (carried(METHODS["bico"](others=o), source, target, tau, count=12) for o in Others)
    norms = "visual.transformer.resblocks.0.ln_1.weight"
    assert norms not in left and "visual.conv1.weight" not in left
    assert torch.equal(added[norms], tau[norms]) and set(added) == set(target.state())


@pytest.mark.parametrize("name", ["bico", "zero-pad"])
def test_adding_others_needs_equal_shapes(name: str, source: ClipViT) -> None:
    with pytest.raises(MethodError, match=r"others=add: visual\.positional_embedding is \(10, 16\).*\(17, 16\)"):
        METHODS[name](others=Others.ADD).check(Pair.of(source, tiny_clip(2, image=16)))

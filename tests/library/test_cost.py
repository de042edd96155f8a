"""Operations of a transfer against numbers worked out by hand."""

from bico.calibration.signals import Signal
from bico.models.clip.vit import ClipViT
from bico.reporting import cost
from tests.tiny import tiny_clip


def test_passes() -> None:
    assert cost.forward(86_000_000) == 172_000_000
    assert cost.backward(86_000_000, tokens=10) == 3_440_000_000
    assert cost.backward(86_000_000, tokens=10, frozen=True) == 1_720_000_000
    # 2,000 steps of 100 tokens: forward and backward 600 P each, and 12 operations of AdamW per parameter
    assert cost.fine_tuning(1000, steps=2000, tokens=100, optimiser=12) == 2000 * 1000 * 612


def test_maps_and_applying() -> None:
    # 10 images of 197 tokens, 3072 features on both sides
    assert cost.covariance(1970, 3072, 3072) == 37_182_504_960
    assert cost.decomposition(3072, 3072) == 57_982_058_496
    assert cost.decomposition(768, 896) == cost.decomposition(896, 768) == 2 * 768 * 768 * 896
    # c_fc of ViT-B/16 to ViT-B/16-plus: (3072, 768) to (3584, 896)
    assert cost.applying((3072, 768), (3584, 896)) == 3072 * 768 * 896 + 3072 * 896 * 3584


def test_a_whole_transfer() -> None:
    """Source: width 16, MLP 64, ten tokens. Target: width 24, MLP 96, seventeen tokens. One block each, embedding 8."""
    source, target = tiny_clip(1, layers=1), tiny_clip(2, layers=1, width=24, image=16)
    found = cost.transfer_cost(source, target, [Signal.INPUT, Signal.OUTPUT_GRAD], samples=5)
    ours, theirs = 4 * 16 * 16 + 2 * 16 * 64, 4 * 24 * 24 + 2 * 24 * 96
    weights = 10 * ours + 16 * 8, 17 * theirs + 24 * 8  # each weight by its tokens; `proj` sees one
    assert found.forward == found.backward == 2 * 5 * sum(weights)
    # eight signals of 16 by 24 (three inputs, five outputs), two of 64 by 96; behind the block 16 by 24 and 8 by 8
    inside = 8 * 16 * 24 + 2 * 64 * 96
    assert found.covariances == 2 * 5 * (17 * inside + 16 * 24 + 8 * 8)
    assert found.decompositions == 2 * (8 * 16**2 * 24 + 2 * 64**2 * 96 + 16**2 * 24 + 8**3)
    square = 16 * 16 * 24 + 16 * 24 * 24
    fc, projection = 64 * 16 * 24 + 64 * 24 * 96, 16 * 64 * 96 + 16 * 96 * 24
    assert found.applying == 4 * square + fc + projection + (8 * 16 * 24 + 8 * 24 * 8)
    assert found.total == sum(vars(found).values())


def test_activations_alone_need_no_backward_pass(source: ClipViT, target: ClipViT) -> None:
    assert cost.transfer_cost(source, target, [Signal.INPUT, Signal.OUTPUT], 5).backward == 0


def test_cost_of_a_transfer_grows_with_the_samples_only_where_it_should(source: ClipViT, target: ClipViT) -> None:
    one, ten = (cost.transfer_cost(source, target, [Signal.INPUT, Signal.OUTPUT_GRAD], n) for n in (1, 10))
    assert (ten.forward, ten.covariances) == (10 * one.forward, 10 * one.covariances)
    assert (ten.decompositions, ten.applying) == (one.decompositions, one.applying)

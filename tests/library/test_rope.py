"""Maps that respect RoPE: they commute with it, q and k share them, and a rotated copy is found exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.adapters.adapter import Adapter
from bico.adapters.carry import Given, carry
from bico.adapters.dense import as_task_vector
from bico.adapters.factors import LowRank
from bico.adapters.names import locate
from bico.calibration.covariances import Batch
from bico.errors import MethodError
from bico.linalg.procrustes import AlignmentMap, procrustes
from bico.linalg.rotary import paired_maps
from bico.methods import Pair, get_method
from bico.models.decoder.decoder import Decoder
from bico.models.decoder.layouts import Heads
from bico.rehoming.in_memory import gather
from tests.tiny import tiny_clip
from tests.tiny_decoder import examples, random_task_vector, rotated_copy, tiny_decoder


def turns(heads: Heads, count: int, position: float) -> Tensor:
    """What RoPE does at a position to the features of so many heads, as a matrix for rows."""
    turn = torch.eye(heads.size, dtype=torch.float64)
    for number, (i, j) in enumerate(heads.pairs):
        angle = torch.tensor(position * 10.0 ** (-number / max(1, len(heads.pairs))), dtype=torch.float64)
        turn[i, i] = turn[j, j] = angle.cos()
        turn[i, j], turn[j, i] = angle.sin(), -angle.sin()
    return torch.block_diag(*[turn] * count)


def solved(generator: torch.Generator, rows: int, columns: int) -> AlignmentMap:
    return procrustes(torch.randn(rows, columns, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("theirs", [Heads(4, 2, 6, 4), Heads(6, 2, 6, 4), Heads(2, 1, 6, 4), Heads(6, 3, 10, 8)])
def test_maps_commute_with_the_turns_and_keep_scores(theirs: Heads) -> None:
    generator, ours = torch.Generator().manual_seed(1), Heads(4, 2, 6, 4)
    free = [
        solved(generator, a * ours.size, b * theirs.size)
        for a, b in ((ours.queries, theirs.queries), (ours.keys, theirs.keys))
    ]
    q, k = paired_maps(*free, ours, theirs)
    for found, count in ((q, min(ours.queries, theirs.queries)), (k, min(ours.keys, theirs.keys))):
        assert_close(found.left.T @ found.left, torch.eye(found.rank, dtype=torch.float64))
        assert_close(found.right.T @ found.right, torch.eye(found.rank, dtype=torch.float64))
        assert found.rank <= count * ours.size
        if ours.pairs == theirs.pairs:
            for position in (1.0, 3.5):
                turned = turns(ours, found.shape[0] // ours.size, position) @ found.matrix
                assert_close(turned, found.matrix @ turns(theirs, found.shape[1] // theirs.size, position))
    # Each head of queries that is served gets the map of the head of keys that serves it.
    size = ours.size, theirs.size
    blocks_k = k.matrix.unflatten(0, (-1, size[0])).unflatten(2, (-1, size[1]))
    blocks_q = q.matrix.unflatten(0, (-1, size[0])).unflatten(2, (-1, size[1]))
    assert any(blocks_q[a, :, b].any() for a in range(ours.queries) for b in range(theirs.queries))
    for a in range(ours.queries):
        for b in range(theirs.queries):
            if (block := blocks_q[a, :, b]).any():
                a_k, b_k = a * ours.keys // ours.queries, b * theirs.keys // theirs.queries
                assert_close(block, blocks_k[a_k, :, b_k])


def test_no_other_angle_agrees_better() -> None:
    generator, heads = torch.Generator().manual_seed(2), Heads(1, 1, 2, 2)
    covariances = [torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    q, k = paired_maps(*map(procrustes, covariances), heads, heads)
    assert_close(q.matrix, k.matrix)
    weighed = sum(c / torch.linalg.svdvals(c).sum() for c in covariances)
    angles = torch.linspace(0, 6.28, 400, dtype=torch.float64)
    rotations = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], 1).view(-1, 2, 2)
    others = torch.einsum("nij,ij->n", rotations, weighed)
    assert float((q.matrix * weighed).sum()) >= float(others.max()) - 1e-9


def adapted(model: Decoder, rank: int = 3) -> Adapter:
    """A LoRA of every linear map that has no fused parameters."""
    generator = torch.Generator().manual_seed(4)

    def update(out: int, into: int) -> LowRank:
        draws = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((rank, into), (out, rank))]
        return LowRank(draws[0], 0.2 * draws[1], 6.0)

    modules = {site.weight.parameter.removesuffix(".weight"): update(*site.shape) for site in model.sites}
    return Adapter("made", modules, {"peft_type": "LORA"})


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def twins(request: pytest.FixtureRequest) -> tuple[Decoder, Decoder]:
    model = tiny_decoder(1, request.param)
    return model, rotated_copy(model, 9)


def batch_of(source: Decoder, target: Decoder, count: int) -> Batch:
    texts = examples(count, 5)
    return Batch(source.prepare(texts), target.prepare(texts), torch.zeros(count))


@pytest.mark.parametrize("count", [60, 3])
def test_an_adapter_keeps_its_function_in_a_rotated_copy_of_its_base(
    twins: tuple[Decoder, Decoder], count: int
) -> None:
    """With samples for all directions by either kind of map; with few, maps of pairs still know q's and k's rotations whole."""
    source, target = twins
    pairs, free = (get_method(f"bico:rank=0:rope={kind}") for kind in ("pairs", "free"))
    evidence = gather(source, target, [batch_of(source, target, count)], (None, None), pairs)
    found = locate(adapted(source), source)
    test = examples(20, 77)
    with source.updated(as_task_vector(found)):
        expected = source.answers(source.prepare(test)).costs
    differences = {}
    for method in (pairs, free):
        made = carry(method, Given(dict, found), source, target, evidence)
        assert {(u.rank, u.alpha) for u in made.adapter.modules.values()} == {(3, 6.0)}
        with target.updated(as_task_vector(locate(made.adapter, target))):
            costs = target.answers(target.prepare(test)).costs
        differences[method.rope] = float((costs - expected).abs().max())
    if count == 60:
        assert max(differences.values()) < 1e-4  # covariances are float32
        return
    # q and k alone: their directions that few gradients span are known by the pairs.
    heads = source.heads
    for site in target.sites:
        if site.role == "q":
            same = next(one for one in source.sites if one.name == site.name)
            q_in, q_out = pairs.maps(same, site, Pair.of(source, target), evidence)
            assert q_in is not None and q_out is not None and q_out.rank == heads.queries * heads.size
            theirs = target.state()[site.weight.parameter].double()
            ours = same.weight.read(source.state())
            assert_close(q_out.matrix.T @ ours.double() @ stream(source, target), theirs, atol=1e-6, rtol=1e-6)


def stream(source: Decoder, target: Decoder) -> Tensor:
    """The rotation of the residual stream, from the embeddings."""
    ends = [model.model.get_input_embeddings().weight.double() for model in (source, target)]
    return torch.linalg.lstsq(ends[0], ends[1]).solution


def test_what_has_no_such_heads_is_refused_and_free_maps_are_as_they_were(tmp_path: Path) -> None:
    method = get_method("bico:rope=pairs")
    clip = tiny_clip(1)
    with pytest.raises(MethodError, match="rope=pairs is for decoders"):
        method.check(Pair.of(clip, clip))
    llama, gpt2 = Heads(4, 2, 4, 4), Heads(4, 4, 4, 0)
    model = tiny_decoder(1)
    pair = replace(Pair.of(model, model), heads=(llama, gpt2))
    with pytest.raises(MethodError, match="learns its positions"):
        method.check(pair)
    # The dense way is the same as the factors'.
    twin = rotated_copy(model, 3)
    evidence = gather(model, twin, [batch_of(model, twin, 20)], (None, None), method)
    tau = random_task_vector(model)
    for name in ("pairs", "free"):
        asked = get_method(f"bico:rope={name}")
        vector = asked.transport(tau, Pair.of(model, twin), evidence)
        for site in twin.sites:
            ours = next(one for one in model.sites if one.name == site.name)
            q_in, q_out = asked.maps(ours, site, Pair.of(model, twin), evidence)
            assert q_in is not None and q_out is not None
            expected = q_out.matrix.T @ ours.weight.read(tau) @ q_in.matrix
            assert_close(site.weight.read(vector), expected, check_dtype=False, atol=1e-5, rtol=1e-4)

"""Models of which one block at a time is in memory: the same numbers as with all of them, and never more than that."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.adapters.carry import find_in
from bico.adapters.dense import Formed, as_task_vector
from bico.adapters.expert import check_near
from bico.calibration.blockwise import covariances_by_block, groups, turns
from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.scales import signal_scales
from bico.calibration.signals import Signal
from bico.errors import CheckpointError, ConfigError
from bico.linalg.sketch import Sketch
from bico.models.decoder.blockwise import BlockwiseDecoder
from bico.models.decoder.decoder import Decoder
from bico.models.loading import load, resolve
from bico.models.protocol import Blockwise, weights_of
from bico.task_vector import norm
from tests.tiny_adapters import save_lora
from tests.tiny_decoder import KINDS, bytes_tokenizer, examples, tiny_decoder, write_decoder

ALL = tuple(Signal)
EXAMPLES = examples(6)


def both(folder: Path) -> tuple[Decoder, BlockwiseDecoder]:
    """A model whole, and the same by block."""
    files = resolve(str(folder))
    return load(files), load(replace(files, blockwise=True))  # type: ignore[return-value]


def batches(source: Decoder, target: Decoder, snapshots: list[int]) -> Iterator[Batch]:
    for part in split_at(len(EXAMPLES), 4, snapshots):
        some = EXAMPLES[part]
        yield Batch(source.prepare(some), target.prepare(some), torch.zeros(len(some)))


def whole_and_by_block(source: Path, target: Path, wanted: Any, snapshots: list[int]) -> tuple[dict, dict]:
    """Covariances by (samples, key), of models in memory and of models by block."""
    (ours, our_blocks), (theirs, their_blocks) = both(source), both(target)
    whole = cross_covariances(ours, theirs, batches(ours, theirs, snapshots), (None, None), wanted, snapshots)
    expected = {(n, key): value for n, found in whole for key, value in found.items()}
    seen: list[int] = []
    given = batches(our_blocks, their_blocks, snapshots)
    streamed = covariances_by_block(
        our_blocks, their_blocks, given, (None, None), wanted, snapshots, on_block=seen.append
    )
    found: dict = {}
    for n, part in streamed:
        assert not {(n, key) for key in part} & found.keys()  # each once
        found |= {(n, key): value for key, value in part.items()}
    assert seen == [*range(1, turns(our_blocks, their_blocks, len([*batches(ours, theirs, snapshots)])) + 1)]
    return expected, found


def save(model: Decoder, folder: Path, **how: Any) -> Path:
    model.model.save_pretrained(folder, **how)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_signals_and_measures_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if kind == "qwen3" else torch.float32
    write_decoder(tmp_path / "a", 1, kind, dtype=dtype)
    write_decoder(tmp_path / "b", 2, kind, dtype=dtype, layers=3, hidden=28)
    expected, found = whole_and_by_block(tmp_path / "a", tmp_path / "b", ALL, [2, 6])
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert float(value.norm()) > 0
        assert_close(found[key], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=str(key))
    whole, by_block = both(tmp_path / "b")
    inputs = whole.prepare(EXAMPLES)
    told, expected_told = by_block.answers(inputs), whole.answers(inputs)
    assert_close(told.costs, expected_told.costs)
    assert_close(by_block.loss(inputs, torch.zeros(6)), whole.loss(inputs, torch.zeros(6)))
    assert_close(by_block.features(inputs), whole.features(inputs))
    assert all(parameter.is_meta for parameter in by_block.model.parameters())  # all is gone again


@pytest.mark.parametrize("layers", [(5, 2), (2, 5), (3, 1)])
def test_depths_and_tokenizers_may_differ_and_wide_layers_are_sketched(layers: tuple[int, int], tmp_path: Path) -> None:
    save(tiny_decoder(1, dtype=torch.float32, layers=layers[0], hidden=40), tmp_path / "a", max_shard_size="6KB")
    other = tiny_decoder(2, "gemma2", bytes_tokenizer(size=85, seed=3), torch.float32, layers=layers[1], hidden=48)
    save(other, tmp_path / "b")
    assert len([*(tmp_path / "a").glob("*.safetensors")]) > 1  # sharded
    wanted = {Signal.INPUT: 2, Signal.OUTPUT_GRAD: 2, Signal.OUTPUT: None}
    expected, found = whole_and_by_block(tmp_path / "a", tmp_path / "b", wanted, [2, 6])
    assert expected.keys() == found.keys()
    kinds = {type(value) for value in found.values()}
    assert kinds == {Sketch, Tensor}
    for key, value in expected.items():
        pairs = [(found[key], value)]
        if isinstance(value, Sketch):
            pairs = [(found[key].range, value.range), (found[key].corange, value.corange)]
        for one, other_one in pairs:
            assert_close(one, other_one, rtol=1e-5, atol=1e-5 * float(other_one.abs().max()), msg=str(key))


def test_one_block_of_each_model_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_decoder(tmp_path / "a", 1, layers=3)
    write_decoder(tmp_path / "b", 2, layers=5, width=24, heads=6, keys=3)
    (_, source), (_, target) = both(tmp_path / "a"), both(tmp_path / "b")
    assert isinstance(source, Blockwise)
    assert [*groups(source, target)] == [(2, [4, 3]), (1, [2, 1]), (0, [0])]
    here: list[tuple[str, int | None]] = []
    most: list[set] = []
    plain = BlockwiseDecoder.here

    @contextmanager
    def noted(self: BlockwiseDecoder, block: int | None) -> Iterator[None]:
        with plain(self, block):
            here.append((self.name, block))
            most.append({*here})
            yield
            here.remove((self.name, block))

    monkeypatch.setattr(BlockwiseDecoder, "here", noted)
    given = batches(source, target, [6])
    for _ in covariances_by_block(source, target, given, (None, None), [Signal.INPUT, Signal.OUTPUT_GRAD], [6]):
        pass
    assert not here
    with_both = [one for one in most if len({name for name, _ in one}) == 2]
    assert with_both and not any(block is None for one in with_both for _, block in one)  # of heads, one at a time
    longest = max(len(members) for _, members in groups(source, target))
    assert max(len(one) for one in with_both) == 1 + longest
    assert max(len(one) for one in most if one not in with_both) == 2  # a block, and what is outside of blocks


def test_scales_are_those_of_the_whole_model(tmp_path: Path) -> None:
    whole, by_block = both(write_decoder(tmp_path / "a", 1, "phi3"))
    inputs = [(whole.prepare(EXAMPLES), torch.zeros(6))]
    ((_, expected),) = signal_scales(whole, inputs, None, [6])
    ((_, found),) = signal_scales(by_block, inputs, None, [6])
    assert expected.keys() == found.keys()
    for key, scale in expected.items():
        assert found[key].rows == scale.rows
        assert found[key].squares == pytest.approx(scale.squares, rel=1e-5)


def test_an_update_is_in_every_block_while_it_is_there(tmp_path: Path) -> None:
    whole, by_block = both(write_decoder(tmp_path / "a", 1, dtype=torch.bfloat16))
    inputs, generator = whole.prepare(EXAMPLES), torch.Generator().manual_seed(0)
    vector = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in whole.state().items()}
    before = by_block.answers(inputs).costs
    with whole.updated(vector, 0.5), by_block.updated(vector, 0.5):
        expected, found = whole.answers(inputs).costs, by_block.answers(inputs).costs
    assert not torch.allclose(before, expected)
    assert_close(found, expected)
    assert_close(by_block.answers(inputs).costs, before)
    for name, tensor in weights_of(by_block).items():
        assert torch.equal(tensor, whole.state()[name])
    with (
        pytest.raises(CheckpointError, match="has a parameter that .* lacks: 'strange'"),
        by_block.updated({"strange": torch.ones(1)}),
    ):
        pass
    with pytest.raises(CheckpointError, match="another architecture"), by_block.updated({name: torch.ones(2)}):
        by_block.answers(inputs)


def test_an_adapter_is_added_block_by_block_and_looked_at_by_one(tmp_path: Path) -> None:
    whole, by_block = both(write_decoder(tmp_path / "a", 1, "phi3"))
    lora = str(save_lora(whole.model, tmp_path / "lora", target_modules="all-linear", lora_alpha=1))
    expected = as_task_vector(find_in(lora, whole, "decoder"))
    found = find_in(lora, by_block, "decoder")
    formed = Formed(found, by_block.state())
    assert {*formed} == {*expected} and len(formed) == 8
    for name, tensor in expected.items():
        assert torch.equal(formed[name], tensor)
    inputs = whole.prepare(EXAMPLES)
    with whole.updated(expected), by_block.updated(formed):
        assert_close(by_block.answers(inputs).costs, whole.answers(inputs).costs)
    first = [name for name in expected if ".layers.0." in name]
    change = norm({n: expected[n] for n in first}) / norm({n: whole.state()[n] for n in first})
    assert check_near(found, by_block, 0.5) == pytest.approx(change)
    with pytest.raises(CheckpointError, match="changes block-0 of .* by .* times the norm of its weights"):
        check_near(found, by_block, 0.9 * change)
    assert "embed" not in Formed(found, ["embed"])


def test_what_cannot_be_read_by_block_is_refused(tmp_path: Path) -> None:
    folder = save(tiny_decoder(1, dtype=torch.float32), tmp_path / "a")
    whole, by_block = both(folder)
    with pytest.raises(ConfigError, match="is read block by block"):
        by_block.instrument()
    inputs = whole.prepare(EXAMPLES)
    state = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}

    def changed(match: str, **tensors: Tensor | None) -> None:
        from safetensors.torch import save_file

        kept = {name: t for name, t in (state | tensors).items() if t is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=match):
            load(replace(resolve(str(folder)), blockwise=True)).answers(inputs)  # type: ignore[attr-defined]

    first = "model.layers.1.mlp.up_proj.weight"
    changed(f"lack {first}", **{first: None})
    changed("holds NaN or infinite", **{first: state[first] * torch.nan})
    changed("is of shape", **{first: state[first][:3]})
    changed("is quantised", **{first: state[first].to(torch.int8)})

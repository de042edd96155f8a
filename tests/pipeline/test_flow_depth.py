"""Sums over blocks and whitened rows in cached stages: artefacts of their own, and the maps that memory gives."""

from pathlib import Path

import pytest
import torch
from prefect.logging import disable_run_logger
from torch.testing import assert_close

import tasks.collect
from bico.calibration.budget import Budget
from bico.calibration.covariances import Batch
from bico.calibration.memory import plan_memory
from bico.calibration.pairing import pairs_beside
from bico.methods import get_method
from bico.models.loading import resolve
from bico.rehoming.in_memory import gather
from tasks.cached_stage import Workspace
from tasks.calibration import Calibration
from tasks.collect import Pass
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tasks.maps import BlockMaps, SignalMaps, StoredMaps
from tasks.procrustes import solve_maps
from tests.flow_setup import Bench
from tests.pipeline.test_flow import BLOCKS, computed

DIGITS = TaskRef("digits")


@pytest.mark.parametrize("method", ["bico:depth=sum", "bico:depth=sum:whiten=0.25"])
def test_stored_maps_are_those_of_one_pass_in_memory(method: str, releases: dict[str, Path], tmp_path: Path) -> None:
    chosen = get_method(method)
    files = [resolve(str(releases[name])) for name in ("wide", "a")]  # from three blocks to two
    calibration = Calibration(*files, DIGITS, (Budget(8, size=8),), seed=0, batch_size=4)
    source, target = (open_model(file, "cpu") for file in files)
    signals = tuple(sorted(chosen.needs.signals))
    one = Pass(calibration, signals, None, signals, bool(chosen.whiten))
    wanted = dict.fromkeys(signals)
    plan = plan_memory(source, target, wanted, 4, 1, None, wanted, one.grams)
    space = Workspace(str(tmp_path / "store"), memory=(plan.peak - 1) / 10**9)  # so that there are several passes
    made = tasks.collect._collect(space, one)
    parts = []
    for group in dict.fromkeys(site.group for site in target.sites):
        sites = [site for site in target.sites if site.group == group]
        for signal in signals:
            others = tuple(key[0] for key in pairs_beside(source.sites, target.sites, sites, [signal]))
            for beside in (False, True) if others else (False,):
                ref = made[one.key(signal, beside)][0]
                found = SignalMaps.of(ref, signal, sites, group, [8], chosen.rule, None, others if beside else ())
                assert found.beside == beside
                parts.append(found)
    with disable_run_logger():
        for part in parts:
            solve_maps.fn(space, BlockMaps(part.group, (part,)))
    stored = StoredMaps(space, parts, Budget(8, size=8))
    splits = [open_split(file, "cpu", DIGITS, "train") for file in files]
    indices = torch.tensor(calibration.indices)
    (ours, labels), (theirs, _) = (split.batch(indices) for split in splits)
    heads = tuple(open_head(file, "cpu", DIGITS) for file in files)
    evidence = gather(source, target, [Batch(ours, theirs, labels)], heads, chosen)
    keys = {(tensor, part.signal) for part in parts for tensor in part.tensors}
    assert keys == evidence.covariances.keys()
    for key in keys:
        mine, other = stored(key, chosen.rule), evidence.map(key, chosen.rule)
        # By what is well determined: rounding of single precision decides the rest.
        kept = min(5, mine.rank, other.rank)
        assert_close(mine.spectrum[:kept], other.spectrum[:kept], atol=1e-6, rtol=1e-3)


def test_keys_of_what_was_collected_before_stay(releases: dict[str, Path]) -> None:
    files = [resolve(str(releases[name])) for name in ("wide", "a")]
    calibration = Calibration(*files, DIGITS, (Budget(8, size=8),), seed=0)
    signals = tuple(get_method("bico").needs.signals)
    plain, more = Pass(calibration, signals, None), Pass(calibration, signals, None, signals, False)
    assert plain.leaves.items() < more.leaves.items() and len(more.leaves) == 2 * len(plain.leaves)
    assert not {*plain.leaves} & {*Pass(calibration, signals, None, signals, True).leaves}
    assert more.only(plain.leaves) == plain


def test_each_adds_stages_of_its_own_and_no_other(bench: Bench) -> None:
    pair = {"source": str(bench.releases["wide"]), "target": str(bench.releases["a"]), "samples": [8], "oracle": False}
    bench.run(**pair, methods=["bico"])
    more = bench.run(
        **pair, methods=["bico", "bico:depth=sum", "bico:strength=effect:depth=sum+search", "bico:whiten=0.25"]
    )
    assert computed(more) == {
        "collect-activations": 2,  # of pairs besides, and with Gram matrices
        "collect-gradients": 2,
        "collect-scales": 2,
        "procrustes": BLOCKS,
        "transfer": 3,
        "last-steps": 1,
        "evaluate": 3,
    }
    alike = {**pair, "source": str(bench.releases["a"]), "target": str(bench.releases["b"])}
    bench.run(**alike, methods=["bico"])
    # Where every block has one counterpart there is nothing more to collect.
    assert computed(bench.run(**alike, methods=["bico:depth=sum"])) == {"transfer": 1, "evaluate": 1}

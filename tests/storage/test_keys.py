import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from bico.errors import StoreError
from bico.linalg.procrustes import MapRule
from storage.artefacts import ArtefactStore, folder_of
from storage.keys import Ref, artefact_key, checked_key, file_digest


class Signal(StrEnum):
    INPUT = "input"


class Kind(Enum):
    PAIR = (1, 2)


@dataclass(frozen=True)
class Near:
    rtol: float
    rank: int = 3


@dataclass(frozen=True)
class Far:
    rtol: float
    rank: int = 3


def key(value: object) -> str:
    return artefact_key("stage", 1, value=value)


def test_key_reads_as_its_stage_and_fits_a_folder_name() -> None:
    stage, _, digest = artefact_key("collect-gradients", 2).rpartition("-")
    assert stage == "collect-gradients"
    assert len(digest) == 24


def test_every_part_counts() -> None:
    keys = [
        artefact_key("a", 1, x=1),
        artefact_key("b", 1, x=1),
        artefact_key("a", 2, x=1),
        artefact_key("a", 1, y=1),
        artefact_key("a", 1, x=2),
        artefact_key("a", 1, x=1, y=None),
    ]
    assert len(set(keys)) == len(keys)


VALUES = [1, 1.0, True, "1", None, [], {}, [1], [[1]], {"a": 1}, {"a": {"b": 1}}, "", 0, False, 1e-300, "é", Near(1e-6)]


def test_values_that_differ_have_keys_that_differ() -> None:
    values = [*VALUES, Near(1e-5), Near(1e-6, 4), Far(1e-6), [1, 2], [2, 1]]
    assert len({key(value) for value in values}) == len(values)


def test_spellings_of_one_value_have_one_key() -> None:
    assert key((1, 2)) == key([1, 2]) == key(Kind.PAIR)
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key(Signal.INPUT) == key("input")
    assert artefact_key("a", 1, x=1, y=2) == artefact_key("a", 1, y=2, x=1)


def test_reference_counts_by_its_key_and_not_by_where_it_lies() -> None:
    assert key(Ref("maps-1", "/here")) == key(Ref("maps-1", "/there")) != key(Ref("maps-2", "/here"))


def test_numpy_float_is_the_float_it_holds() -> None:
    assert key(np.float64(0.1)) == key(0.1)


def test_keys_agree_between_processes() -> None:
    values = [1, 1.0, "é", {"b": [1, None], "a": True}]
    code = (
        "import json, sys; from storage.keys import artefact_key\n"
        "print(json.dumps([artefact_key('stage', 1, value=v) for v in json.loads(sys.argv[1])]))"
    )
    for seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code, json.dumps(values)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(out.stdout) == [key(value) for value in values]


def test_key_is_the_one_it_always_was() -> None:
    # A change here makes every stored artefact a miss: raise no alarm by accident, and never silently.
    assert key({"n": [10, 20], "alpha": 1.0, "to": None}) == "stage-b4f44b452b79eda338dbc44a"


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": math.nan}])
def test_numbers_must_be_finite(value: object) -> None:
    with pytest.raises(ValueError, match="value.* is not finite"):
        key(value)


@pytest.mark.parametrize("value", [Path("a"), [Path("a")], {"x": Path("a")}])
def test_paths_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"value.* is a path.*file_digest"):
        key(value)


@pytest.mark.parametrize("value", [torch.ones(1), np.ones(1), np.int64(1), {1, 2}, object(), Near, b"x", 1j])
def test_values_without_a_stable_spelling_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"value\[0\] is a .* no stable spelling"):
        key([value])


def test_mappings_need_string_keys() -> None:
    with pytest.raises(TypeError, match="value has the key 1, which is not a string"):
        key({1: "a"})


@pytest.mark.parametrize("stage", ["", "../up", "A", "a b", "1a", "a/b"])
def test_stage_must_be_a_name(stage: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        artefact_key(stage, 1)


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\n", "a\0", "x" * 200, "~"])
def test_a_key_never_leads_out_of_the_store(bad: str) -> None:
    with pytest.raises(StoreError, match="is not an artefact key"):
        checked_key(bad)
    with pytest.raises(StoreError, match="is not an artefact key"):
        folder_of(Ref(bad, "/store"))


def test_a_reference_is_data_and_nothing_else() -> None:
    """An attribute that opened a store would read gigabytes where nobody expects it."""
    assert {name for name in dir(Ref("maps-1", "/store")) if not name.startswith("_")} == {"key", "root"}


def test_reference_points_into_the_store(tmp_path: Path) -> None:
    ref, _ = ArtefactStore(tmp_path / "store").get_or_create("maps-1", lambda out: (out / "a").write_text("a") and None)
    assert folder_of(ref) == tmp_path / "store/final/maps-1"
    with pytest.raises(StoreError, match="Artefact maps-2 .* cannot be used"):
        folder_of(Ref("maps-2", ref.root))


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(StoreError, match="Cannot read .*missing"):
        file_digest(tmp_path / "missing")


def test_keys_of_rules_that_whiten_nothing_are_what_they_were() -> None:
    """Of a rule that had two fields when artefacts were stored."""
    made = artefact_key("procrustes", 3, rule={"class": "MapRule", "fields": {"completion": "partial", "rank": 8}})
    assert artefact_key("procrustes", 3, rule=MapRule(rank=8)) == made
    assert artefact_key("procrustes", 3, rule=MapRule(rank=8, whiten=0.5)) != made

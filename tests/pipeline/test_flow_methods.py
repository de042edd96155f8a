"""The thread with every kind of method: each adds only its own stages, and one pass serves all who need the same."""

import json
from pathlib import Path

import pytest

import bico.calibration.parameter_gradients
import tasks.collect
from flows.transfer import transfer
from tests.flow_setup import Bench
from tests.pipeline.test_flow import BLOCKS, computed
from tests.tiny import count_passes


def artefacts(bench: Bench) -> list[str]:
    """Stages of all artefacts in the store."""
    manifests = (bench.folder / "home/store/final").glob("*/MANIFEST.json")
    return [json.loads(path.read_text())["key"].rpartition("-")[0] for path in manifests]


def test_parameter_gradients_are_gathered_once_and_only_for_those_who_need_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = bico.calibration.parameter_gradients.loss_gradients
    monkeypatch.setattr(
        bico.calibration.parameter_gradients,
        "loss_gradients",
        lambda *args: calls.append(len(args[2])) or original(*args),
    )
    first = bench.run(
        methods=["gradfix", "gradfix:mask=force:vote=mean", "few-shot:lr=1e-2"], oracle=False, export="all"
    )
    assert computed(first) == {
        "fine-tune": 1,
        "collect-parameter-gradients": 1,  # no covariances, no maps
        "transfer": 6,
        "evaluate": 8,
    }
    assert calls == [1] * 8  # one pass of single samples serves votes and sums, at both sample counts
    assert artefacts(bench).count("collect-parameter-gradients") == 2
    assert "digits-gradfix-n8-seed0" in first.outputs["models"]
    assert "| GradFix, mask force, vote mean | 8 |" in Path(first.outputs["markdown"]).read_text()
    again = bench.run(methods=["gradfix", "few-shot:lr=1e-2"], oracle=False)
    assert computed(again) == {}
    assert [r.accuracy for r in again.rows if str(r.method) == "gradfix"] == [
        r.accuracy for r in first.rows if str(r.method) == "gradfix"
    ]
    more = bench.run(methods=["gradfix", "few-shot", "transfusion"], oracle=False)
    assert computed(more) == {"transfer": 3, "evaluate": 3}  # another rate at two sample counts; no data for the last
    assert computed(bench.run(methods=["naive", "bico"], oracle=False)) == {
        "collect-activations": 1,
        "collect-gradients": 1,
        "procrustes": BLOCKS,
        "transfer": 3,
        "evaluate": 3,
    }
    assert len(calls) == 8


def test_one_calibration_pass_serves_all_methods_samples_and_completions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: dict[str, int] = {}
    original = tasks.collect._stream

    def stream(*args: object):
        counts = count_passes(monkeypatch)
        yield from original(*args)
        collected.update(counts)

    monkeypatch.setattr(tasks.collect, "_stream", stream)
    methods = ["bico:completion=svd", "bico", "theseus", "input-only", "output-only", "gradient-only"]
    result = bench.run(methods=methods, batch_size=4, oracle=False)
    assert computed(result) == {
        "fine-tune": 1,
        "collect-activations": 1,
        "collect-gradients": 1,
        "procrustes": BLOCKS,
        "transfer": 2 * len(methods),
        "evaluate": 2 + 2 * len(methods),
    }
    assert collected == {"forward": 4, "backward": 4}  # two batches through two models, once
    # One artefact for each distinct signal and completion: four partial, two by plain SVD.
    assert artefacts(bench).count("procrustes") == 6 * BLOCKS
    # The run's own completion is the default of those who do not say.
    assert computed(bench.run(methods=["bico:completion=partial"], completion="svd", oracle=False)) == {}


def test_input_gradients_are_collected_when_a_method_asks_for_them(ran: Bench) -> None:
    keep = ran.settings.model_copy(update={"keep_covariances": True})
    assert not any(name.startswith("collect-") for name in artefacts(ran))
    more = transfer(ran.config(methods=["bico", "gradient-only"], oracle=False), keep)
    assert computed(more) == {"collect-gradients": 1, "procrustes": BLOCKS, "transfer": 2, "evaluate": 2}
    assert artefacts(ran).count("collect-gradients") == 1  # of the inputs alone; those of outputs had served


def test_strengths_share_maps_and_take_one_forward_pass_of_each_model(
    ran: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_passes(monkeypatch)
    more = ran.run(methods=["bico", "bico:strength=effect", "bico:strength=effect+search"], oracle=False)
    # Two sample counts; the search's transport is that of the method alone.
    assert computed(more) == {"collect-scales": 2, "transfer": 2, "last-steps": 2, "evaluate": 4}
    assert passes["backward"] == 0
    assert artefacts(ran).count("collect-scales") == 2
    vectors = {row.method for row in more.rows if row.seed is not None}
    assert {str(method) for method in vectors} == {"bico", "bico:strength=effect", "bico:strength=effect+search"}
    said = Path(more.outputs["markdown"]).read_text()
    assert "| BiCo, strength effect | 8 |" in said
    assert "Strengths found" in said and "- BiCo, strength effect + strength searched, N=8: strength " in said
    assert Path(more.outputs["strengths"]).stat().st_size > 1000


def test_alpha_auto_is_a_search_behind_every_method_that_carries_the_expert(ran: Bench) -> None:
    asked = ran.config(methods=["bico+head", "few-shot", "naive+search"], alpha="auto")
    assert ([*map(str, asked.methods)], asked.alpha) == (["bico+search+head", "few-shot", "naive+search"], 1.0)
    assert [*map(str, ran.config(methods=["bico", "naive"], alpha=0.5).methods)] == ["bico", "naive"]
    result = ran.run(methods=["naive"], samples=[8], alpha="auto", oracle=False, export="all")
    assert {str(row.method) for row in result.rows if row.seed is not None} == {"naive+search"}
    before = artefacts(ran).count("transfer")
    more = ran.run(methods=["naive", "naive+random+search"], samples=[8], alpha="1,2", oracle=False)
    measured = {str(row.method): row.accuracy for row in more.rows}
    assert {"naive", "naive:alpha=2", "naive+random+search"} <= measured.keys()
    assert (
        artefacts(ran).count("transfer") == before
    )  # one vector, whatever its strength and what is searched behind it
    (folder,) = result.outputs["models"].values()
    assert "| searched | strength " in (Path(folder) / "README.md").read_text()

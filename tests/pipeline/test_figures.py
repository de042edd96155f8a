"""Figures as flows: what is measured, what is cached, what is written."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from bico.analysis.panels import PLOTS
from bico.errors import ConfigError
from bico.finetune import FinetuneConfig, finetune
from bico.models.loading import resolve
from flows.figures import FIGURES, GATHER
from storage.checkpoints import load_state
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tests.flow_setup import Bench


@pytest.fixture(scope="module")
def bench(
    api: None, releases: dict[str, Path], scheduler: str, runs_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """One home for all figures: what one has measured, the others find."""
    return Bench(releases, tmp_path_factory.mktemp("figures"), scheduler, runs_database)


def rows(files: dict[str, Path]) -> list[dict[str, str]]:
    return list(csv.DictReader(files["csv"].read_text().splitlines()))


def chosen(table: list[dict[str, str]], **where: str) -> dict[str, float]:
    picked = [row for row in table if all(row[key] == value for key, value in where.items())]
    return {row["tensor"]: float(row["value"]) for row in picked}


def stages(bench: Bench) -> set[str]:
    return {json.loads(path.read_text())["key"] for path in (bench.folder / "home/store/final").glob("*/MANIFEST.json")}


def make(bench: Bench, name: str, **changes: object) -> dict[str, Path]:
    config = bench.config(**{"samples": [8], "methods": ["bico"]} | changes)
    return FIGURES[name]({"pair": config}, bench.settings, bench.folder / "figures").files


def test_every_figure_has_its_plots() -> None:
    assert set(FIGURES) == set(GATHER) == set(PLOTS)


def test_figure_1_of_a_model_and_itself_says_so(bench: Bench) -> None:
    files = make(bench, "figure1", target=str(bench.releases["a"]))
    table = rows(files)
    assert {(row["pair"], row["task"], row["seed"]) for row in table} == {("a → a", "digits", "0")}
    for where in ("before", "before, held out"):
        assert min(chosen(table, quantity="cosine", series=where).values()) == pytest.approx(1, abs=1e-5)
    assert min(chosen(table, quantity="cka", series="after").values()) == pytest.approx(1, abs=1e-4)
    assert len(chosen(table, quantity="cka", series="after")) == 2 * 4 + 1
    assert Image.open(files["png"]).size > (900, 500)
    before = stages(bench)
    again = make(bench, "figure1", target=str(bench.releases["a"]))
    assert rows(again) == table and stages(bench) == before


def test_figure_b_takes_what_figure_1_has_measured(bench: Bench) -> None:
    wide = str(bench.releases["wide"])
    first = make(bench, "figure1", target=wide)
    before = stages(bench)
    second = make(bench, "figureB", target=wide)
    assert stages(bench) == before and rows(second) == rows(first)
    found = chosen(rows(second), quantity="cka", series="before")
    assert len(found) == 3 * 4 + 1 and all(0 < value < 0.99 for value in found.values())
    assert not chosen(rows(second), quantity="cosine", series="before")


def test_figure_2_measures_every_method_and_the_target_as_it_is(bench: Bench) -> None:
    files = make(bench, "figure2", methods=["bico", "theseus", "naive"], samples=[4, 8])
    table = rows(files)
    assert {(row["series"], row["samples"]) for row in table} == {
        ("zero-shot", "0"), ("bico", "8"), ("theseus", "8"), ("naive", "0"),
    }  # fmt: skip
    scores = {name: chosen(table, series=name) for name in ("zero-shot", "bico", "naive")}
    assert all(len(found) == 2 * 6 + 1 and max(found.values()) < 1 for found in scores.values())
    assert scores["zero-shot"] != scores["bico"] != scores["naive"]
    before = stages(bench)
    make(bench, "figure2", methods=["bico"], samples=[4, 8])
    assert stages(bench) == before
    with pytest.raises(ConfigError, match="set oracle to true"):
        make(bench, "figure2", oracle=False)


def test_figure_a_ends_where_fine_tuning_ends(bench: Bench) -> None:
    recipe = {"steps": 8, "batch_size": 8, "lr": 1e-3, "warmup": 1}
    files = make(bench, "figureA", finetune=recipe)
    table = rows(files)
    assert {float(row["at"]) for row in table} == {1, 2, 4, 6, 8}
    for quantity in ("direction", "magnitude"):
        early, late = (chosen(table, quantity=quantity, at=at) for at in ("1", "8"))
        assert len(early) == 2 * 4 + 1
        assert sum(late[tensor] > early[tensor] for tensor in early) >= 7
    # the last checkpoint is what the same fine-tuning gives when nobody looks
    model, digits = resolve(str(bench.releases["a"])), TaskRef("digits")
    data, head = open_split(model, "cpu", digits, "train"), open_head(model, "cpu", digits)
    config = FinetuneConfig(**recipe)
    expert = finetune(open_model(model, "cpu"), data.batch, len(data), head, config)
    (last,) = (bench.folder / "home/store/final").glob("trace-fine-tuning-*/step-8.safetensors")
    assert all(torch.equal(tensor, expert[name]) for name, tensor in load_state(last).items())
    # the first block's input is what lies before every site: embeddings and a LayerNorm, which move too, but little
    assert chosen(table, quantity="direction", at="8")["blocks.0.attn_in"] < 0.1


def test_spectra_tell_rank_and_geometry_at_every_sample_count(bench: Bench) -> None:
    table = rows(make(bench, "spectra", samples=[4, 8]))
    assert {(row["series"], row["samples"]) for row in table} == {
        (signal, n) for signal in ("input", "output_grad") for n in ("4", "8")
    }
    # the last block's gradients reach c_fc by the class token alone: as many directions as samples
    for samples in ("4", "8"):
        ranks = chosen(table, quantity="rank", series="output_grad", samples=samples)
        assert ranks["blocks.1.c_fc"] <= float(samples) < ranks["blocks.0.c_fc"]
    assert max(chosen(table, quantity="length").values()) < 1e-4
    kept = chosen(table, quantity="kept", series="output_grad", samples="8")
    assert kept["blocks.1.c_fc"] == pytest.approx(ranks["blocks.1.c_fc"] / 64, rel=1e-4)


def test_figures_that_need_a_map_ask_for_a_method_that_makes_one(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="aligns inputs by activations"):
        make(bench, "figure1", methods=["naive"])
    with pytest.raises(ConfigError, match="None of naive solves a map"):
        make(bench, "spectra", methods=["naive"])


def test_several_pairs_get_a_row_of_panels_each(bench: Bench) -> None:
    targets = {"same": "b", "wider": "wide"}
    configs = {
        title: bench.config(methods=["bico"], samples=[8], target=str(bench.releases[name]))
        for title, name in targets.items()
    }
    both = FIGURES["figure1"](configs, bench.settings, bench.folder / "both").files
    one = FIGURES["figure1"]({"pair": configs["same"]}, bench.settings, bench.folder / "one").files
    assert {row["pair"] for row in rows(both)} == {"a → b, same", "a → wide, wider"}
    assert [row | {"pair": "a → b"} for row in rows(both) if "same" in row["pair"]] == rows(one)
    assert Image.open(both["png"]).size[1] == 2 * Image.open(one["png"]).size[1]

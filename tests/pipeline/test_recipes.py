"""Recipes: what every file must hold, mistakes in them, and two runs on tiny models."""

import csv
import json
from pathlib import Path

import open_clip
import pytest
import yaml

import flows.claims
import flows.recipes
import flows.reproduce
from benchmarks import real_path
from benchmarks.real_path import Pair
from bico.data.hub import HUB, HubTask
from bico.data.text_hub import TEXT_HUB, TextHubTask
from bico.errors import ConfigError
from bico.linalg.procrustes import Completion
from bico.methods.variant import get_variant
from bico.models.loading import resolve
from bico.reporting.references import EXPERT, FINE_TUNED, ZERO_SHOT
from flows.claims import norms_kept
from flows.figures import Drawn
from flows.recipes import PAPER_TASKS, Recipe, list_recipes, read_recipe
from flows.reproduce import Reproduced, check, find_figure, heading, read_transfers, reproduce, section
from tests.flow_setup import SHORT, Bench
from tests.library.test_hub import rows as picture_rows
from tests.library.test_text_tasks import write as write_text_folder
from tests.pipeline.test_cli import refused, run
from tests.rows import row
from tests.tiny import config as tiny_architecture

MAIN = ["table1", "table3", "table4", "table5"]
WANTED = [*MAIN, *(f"table{letter}" for letter in "ABCDEFGH"), "figure1", "figure2", "figureA", "figureB"]
SUMMARY = {  # averages of the printed values, by (recipe, method, samples)
    ("table1", "bico", 100): 76.54, ("table1", "zero-pad", 0): 53.75, ("table3", "gradfix", 5): 70.83,
    ("table4", "zero-shot", 0): 72.96, ("table5", "gradient-only", 100): 65.55, ("tableA", "bico", 10): 64.07,
    ("tableC", "few-shot", 2): 66.93, ("tableD", "crop", 0): 44.72, ("tableE", "bico", 50): 72.95,
    ("tableF", "bico", 20): 82.99, ("tableG", "bico", 100): 79.90, ("tableH", "theseus", 100): 71.96,
}  # fmt: skip


def test_there_is_one_recipe_per_table_and_figure() -> None:
    assert sorted(list_recipes()) == sorted([*WANTED, "table2"])
    assert list_recipes()[0] == "table1" and list_recipes()[-1] == "figureB"


@pytest.mark.parametrize("name", WANTED)
def test_a_recipe_is_whole(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.sides == ["real", "mini"] and recipe.title and recipe.claim and recipe.note
    real, mini = recipe.configs(mini=False), recipe.configs(mini=True)
    for title in recipe.transfers:
        ours, theirs = mini[title], real[title]
        same = ("methods", "samples", "sampling", "seeds", "oracle", "completion", "alpha")
        assert [getattr(ours, key) for key in same] == [getattr(theirs, key) for key in same]
        assert all(get_variant(method) for method in ours.methods)
        assert theirs.tasks == [f"hub:{task}" for task in PAPER_TASKS["picture"]]
        assert ours.tasks == ["digits", "segments", "lamps"] and ours.test_limit == 500
        assert ours.export == theirs.export == "none"
    assert recipe.left_out(True, []) == ["mnist", "fashion_mnist", "gtsrb", "cifar10"]
    assert (recipe.kind == "figure") == name.startswith("figure") and (not recipe.paper) == name.startswith("figure")
    assert all({"source", "target"} <= set(side) for side in (recipe.real, recipe.mini))
    assert all(resolve(recipe.mini[end]).weights.is_file() for end in ("source", "target"))


def test_a_data_set_more_is_one_entry_and_no_recipe_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: read_recipe(name) for name in WANTED}
    monkeypatch.setitem(HUB, "flowers", HubTask("somebody/flowers", "0" * 40))
    monkeypatch.setitem(TEXT_HUB, "cola", TextHubTask("cola"))
    assert {name: read_recipe(name) for name in WANTED} == before


def test_the_papers_rows_are_those_that_we_make() -> None:
    for name in WANTED:
        recipe = read_recipe(name)
        for title, config in recipe.configs(mini=True).items():
            references = {ZERO_SHOT.spec, FINE_TUNED.spec, EXPERT.spec}
            for method, samples in recipe.paper_rows(title):
                assert method in {*config.methods, *references}, (name, method)
                # Table F repeats rows of table 3.
                assert samples in {0, *config.samples} or name == "tableF", (name, method, samples)


def test_averages_are_recomputed_and_misprints_known() -> None:
    rows = {(name, str(row.method), row.samples): row for name in WANTED for row in read_recipe(name).paper}
    assert {key: rows[key].recomputed for key in SUMMARY} == SUMMARY
    wrong = {key for key, row in rows.items() if row.misprinted}
    assert wrong == {
        ("table4", "zero-shot", 0),
        ("tableH", "zero-shot", 0),
        ("tableH", "theseus", 100),
        ("table1", "theseus", 50),
    }
    assert {key[0] for key, row in rows.items() if row.doubt} == {"table4", "tableG"}


def test_real_pairs_are_published_tags() -> None:
    for name in WANTED:
        for end in ("source", "target"):
            architecture, _, tag = read_recipe(name).real[end].removeprefix("open_clip:").partition("/")
            assert tag in open_clip.list_pretrained_tags_by_model(architecture), (name, end)


GOOD = {
    "title": "a table",
    "shared": {"methods": ["bico"], "samples": [4]},
    "transfers": {"one": {"sampling": "random"}, "two": {"sampling": "per-class"}},
    "mini": {"source": "zoo:mini-a", "target": "zoo:mini-b", "tasks": ["digits", "mnist"]},
    "paper": [{"method": "bico", "samples": 4, "average": 50.0}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(flows.recipes, "REPRODUCE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "recipes/bad.yaml: unknown key 'titel'; did you mean 'title'"),
        ({"shared": {"sample": [4]}}, "recipe bad, mini, one: unknown key 'sample'; did you mean 'samples'"),
        ({"transfers": {"one": {"sampling": "randomly"}}}, "one: sampling='randomly'"),
        ({"paper": [{"method": "bico", "averag": 1}]}, "unknown key 'paper.0.averag'; did you mean 'average'"),
        ({"paper": [{"method": "bico", "average": 1, "transfer": "three"}]}, "no transfer is called 'three'"),
        ({"paper": [{"method": "bico", "average": 1, "values": [1]}]}, "paper.0.values: 1 of 8 tasks"),
        ({"kind": "figure"}, "`figure: NAME` goes with `kind: figure`"),
        ({"mini": None}, "needs `real` or `mini`"),
        ({"transfers": {}}, "transfers"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(change: dict, message: str, folder: Path) -> None:
    (folder / "bad.yaml").write_text(yaml.safe_dump(GOOD | change))
    with pytest.raises(ConfigError) as caught:
        read_recipe("bad").configs(mini=True)
    assert message.replace("recipes/", "reproduce/") in str(caught.value) and "\n" not in str(caught.value)


def test_folders_join_in_miniature_and_are_local_copies_on_the_real_side(tmp_path: Path) -> None:
    recipe = read_recipe("table3")
    folders = [tmp_path / name for name in ("gtsrb", "mine")]
    assert recipe.configs(True, folders)["pair"].tasks == ["digits", "segments", "lamps", "gtsrb", "mine"]
    assert recipe.left_out(True, folders) == ["mnist", "fashion_mnist", "cifar10"]
    assert recipe.configs(False, folders[:1])["pair"].tasks == [f"hub:{task}" for task in PAPER_TASKS["picture"]]
    with pytest.raises(ConfigError, match="mine: table3 has no such task"):
        recipe.configs(False, folders)
    with pytest.raises(ConfigError, match="has no real side: add --mini"):
        Recipe(id="x", **GOOD).configs(mini=False)


def test_the_table_of_language_stands_on_its_own_tasks(tmp_path: Path) -> None:
    recipe = read_recipe("table2")
    real = recipe.configs(mini=False)["pair"]
    assert (real.source, real.target) == ("hf:google-t5/t5-3b", "hf:google-t5/t5-large")
    assert real.tasks == [f"hub:{task}" for task in PAPER_TASKS["text"]] and real.samples == [50, 100, 200]
    assert not any(row.misprinted for row in recipe.paper)
    rows = {(str(row.method), row.samples): row.recomputed for row in recipe.paper}
    assert (rows["bico", 200], rows["theseus", 50], rows["target-probe", 100]) == (76.12, 60.6, 62.3)
    words, colours = write_texts(tmp_path / "trec"), write_pictures(tmp_path / "mine")
    mini = recipe.configs(True, [words, colours])["pair"]
    assert mini.tasks == ["trec"] and read_recipe("table3").configs(True, [words, colours])["pair"].tasks[3:] == [
        "mine"
    ]
    with pytest.raises(ConfigError, match="table2, mini: none of its tasks is at hand; give folders of trec, subj"):
        recipe.configs(True, [colours])


def write_texts(folder: Path) -> Path:
    labels = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    return write_text_folder(folder, labels, {"text": ["Who ?"]}, [3])


def write_pictures(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        picture_rows(["a", "b"], 4).to_parquet(folder / f"{split}.parquet")
    return folder


def test_a_section_of_probes_counts_from_the_target_s_own() -> None:
    recipe = read_recipe("table2")
    found = [("target-probe", 50, 40.0), ("bico", 50, 45.0), ("target-probe", 200, 60.0), ("bico", 200, 62.0)]
    config = recipe.configs(mini=False)["pair"]
    text = section(recipe, "pair", config, [row("trec", m, n, 0, accuracy) for m, n, accuracy in found])
    assert "| average | over target probe | paper | paper, over target probe |" in text
    assert "| BiCo | 50 | 45.0 | 45.0 | +5.0 | 67.02 | +12.32 |" in text
    assert "| BiCo | 200 | 62.0 | 62.0 | +2.0 | 76.12 | +5.02 |" in text
    assert "- N=200: BiCo − target probe = +2.0 points" in text
    assert "test texts" in heading(recipe, True, {"pair": config.model_copy(update={"test_limit": 500})})


def test_an_unknown_figure_is_refused_before_any_work(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="Unknown figure 'figure3': did you mean 'figure"):
        check(tiny(bench, kind="figure", figure="figure3", paper=[]), True, [], bench.settings)
    assert all(find_figure(read_recipe(name).figure) for name in WANTED if name.startswith("figure"))


def test_a_section_sets_rows_beside_the_papers() -> None:
    """Table H on the rows of nobody: the paper's columns, its misprints, and what was not run."""
    recipe = read_recipe("tableH")
    found = [("zero-shot", 0, None, 30.0), ("bico", 100, 0, 50.0), ("bico", 100, 1, 54.0), ("expert", 0, None, 90.0)]
    text = section(recipe, "pair", recipe.configs(True)["pair"], [row("digits", *values) for values in found])
    assert text.startswith("## mini-b → mini-l\n")
    assert "| zero-shot | – | 30.0 | 30.0 |  | 72.96 † |  |" in text
    assert "| BiCo | 100 | 52.0 ± 2.8 | 52.0 ± 2.8 | +22.0 | 83.45 | +10.49 |" in text
    assert "- N=100: BiCo − zero-shot = +22.0 ± 2.8 points" in text
    assert "† The paper prints 70.29 for zero-shot; this is the average of its values." in text
    assert "In the paper only: fine-tuned 94.74; zero-pad 72.97; THESEUS at N=100 71.96." in text
    heads = heading(recipe, True, recipe.configs(True))
    assert "# tableH: deeper and wider" in heads and "at most 500 test pictures" in heads and "seeds 0, 1, 2" in heads
    assert "per class" not in heads
    assert "samples per class (K)" in heading(read_recipe("table3"), True, read_recipe("table3").configs(True))


def tiny(bench: Bench, **changes: object) -> Recipe:
    """Two transfers on tiny models; the real side is a benchmark's data set."""
    pair = {"source": str(bench.releases["a"]), "target": str(bench.releases["b"])}
    values = {
        "id": "tiny",
        "title": "tiny models",
        "claim": "nothing",
        "note": "a test",
        "shared": {"methods": ["bico", "naive"], "samples": [4], "seeds": [0], "finetune": SHORT, "test_limit": 30},
        "transfers": {"both": {}, "alone": {"oracle": False}},
        "real": pair | {"tasks": ["hub:eurosat"]},
        "mini": pair | {"tasks": ["digits", "mnist"]},
        "paper": [
            {"method": "zero-shot", "average": 50.0},
            {"method": "bico", "samples": 4, "average": 61.0, "values": [60.0] * 8, "transfer": "both"},
            {"method": "theseus", "samples": 4, "average": 55.0, "doubt": "a guess"},
        ],
    }
    return Recipe(**values | changes)


@pytest.fixture(scope="module")
def made(
    api: None, releases: dict[str, Path], scheduler: str, runs_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bench, Path, Reproduced]:
    """A bench where `tiny` has been reproduced, the folder of its table, and what it gave."""
    bench = Bench(releases, tmp_path_factory.mktemp("recipes"), scheduler, runs_database)
    out = bench.folder / "tables"
    return bench, out, reproduce(tiny(bench), True, [], bench.settings, out, COMMAND)


COMMAND = "bico reproduce tiny --mini"


def test_a_table_stands_beside_the_papers(made: tuple[Bench, Path, Reproduced]) -> None:
    bench, out, done = made
    assert set(done.rows) == {"both", "alone"}
    # Both transfers share every stage but the oracle's, and the second finds them in the store.
    assert done.stages["cached"] >= done.stages["computed"] - 4
    text = (out / "tiny-mini.md").read_text()
    assert text.rstrip() == done.text.rstrip()
    assert "# tiny: tiny models (miniature)" in text and "Made by `bico reproduce tiny --mini` on 20" in text
    assert "Left out, for want of a folder (`--data`): mnist." in text
    bico = next(row.accuracy for row in done.rows["both"] if str(row.method) == "bico")
    assert f"| BiCo | 4 | {bico:.1f} | {bico:.1f} |" in text and "| 60.00 † | +10.00 |" in text
    assert "† The paper prints 61.00 for BiCo at N=4" in text
    assert "In the paper only: THESEUS at N=4 55.00." in text and "a guess" in text
    rows = list(csv.DictReader((out / "tiny-mini.csv").read_text().splitlines()))
    assert [(r["transfer"], r["method"], float(r["accuracy"])) for r in rows] == [
        (title, str(row.method), row.accuracy) for title, group in done.rows.items() for row in group
    ]
    again = reproduce(tiny(bench), True, [], bench.settings, out, COMMAND)
    assert again.stages["computed"] == 0 and again.rows == done.rows
    json.dumps(again.to_json())


def test_the_real_path_runs_on_local_copies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `benchmarks/real_path.py` does with published architectures, with a tiny one."""
    architecture = bench.folder / "tiny-arch.json"
    architecture.write_text(json.dumps(tiny_architecture(image=16, patch=8) | {"text_cfg": TEXT}))
    open_clip.add_model_config(architecture)
    monkeypatch.setattr(real_path, "SHORT", real_path.SHORT | {"methods": ["bico", "naive"]})
    done, _ = real_path.run(Pair("table3", "tiny-arch", "tiny-arch"), bench.folder, bench.settings)
    assert [(row.task, str(row.method), row.budget.asked) for row in done.rows["pair"]] == [
        ("hub:eurosat", method, 4 if method == "bico" else 0)
        for method in ("zero-shot", "bico", "naive", "fine-tuned", "expert")
    ]
    assert "table3: identical architectures" in (bench.folder / "out" / "table3.md").read_text()


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def test_a_figure_gets_the_transfers_and_a_caption(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def draw(transfers: dict, settings: object, out: Path) -> Drawn:
        asked.update(transfers)
        out.mkdir(parents=True)
        (out / "shape.png").write_bytes(b"")
        return Drawn({"png": out / "shape.png"}, {"computed": 3, "cached": 2})

    monkeypatch.setattr(flows.reproduce, "find_figure", {"shape": draw}.__getitem__)
    recipe = tiny(bench, kind="figure", figure="shape", paper=[])
    done = reproduce(recipe, True, [], bench.settings, tmp_path, COMMAND)
    assert set(asked) == {"both", "alone"} and asked["both"].tasks == ["digits"]
    assert done.outputs["png"] == tmp_path / "tiny-mini" / "shape.png"
    text = (tmp_path / "tiny-mini.md").read_text()
    assert "![tiny models](tiny-mini/shape.png)" in text and "3 stages computed and 2 found in the store" in text


def test_rows_are_read_back_from_the_table_that_was_written(
    made: tuple[Bench, Path, Reproduced], tmp_path: Path
) -> None:
    bench, out, done = made
    recipe = tiny(bench)
    configs = recipe.configs(True, [], bench.folder)
    assert read_transfers(recipe, True, configs, tmp_path) is None
    assert read_transfers(recipe, True, configs, out) == done.rows
    more = reproduce(recipe.with_baselines(), True, [], bench.settings, tmp_path, f"{COMMAND} --baselines")
    assert {str(row.method) for row in more.rows["both"]} > {str(row.method) for row in done.rows["both"]} | {
        "none+head"
    }
    assert "What was best" in more.text and "What was best" not in done.text
    assert read_transfers(recipe, True, configs, tmp_path) == more.rows  # baselines beside the recipe's own are welcome
    fewer = {title: config.model_copy(update={"tasks": []}) for title, config in configs.items()}
    with pytest.raises(ConfigError, match="made with other tasks than the recipe asks for now .digits"):
        read_transfers(recipe, True, fewer, tmp_path)
    (tmp_path / "tiny-mini.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a table that `bico reproduce` wrote"):
        read_transfers(recipe, True, configs, tmp_path)


def test_plain_maps_keep_norms_and_partial_ones_lose_some(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(bench).configs(True, [], bench.folder)["alone"]
    by_place, stages = norms_kept(config, bench.settings, False)
    (kept,) = by_place.values()
    assert kept == pytest.approx(100, abs=1e-3)
    assert stages["computed"] > 0 == stages["cached"]
    monkeypatch.setattr(flows.claims, "PLAIN", Completion.PARTIAL)  # four samples span little
    config = config.model_copy(update={"out": bench.folder / "partial"})
    by_place, stages = norms_kept(config, bench.settings, False)
    (kept,) = by_place.values()
    assert 1 < kept < 99
    assert stages["computed"] > 0 < stages["cached"]  # the other maps and what follows from them


def test_lists_and_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", "--list"], monkeypatch) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list_recipes()
    assert all("real, mini" in line for line in listed)
    assert "did you mean 'table3'" in refused(["reproduce", "tabel3", "--mini"], monkeypatch, capsys)
    assert "Name a recipe" in refused(["reproduce"], monkeypatch, capsys)
    line = refused(["reproduce", "table1", "--mini", "--data", str(tmp_path)], monkeypatch, capsys)
    assert "no train.parquet there" in line

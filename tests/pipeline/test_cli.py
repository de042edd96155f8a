"""The command line as a user meets it: above all, what happens on bad input."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bico.methods.variant import get_variant
from bico.models.clip.family import WEIGHTS
from flows.config import CONFIGS, read_config
from tests.command import refused, run
from tests.flow_setup import SHORT, Bench
from tests.releases import write_release


@pytest.fixture
def base(releases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A transfer that would work; each test spoils it in one way."""
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return [
        "transfer",
        "--source",
        str(releases["a"]),
        "--target",
        str(releases["b"]),
        "--task",
        "digits",
        "--samples",
        "4",
        "--seeds",
        "0",
        "--device",
        "cpu",
    ]


def with_weights(release: Path, folder: Path, **changes: torch.Tensor) -> Path:
    """A checkpoint file like a release's, with some tensors replaced."""
    state = {k: v.float() for k, v in load_file(release / WEIGHTS).items()}
    save_file(state | {k.replace("__", "."): v for k, v in changes.items()}, folder / "expert.safetensors")
    return folder / "expert.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--source", "zoo:mini-q"], ["'mini-q'", "did you mean"]),
        (["--target", "no/such/folder"], ["no/such/folder", "open_clip_config.json"]),
        (["--task", "digit"], ["unknown task 'digit'", "did you mean 'digits'"]),
        (["--methods", "bico,theseuss"], ["unknown method 'theseuss'", "did you mean 'theseus'"]),
        (["--methods", "bico:complet=svd"], ["no setting 'complet'", "did you mean 'completion'"]),
        (["--methods", "gradfix:mask=soft"], ["mask='soft'", "force, normal"]),
        (["--samples", "4,5000"], ["5000 calibration samples", "1297", "lower --samples"]),
        (["--samples", "four"], ["--samples four", "whole numbers"]),
        (["--samples", "0"], ["samples", "0 labels", "--unlabelled"]),
        (["--completion", "full"], ["completion", "'partial' or 'svd'"]),
        (["--expert", "nowhere.safetensors"], ["nowhere.safetensors", "no such file", "check the path"]),
        (["--alpha", "nan"], ["alpha=nan", "finite"]),
        (["--alpha", "much"], ["alpha='much'", "valid number"]),
        (["--data", "."], ["train.parquet"]),
        (["--device", "cuda"], ["no usable CUDA device"]),
        (["--export", "some"], ["export", "'best', 'all' or 'none'"]),
        (["--workers", "two"], ["'--workers'", "valid integer"]),
        (["--sampels", "4"], ["No such option: --sampels", "--samples"]),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_thing_and_the_cure(
    change: list[str],
    words: list[str],
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change == ["--device", "cuda"] and torch.cuda.is_available():
        change, words = ["--device", "tpu"], ["device"]
    if change == ["--data", "."]:
        change = [*change, "--task", tmp_path.name]
    line = refused([*base, *change], monkeypatch, capsys)
    assert all(word.lower() in line.lower() for word in words), line
    assert not list(tmp_path.glob("out/*"))  # nothing half-written


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("naive", "naive needs two models of one architecture, but visual.class_embedding is (16,) in the source"),
        ("gradfix", "gradfix needs two models of one architecture"),
        ("transfusion", "transfusion needs two models of one architecture"),
        ("input-only", "input-only leaves the output side as it is, but blocks.0.q has 24 output features"),
    ],
)
def test_methods_that_cannot_serve_the_pair_are_refused_before_any_work(
    method: str,
    words: str,
    base: list[str],
    releases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused([*base, "--target", str(releases["wide"]), "--methods", f"bico,{method}"], monkeypatch, capsys)
    assert words in line and "(bico, theseus)" in line
    assert not list(tmp_path.glob("home/store/final/*"))


def test_an_expert_that_does_not_fit_is_refused(
    base: list[str],
    releases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = with_weights(releases["wide"], tmp_path)
    assert "another architecture" in refused([*base, "--expert", str(other)], monkeypatch, capsys)
    broken = with_weights(releases["a"], tmp_path)
    broken.write_bytes(broken.read_bytes()[:2000])
    assert "damaged" in refused([*base, "--expert", str(broken)], monkeypatch, capsys)
    sick = with_weights(releases["a"], tmp_path, visual__proj=torch.full((16, 8), torch.inf))
    assert "visual.proj" in refused([*base, "--expert", str(sick)], monkeypatch, capsys)
    assert "itself, not an expert of it" in refused([*base, "--expert", str(releases["a"])], monkeypatch, capsys)
    far = with_weights(releases["a"], tmp_path, visual__proj=torch.full((16, 8), 9.0))
    assert "raise --expert-farthest" in refused([*base, "--expert", str(far)], monkeypatch, capsys)
    two = refused(
        [*base, "--expert", str(with_weights(releases["a"], tmp_path)), "--task", "digits,segments"],
        monkeypatch,
        capsys,
    )
    assert "an expert for one task" in two


def test_a_model_of_the_wrong_image_size_is_refused(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "odd", seed=3)
    config = json.loads((release / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 20
    (release / "open_clip_config.json").write_text(json.dumps(config))
    assert "another image size" in refused([*base, "--target", str(release)], monkeypatch, capsys)


def test_output_that_cannot_be_written_is_refused(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "Cannot write to" in refused([*base, "--out", str(tmp_path / "file" / "below")], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: x\ntarget: y\ntasks: [digits]\nmethod: [bico]\n", ["unknown key 'method'", "did you mean 'methods'"]),
        (
            "source: x\ntarget: y\ntasks: [digits]\nfinetune: {step: 3}\n",
            ["unknown key 'finetune.step'", "did you mean 'steps'"],
        ),
        ("source: x\ntasks: [digits]\n", ["'target' is missing"]),
        ("source: [", ["cannot be read as YAML"]),
        ("- a\n", ["holds no settings"]),
        ("source: x\ntarget: y\ntasks: [digits]\nfinetune: {steps: 0}\n", ["finetune", "steps >= 1"]),
    ],
)
def test_a_config_file_with_a_mistake_is_refused(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    line = refused(["transfer", "--config", str(tmp_path / "c.yaml")], monkeypatch, capsys)
    assert all(word in line for word in ["c.yaml", *words]), line


def test_finetune_then_evaluate(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An expert made by `bico finetune` measures the same when `bico evaluate` reads it back."""
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    model, expert = str(bench.releases["a"]), str(tmp_path / "expert.safetensors")
    steps = [part for key, value in SHORT.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    assert run(["finetune", model, "--task", "digits", "--out", expert, *steps, "--json"], monkeypatch) == 0
    made = json.loads(capsys.readouterr().out)
    assert run(["evaluate", model, "--task", "digits", "--expert", expert, "--json"], monkeypatch) == 0
    measured = json.loads(capsys.readouterr().out)
    assert made["rows"] == measured["rows"] and 0 <= made["rows"][0]["accuracy"] <= 100
    assert os.path.getsize(expert) > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "MODEL", "--task", "digit", "--out", "e.safetensors"], ["'digit'", "did you mean 'digits'"]),
        (["finetune", "MODEL", "--task", "digits", "--out", "e.safetensors", "--steps", "0"], ["steps >= 1"]),
        (["finetune", "MODEL", "--task", "digits", "--out", "."], ["is a folder", ".safetensors"]),
        (["finetune", "MODEL", "--task", "digits"], ["Missing option '--out'"]),
        (["evaluate", "MODEL", "--task", ","], ["names no task"]),
        (["evaluate", "zoo:mini-q", "--task", "digits"], ["'mini-q'", "did you mean"]),
        (["evaluate", "MODEL", "--task", "digits", "--expert", "nowhere.safetensors"], ["nowhere.safetensors"]),
    ],
)
def test_mistakes_in_finetune_and_evaluate_end_in_one_line_before_a_flow_starts(
    arguments: list[str],
    words: list[str],
    releases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_server() -> None:
        raise AssertionError("a flow was about to start")

    monkeypatch.setattr("flows.services.server.prefect_api", no_server)
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    line = refused([part.replace("MODEL", str(releases["a"])) for part in arguments], monkeypatch, capsys)
    assert all(word in line for word in words), line


def test_the_zoo_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "list"], monkeypatch) == 0
    listed = capsys.readouterr().out
    assert {"zoo:mini-a", "zoo:mini-b"} <= set(listed.split())


@pytest.mark.parametrize("path", [CONFIGS / "demo.yaml", CONFIGS / "language.yaml"], ids=lambda path: path.stem)
def test_transfers_that_are_kept_as_files_are_valid(path: Path) -> None:
    config = read_config(path, {})
    assert all(get_variant(method) for method in config.methods)
    assert config.source.startswith("zoo:") and config.target.startswith("zoo:")


def test_versions_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == [f"bico {version('bico')}", f"torch {version('torch')}"]


@pytest.mark.parametrize(
    ("flags", "hidden", "missing"), [(["-S"], "", "typer"), ([], "prefect", "prefect")], ids=["bare", "no prefect"]
)
def test_without_the_pipeline_extra_one_line_says_what_to_install(
    flags: list[str], hidden: str, missing: str, tmp_path: Path
) -> None:
    """`-S` leaves Python without any package that was installed."""
    code = f"import sys; sys.modules[{hidden!r}] = None; from flows.__main__ import main; main()"
    arguments = ["demo", "--home", str(tmp_path / "home"), "--out", str(tmp_path / "out")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {missing} is not installed: the command line needs `pip install 'bico[pipeline]'`."
    ]

"""What people have around the command: home folders, proxies, terminals, and names with signs of their own."""

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.request import proxy_bypass

import httpx
import pytest

from bico.errors import CalibrationError, ConfigError
from flows.commands import surroundings
from flows.commands.console import is_news
from flows.commands.options import expanded, whole_names
from flows.config import TransferConfig, make_config, read_config
from flows.ledger import Ledger
from flows.release_watch import WatchConfig
from flows.settings import Settings

BASE = {"source": "x", "target": "y", "tasks": ["digits"]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and none of the variables that this is about."""
    for name in [*surroundings.FOLDERS, *surroundings.PROXIES, "no_proxy", "BICO_HOME"]:
        for spelt in (name, name.upper()):
            monkeypatch.setenv(spelt, "")  # so that what is set by the test goes with it
            monkeypatch.delenv(spelt)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder_in_every_path(home: Path) -> None:
    (home / "run.yaml").write_text(
        "source: x\ntarget: y\ntasks: [digits]\ndata: [~/a, ~/b]\nexpert: ~/e.pt\nexpert_head: ~/h.pt\nout: ~/o\n"
    )
    found = read_config(home / "run.yaml", {})
    assert (found.data, found.expert, found.expert_head, found.out) == (
        [home / "a", home / "b"], home / "e.pt", home / "h.pt", home / "o"
    )  # fmt: skip
    settings = Settings.from_environment(home="~/kept")
    assert (settings.home, settings.store) == (home / "kept", str(home / "kept/store"))
    assert Settings.from_environment(store="~/s").store == str(home / "s")
    assert WatchConfig(releases="x", experts={"a": {}}, out="~/r").out == home / "r"
    assert expanded([Path("~/x"), "~/y"]) == [home / "x", "~/y"] and expanded(None) is None
    with pytest.raises(ConfigError, match="without ~"):
        make_config(BASE | {"out": "~nobody-of-that-name/x"}, "bico transfer")


def test_loopback_is_reached_past_a_proxy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    surroundings.prepare()
    assert all(proxy_bypass(host) for host in ("127.0.0.1", "localhost", "intern.example"))
    client = httpx.Client()
    for url, proxied in (
        ("http://127.0.0.1:4200/api", False),
        ("http://localhost:1", False),
        ("http://far.example", True),
    ):
        transport = client._transport_for_url(httpx.URL(url))
        assert (transport is not client._transport) is proxied, url


def test_a_socks_proxy_that_nothing_can_speak_to_is_left_aside_with_a_word(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr(surroundings.importlib.util, "find_spec", lambda name: None)
    surroundings.prepare()
    httpx.Client()
    assert "ALL_PROXY names a SOCKS proxy" in capsys.readouterr().err


def test_without_a_proxy_nothing_is_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings.prepare()
    assert "NO_PROXY" not in surroundings.os.environ and "PREFECT_HOME" not in surroundings.os.environ


def test_a_home_that_cannot_be_written_is_not_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "is_writable", lambda folder: not folder.is_relative_to(home))
    monkeypatch.setenv("BICO_HOME", str(home.parent / "bico"))
    monkeypatch.setenv("HF_HOME", "set/by/the/user")
    surroundings.leave_read_only_home()
    found = surroundings.os.environ
    assert found["PREFECT_HOME"] == str(home.parent / "bico/prefect") and found["HF_HOME"] == "set/by/the/user"
    assert Path(found["PREFECT_HOME"]).is_dir()  # Prefect makes no parents


def test_a_folder_is_writable_if_it_can_be_made(tmp_path: Path) -> None:
    assert surroundings.is_writable(tmp_path / "not/there/yet")
    (tmp_path / "file").touch()
    assert not surroundings.is_writable(tmp_path / "file/below")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_of_few_characters_gets_plain_ones(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    surroundings.write_what_can_be_written(stream)
    print("BiCo 51.0 ± 1.4, a → b, − 3, ‖α τ‖, é 漢", file=stream, flush=True)
    text = stream.buffer.getvalue().decode(encoding)
    assert "a -> b, - 3, ||alpha tau||" in text and text.endswith("?\n")
    assert ("51.0 +- 1.4" in text) is (encoding == "ascii")


def test_a_terminal_of_all_characters_is_left_alone() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    surroundings.write_what_can_be_written(stream, object())
    assert stream.errors == "strict"


def test_names_may_have_commas() -> None:
    assert whole_names(["a", "b", "c"], ["b,c", "x"]) == ["a", "b,c"]
    assert whole_names(["a", "b"], ["a,b,c"]) == ["a", "b"] and whole_names([], ["a,b"]) == []


def test_names_may_have_braces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect takes the name of a task's run for a template."""

    class Named:
        name = "evaluate"

        def with_options(self, **options: str) -> None:
            seen.append(options["task_run_name"].format())

    seen: list[str] = []
    monkeypatch.setattr("flows.ledger.get_run_logger", lambda: logging.getLogger("x"))
    monkeypatch.setattr("flows.ledger.result_of", lambda task: SimpleNamespace(cached=True))
    monkeypatch.setattr(Ledger, "add", lambda self, done: done)
    Ledger().run(Named(), label="{a}/bico/N=4")
    assert seen == ["evaluate {a}/bico/N=4"]


@pytest.mark.parametrize(
    "change",
    [
        {"samples": [-1]}, {"samples": [10**12]}, {"seeds": [-1]}, {"seeds": [2**63]}, {"unlabelled": -5},
        {"batch_size": 10**30}, {"test_limit": 0}, {"finetune": {"lr": float("nan")}}, {"finetune": {"lr": float("inf")}},
        {"finetune": {"steps": 0}}, {"finetune": {"batch_size": 0}}, {"finetune": {"seed": -1}},
        {"finetune": {"weight_decay": float("nan")}}, {"finetune": {"seed": 2**64}},
    ],
)  # fmt: skip
def test_numbers_out_of_range_end_in_one_line(change: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(BASE | change, "bico transfer")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("bico transfer: ")


@pytest.mark.parametrize("change", [{"workers": 0}, {"workers": -1}, {"memory": "nan"}, {"memory": "inf"},
                                    {"stage_timeout": "inf"}, {"stage_timeout": 0}, {"home": "a?b"}, {"home": "a#b"}])  # fmt: skip
def test_settings_out_of_range_end_in_one_line(change: dict) -> None:
    with pytest.raises(ConfigError, match=f"^settings: {next(iter(change))}=") as caught:
        Settings.from_environment(**change)
    assert "\n" not in str(caught.value)


def test_what_is_in_range_stays() -> None:
    assert TransferConfig(**BASE, seeds=[2**63 - 1], samples=[1]).seeds == [2**63 - 1]


def failed(error: Exception, message: str = "Encountered an exception") -> logging.LogRecord:
    try:
        raise error
    except type(error):
        return logging.LogRecord("prefect.flow_runs", logging.ERROR, "f", 1, message, (), sys.exc_info())


def test_a_typed_error_is_told_once_without_a_traceback() -> None:
    ended = "Finished in state Failed('Flow run encountered an exception: CalibrationError: diverged')"
    assert not is_news(failed(CalibrationError("diverged")))
    assert not is_news(logging.LogRecord("x", logging.ERROR, "f", 1, ended, (), None))
    assert is_news(failed(ValueError("a fault of ours"))) and is_news(failed(OSError("no space")))
    assert is_news(logging.LogRecord("x", logging.ERROR, "f", 1, "Finished in state Failed('KeyError: 3')", (), None))
    assert is_news(logging.LogRecord("x", logging.WARNING, "f", 1, "CalibrationError: near", (), None))

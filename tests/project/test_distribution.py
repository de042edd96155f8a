"""Tests are spread over processes so that what takes long to start is started once in each."""

import pytest

from tests.distribution import check_shared, group, rank


def test_files_that_want_a_service_are_together_and_come_first() -> None:
    flows = [f"tests/pipeline/{name}.py" for name in ("test_recipes", "test_figures", "a_new_file")]
    assert {group(place) for place in [*flows, "tests/zoo_build/test_pretrain_text.py"]} == {"flows-3"}
    assert group("tests/pipeline/test_flow.py") == group("tests/pipeline/test_cli.py") == "flows-1"
    assert group("bico/linalg/ridge.py") == "bico/linalg/ridge.py"
    assert rank("tests/pipeline/test_flow.py") < rank(flows[0]) < rank("tests/library/test_ridge.py")


def test_a_service_for_one_file_alone_is_refused() -> None:
    check_shared("tests/pipeline/test_recipes.py", ["api"])
    check_shared("tests/library/test_ridge.py", ["source"])
    with pytest.raises(pytest.UsageError, match="tests/library/test_ridge.py wants api: name the file in"):
        check_shared("tests/library/test_ridge.py", ["api", "tmp_path"])


def test_the_tests_of_a_group_run_in_one_process(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> None:
    """pytest-xdist's own groups were ignored without a word once: this asks it."""
    if not request.config.pluginmanager.has_plugin("xdist"):
        pytest.skip("without pytest-xdist there is one process")
    pytester.makeconftest(
        "from tests.distribution import scheduling\n"
        "def pytest_xdist_make_scheduler(config, log): return scheduling(config, log)"
    )
    one = "import os, time\ndef test_{n}(): time.sleep(0.2); open(r'{place}', 'a').write(os.environ['PYTEST_XDIST_WORKER'] + ' ')\n"
    for name in ("pipeline/test_figures", "pipeline/test_recipes", "pipeline/test_flow"):
        pytester.path.joinpath("pipeline").mkdir(exist_ok=True)
        text = "".join(one.format(n=n, place=pytester.path / name.rpartition("/")[2]) for n in range(3))
        pytester.path.joinpath(f"{name}.py").write_text(text)
    pytester.runpytest("-n", "2", "--dist", "loadscope").assert_outcomes(passed=9)
    ran = {
        name: set((pytester.path / name).read_text().split()) for name in ("test_figures", "test_recipes", "test_flow")
    }
    assert ran["test_figures"] == ran["test_recipes"] != ran["test_flow"] and len(ran["test_flow"]) == 1


def test_what_a_test_costs_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import time\n"
        "def test_idle(): time.sleep(0.3)\n"
        "def test_busy():\n"
        "    begun = time.process_time()\n"
        "    while time.process_time() < begun + 0.3: pass\n"
    )
    done = pytester.runpytest("-p", "tests.cpu_seconds")
    done.assert_outcomes(passed=2)
    told = [line.split() for line in done.outlines if "::test_" in line]
    assert told[0][1].endswith("test_busy") and float(told[0][0]) >= 0.3 > float(told[1][0])

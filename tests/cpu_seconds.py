"""Which tests take the processor's time, what they start included: `pytest -p tests.cpu_seconds`, in any number of processes.

Seconds by the clock say little where several processes share two cores, and wait for servers; these add up to what a suite costs.
"""

import resource
from collections import Counter
from collections.abc import Iterator

import pytest

SHOWN = 40
NAME = "cpu seconds"


def used() -> float:
    """Of this process and of those that it has started and seen end, in seconds."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.user_properties.append((NAME, used()))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """With what was set up for it and is shared: that counts for the test that was first."""
    try:
        return (yield)
    finally:
        (begun,) = (value for name, value in item.user_properties if name == NAME)
        item.user_properties[:] = [(NAME, used() - float(str(begun)))]


class Told:
    """Adds up, in the process that prints, what all processes report."""

    def __init__(self) -> None:
        self.tests: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.tests[report.nodeid] += sum(float(str(v)) for name, v in report.user_properties if name == NAME)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The files, and the tests, that took most."""
        files: Counter[str] = Counter()
        for test, seconds in self.tests.items():
            files[test.partition("::")[0]] += seconds
        for title, found in (("files", files), ("tests", self.tests)):
            terminalreporter.section(f"{title} by CPU seconds, of {sum(self.tests.values()):.0f} in all")
            for name, seconds in found.most_common(SHOWN):
                terminalreporter.write_line(f"{seconds:8.2f}  {name}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Told())

"""What the tests of the project as a whole need to be told."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "types: runs mypy, a minute or two the first time")

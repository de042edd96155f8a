"""The package's own shape: who imports whom inside `storage`."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import storage

FOLDER = Path(storage.__file__).parent


def imports_of(source: str, modules: set[str]) -> set[str]:
    """The modules of `storage` that a source imports, anywhere in it: in functions and properties too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [".".join(filter(None, ("storage", node.module, alias.name))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {parts[1] for name in names if (parts := name.split("."))[0] == "storage" and len(parts) > 1}
    return found & modules


def graph() -> dict[str, set[str]]:
    sources = {path.stem: path.read_text() for path in FOLDER.glob("*.py") if path.name != "__init__.py"}
    return {name: imports_of(source, set(sources)) for name, source in sources.items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    found = graph()
    assert {"keys", "manifest"} <= found["artefacts"]  # the graph is seen at all
    assert "bucket" in found["artefacts"]  # an import inside a function too
    try:
        order = list(TopologicalSorter(found).static_order())
    except CycleError as error:
        pytest.fail(f"storage imports in a circle: {' <- '.join(error.args[1])}")
    assert set(order) == set(found)


@pytest.mark.parametrize(
    "source",
    [
        "from storage.keys import Ref",
        "from storage import keys",
        "import storage.keys",
        "from .keys import Ref",
        "from . import keys",
        "def f():\n    from storage.keys import Ref",
        "class A:\n    @property\n    def path(self):\n        import storage.keys as k",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    assert imports_of(source, {"keys", "bucket"}) == {"keys"}

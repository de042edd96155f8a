"""Every notebook runs from top to bottom at toy size; its last cell asserts what it claims."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One kernel, of this very Python, for all notebooks: importing torch takes longer than any of them."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT), env=os.environ | {"BICO_NOTEBOOK_SIZE": "toy", "PYTHONPATH": str(ROOT)})
    yield manager
    manager.shutdown_kernel(now=True)


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_toy_size(path: Path, kernel: KernelManager) -> None:
    book = nbformat.read(path, as_version=4)
    # Forget the neighbour's names: each notebook must stand alone.
    book.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(book, km=kernel, timeout=120)
    client.execute(cleanup_kc=False, reset_kc=True)  # the kernel is the next notebook's, too
    client.kc.stop_channels()
    printed = "".join(o.get("text", "") for cell in book.cells for o in cell.get("outputs", []))
    pictures = [o for cell in book.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert printed and pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_expects_first_and_ends_on_an_assert(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith("# ") and cells[0].source.splitlines()[0].endswith("?")
    assert "**Expectation.**" in cells[0].source
    assert any("BICO_NOTEBOOK_SIZE" in source for source in code(path))
    assert "assert" in code(path)[-1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_what_it_printed_and_no_warnings_of_one_machine(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}


def test_the_documents_list_every_notebook_with_the_question_it_asks() -> None:
    listed = dict(
        re.findall(r"^\| `([\w-]+)` \| (.+\?) \|$", (ROOT / "docs" / "analyses.md").read_text(), re.MULTILINE)
    )
    asked = {path.stem: nbformat.read(path, as_version=4).cells[0].source.splitlines()[0] for path in NOTEBOOKS}
    assert listed and asked == {name: f"# {question}" for name, question in listed.items()}

"""The quickstart notebook runs from top to bottom, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from site_notebook import executed, to_page

DOCS = Path(__file__).parent.parent.parent / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def notebook(*cells: Any) -> Any:
    return nbformat.v4.new_notebook(cells=list(cells))


def text_of(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_is_stored_without_outputs(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_quickstart_runs() -> None:
    before = sorted(DOCS.iterdir())
    ran = executed(DOCS / "quickstart.ipynb")
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    page, pictures = to_page(ran, "quickstart")
    assert len(pictures) == 1
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert "t=4   gae  5.2000   by hand  5.2000" in page  # 5 + 0.9 * 3 - 2.5
    assert sorted(DOCS.iterdir()) == before


def test_a_cell_that_raises_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.ipynb"
    nbformat.write(notebook(nbformat.v4.new_code_cell("1 / 0")), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(path, seconds=60)


def test_cells_become_a_page() -> None:
    cell = nbformat.v4.new_code_cell("f(1)")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="\x1b[31mone\x1b[0m\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("display_data", data={"image/png": "iVBORw0=", "text/plain": "x"}),
        nbformat.v4.new_output("execute_result", data={"text/plain": "2"}),
    ]
    page, pictures = to_page(notebook(nbformat.v4.new_markdown_cell("# T"), cell), "n")
    assert page == (
        "# T\n\n```python\nf(1)\n```\n\n```text\none\n```\n\n"
        "![What the cell above draws](n-1.png)\n\n```text\n2\n```\n"
    )
    assert list(pictures) == ["n-1.png"]

"""The quickstart is executed for real, as a reader would run it, and is saved with the outputs of such a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.payloads import Page

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "quickstart.ipynb"


def executed(folder: Path) -> Any:
    book = nbformat.read(NOTEBOOK, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(book, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return book


def pages(book: Any) -> list[str]:
    """Give the text of what each magic cell shows."""
    return [
        "".join(Page(output["data"]["text/html"]).text for output in cell.outputs if "text/html" in output.get("data", {}))
        for cell in book.cells
        if cell.cell_type == "code" and cell.source.startswith("%%rlm")
    ]


@pytest.mark.timeout(180)
def test_the_quickstart_runs_and_answers(tmp_path: Path) -> None:
    book = executed(tmp_path)
    first, second = pages(book)
    assert "json/decoder.py:" in first
    assert "class JSONDecodeError(ValueError):" in first
    assert "http/client.py:" in second
    assert "HTTPS_PORT = 443" in second
    assert all("Answered" in page for page in (first, second))
    assert all(output.output_type != "error" for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)


def test_the_quickstart_is_saved_with_outputs_of_a_real_run() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    first, second = pages(book)
    assert "json/decoder.py:" in first
    assert "HTTPS_PORT = 443" in second
    for cell in code:
        written = json.dumps(cell.outputs)
        assert len(written.encode()) < 256 * 1024
        assert "widget-view" not in written
        assert not any(home in written for home in ("/home/", "/root/", "/Users/", "/tmp/"))

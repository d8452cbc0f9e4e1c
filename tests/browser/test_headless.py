"""Notebooks without a front end: nbclient, papermill and nbconvert run them to the same static result, also as a PDF."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbconvert
import nbformat
import papermill
import pypdf
import pytest

from rlm_jupyter.widgets import html
from tests import facts
from tests.browser.lab import Browser, notebook, output_cell
from tests.browser.test_agreement import run
from tests.facts import Facts
from tests.runs import ANSWER

SOURCES = (
    "%load_ext rlm_jupyter",
    "notes = {'a.txt': 'The total is 41.\\n', 'b.txt': 'Nothing here.\\n' * 50}",
    "%%rlm --context notes --model demo --no-trace\nWhich line holds the total?",
)
NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"


def by_nbclient(source: Path, folder: Path) -> Any:
    book = nbformat.read(source, as_version=4)
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return book


def by_papermill(source: Path, folder: Path) -> Any:
    target = folder / "papermill.ipynb"
    papermill.execute_notebook(source, target, kernel_name="python3", cwd=str(folder), progress_bar=False, log_output=False)
    return nbformat.read(target, as_version=4)


def by_nbconvert(source: Path, folder: Path) -> Any:
    command = [
        sys.executable,
        "-m",
        "nbconvert",
        "--execute",
        "--to",
        "notebook",
        "--output",
        "nbconvert.ipynb",
        "--output-dir",
    ]
    subprocess.run([*command, str(folder), str(source)], check=True, timeout=170, capture_output=True)
    return nbformat.read(folder / "nbconvert.ipynb", as_version=4)


def results(book: Any) -> list[Facts]:
    """Give the facts of each run of a notebook, without what it took, which differs from time to time."""
    found = []
    for cell in book.cells:
        if cell.cell_type == "code" and cell.source.startswith("%%rlm"):
            pages = [output["data"]["text/html"] for output in cell.outputs if "text/html" in output.get("data", {})]
            assert not any("widget-view" in str(output) for output in cell.outputs)
            read = facts.at_rest("".join(pages))
            found.append(dataclasses.replace(read, totals={"tokens": read.totals["tokens"], "cost": read.totals["cost"]}))
    return found


def runs_alike(source: Path, folder: Path) -> list[Facts]:
    first, *others = [results(run_by(source, folder)) for run_by in (by_nbclient, by_papermill, by_nbconvert)]
    assert first == others[0] == others[1]
    return first


@pytest.mark.timeout(240)
def test_nbclient_papermill_and_nbconvert_give_the_same_static_result(tmp_path: Path) -> None:
    source = tmp_path / "small.ipynb"
    source.write_text(notebook([nbformat.v4.new_code_cell(text) for text in SOURCES]), encoding="utf-8")
    (found,) = runs_alike(source, tmp_path)
    assert found.status == "Answered"
    assert "The total is 41." in found.answer
    assert found.codes
    assert found.calls


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_the_quickstart_runs_alike_by_all_three(tmp_path: Path) -> None:
    first, second = runs_alike(NOTEBOOKS / "quickstart.ipynb", tmp_path)
    assert "json/decoder.py:" in first.answer
    assert "HTTPS_PORT = 443" in second.answer


@pytest.mark.needs("chromium")
def test_a_notebook_that_is_printed_tells_the_run(tmp_path: Path, browser: Browser) -> None:
    trace = run()
    book = nbformat.reads(notebook([output_cell(html.bundle(trace))]), as_version=4)
    source, _ = nbconvert.HTMLExporter(template_name="webpdf").from_notebook_node(book)
    path = tmp_path / "run.html"
    path.write_text(source, encoding="utf-8")
    page = browser.open(path.as_uri())
    page.emulate_media(media="print")
    told = "".join(part.extract_text() for part in pypdf.PdfReader(io.BytesIO(page.pdf(print_background=False))).pages)
    squeezed = "".join(told.replace("\ufb01", "fi").replace("\ufb02", "fl").split())
    wanted = facts.of(trace)
    for text in (
        wanted.status,
        ANSWER,
        *wanted.totals.values(),
        *("Look at its shape.", "A child for each.", "Ask in one batch.", "A plot.", "A typo.", "Done."),
        "3 rlm_query: 2 answered, 1 failed",
        "7 llm_query: 6 ok, 1 failed",
        "NameError: name 'clause' is not defined",
        "asking the model",
    ):
        assert "".join(text.split()) in squeezed, text

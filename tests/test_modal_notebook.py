"""The notebook about Modal is executed for real against the local control plane, and saved with the outputs of such a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.modal_local.plane import LocalModal
from tests.payloads import Page

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "modal.ipynb"
CLOSED = "no way out, one way in (port 8080, for whoever holds this run's token)"
RUNS = (
    (f"{CLOSED}; ended after 600 s at most", "0.125 CPU, 128 MiB; billed by Modal, outside --max-cost"),
    (f"{CLOSED}; ended after 600 s at most", "2 CPU, 4096 MiB; billed by Modal, outside --max-cost"),
    (f"{CLOSED}, GPU T4; ended after 300 s at most", "0.125 CPU, 128 MiB, GPU T4; billed by Modal, outside --max-cost"),
    (
        f"{CLOSED.replace('out', 'out but to pypi.org, files.pythonhosted.org')}; ended after 600 s at most",
        "0.125 CPU, 128 MiB; billed by Modal",
    ),
)
"""What the page of each `%%rlm` says of its sandbox."""
PRINTED = (
    'fractions:39:     """This class implements rational numbers.\nanswer.sandbox_seconds < answer.seconds = True\n',
    "ready: numpy pandas\nanswered\n",
    "reader False\n('<secret>',)\n",
    "the sandbox has no network: --network pypi.org,files.pythonhosted.org opens it to those, --network open to all\n",
    "no sandbox of yours runs at Modal in the app rlm-sandbox\n",
)


def code_cells(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def check(book: Any) -> None:
    """Hold what a reader is to see, of an execution just now or of the saved one."""
    pages = [
        "".join(Page(output["data"]["text/html"]).text for output in cell.outputs if "text/html" in output.get("data", {}))
        for cell in code_cells(book)
        if cell.source.startswith("%%rlm")
    ]
    assert len(pages) == len(RUNS)
    for page, (place, machine) in zip(pages, RUNS, strict=True):
        assert "Answered" in page
        assert f"isolated: a sandbox at Modal (app rlm-sandbox), {place}" in page
        assert machine in page
    streams = "".join(output.text for cell in code_cells(book) for output in cell.outputs if output.output_type == "stream")
    for text in PRINTED:
        assert text in streams


@pytest.mark.needs("bwrap")
@pytest.mark.timeout(240)
def test_the_notebook_runs_and_asks_modal_for_what_it_shows(local_modal: LocalModal, tmp_path: Path) -> None:
    before = len(local_modal.told().created)
    book = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(book):
        cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(book, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(book)
    created = local_modal.told().created[before:]
    asked = [one.definition for one in created]
    assert len(asked) == 7
    images = [json.dumps(local_modal.image(one["image_id"])) for one in asked]
    assert "python:3.11" in images[1] and "dill" in images[1]  # noqa: PT018
    assert "rapidfuzz" in images[2] and "poppler-utils" in images[2]  # noqa: PT018
    assert [bool(one.request.get("secret_sources")) for one in created] == [False, False, False, True, False, False, False]
    assert asked[4]["resources"]["gpu_config"]["gpu_type"] == "T4"
    assert asked[6]["network_access"]["allowed_domains"] == ["pypi.org", "files.pythonhosted.org"]
    assert list(tmp_path.iterdir()) == []
    assert local_modal.running() == []


def test_the_notebook_is_saved_with_outputs_of_a_real_run_and_says_of_what() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    check(book)
    assert "What you see here was not computed at Modal" in book.cells[0].source
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1))
    for cell in code_cells(book):
        written = json.dumps(cell.outputs)
        assert len(written.encode()) < 256 * 1024
        assert "widget-view" not in written
        assert not any(private in written for private in ("/home/", "/root/", "/Users/", "/tmp/", "127.0.0.1"))

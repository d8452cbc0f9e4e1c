"""The notebook that compares the environments is executed for real, and saved with the outputs of such a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from rlm_jupyter.kernels import images
from rlm_jupyter.kernels.client import find
from rlm_jupyter.settings import ENVIRONMENTS
from tests.payloads import Page

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "environments.ipynb"
FORBIDDEN_IN_DOCKER = (
    "runs as the user who runs the notebook",
    "reads a file of that user",
    "changes it",
    "changes the Python that it runs in",
    "connects to a server on the machine",
    "has a network besides loopback",
    "sees the notebook's process",
    "reads the environment that it was started with",
    "has DB_PASSWORD in its own environment",
)
ALLOWED_LOCALLY = ("runs as the user who runs the notebook", "reads a file of that user", "changes it",
                   "connects to a server on the machine", "sees the notebook's process")  # fmt: skip


def code_cells(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def printed(book: Any) -> str:
    return "".join(output.text for cell in code_cells(book) for output in cell.outputs if output.output_type == "stream")


def table(book: Any) -> dict[str, tuple[str, str]]:
    """Give the table that the notebook prints: what was tried, what came of it on local, and in the container."""
    lines = printed(book).split("the code ...", 1)[1].split("\n")
    first, second = lines[0].index("local") + len("the code ..."), lines[0].index("docker") + len("the code ...")
    rows = [line for line in lines[1:] if line[first:second].startswith(("yes", "no"))]
    return {row[:first].strip(): (row[first:second].strip(), row[second:].strip()) for row in rows}


def check(book: Any) -> None:
    """Hold what a reader is to see, of an execution just now or of the saved one."""
    local, docker = (
        "".join(Page(output["data"]["text/html"]).text for output in cell.outputs if "text/html" in output.get("data", {}))
        for cell in code_cells(book)
        if cell.source.startswith("%%rlm")
    )
    for page, name in ((local, "local"), (docker, "docker")):
        assert "Answered" in page
        assert "class Fraction(numbers.Rational):" in page
        assert name in page
    assert ENVIRONMENTS["local"] in local
    assert "isolated: a container of " in docker
    assert "no network" in docker
    assert "the same answer: True" in printed(book)
    told = table(book)
    assert {name for name in told if not told[name][1].startswith("no")} == {"writes in its own working folder"}
    assert set(told) == {*FORBIDDEN_IN_DOCKER, "writes in its own working folder"}
    assert [told[name][0] for name in ALLOWED_LOCALLY] == ["yes"] * len(ALLOWED_LOCALLY)
    assert told["has DB_PASSWORD in its own environment"] == ("no", "no")
    assert "the file holds now: Nobody's own\n" in printed(book)


@pytest.mark.timeout(240)
def test_the_notebook_runs_and_shows_the_difference(docker_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLM_JUPYTER_IMAGE", docker_image)
    images.prepare(find(), docker_image, lambda told: None)
    book = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(book):
        cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(book, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(book)
    assert f"a container of {docker_image}" in json.dumps(book)
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_is_saved_with_outputs_of_a_real_run() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    check(book)
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1))
    for cell in code_cells(book):
        written = json.dumps(cell.outputs)
        assert len(written.encode()) < 256 * 1024
        assert "widget-view" not in written
        assert not any(private in written for private in ("/home/", "/root/", "/Users/", "/tmp/", "correct horse"))

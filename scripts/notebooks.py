"""Execute the notebooks and save them with their outputs: `python -m scripts.notebooks [NAME ...]`.

What is saved is what a reader sees, so outputs are real, and nothing of the machine that ran them is in the metadata.
Containers are of the image that the tests use, made ready before: its progress is nothing to keep. Sandboxes are those of the
tests' local Modal control plane, and the notebook says so.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

from rlm_jupyter.kernels import images
from rlm_jupyter.kernels.client import find
from tests.engine import base_image
from tests.modal_local.plane import LocalModal

CONTAINERS = "environments.ipynb"
SANDBOXES = "modal.ipynb"
FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def execute(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    os.environ.pop("RLM_JUPYTER_IMAGE", None)
    if path.name == CONTAINERS:
        os.environ["RLM_JUPYTER_IMAGE"] = image = base_image()
        images.prepare(find(), image, print)
    with contextlib.ExitStack() as stack:
        traces = stack.enter_context(tempfile.TemporaryDirectory())
        if path.name == SANDBOXES:
            os.environ.update(stack.enter_context(LocalModal()).environment)
        os.environ["RLM_JUPYTER_TRACES"] = traces
        nbclient.NotebookClient(
            book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(book, path)


def main() -> int:
    for path in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        execute(path)
        print(f"{path.name}: executed, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A real notebook kernel, driven as a front end does, for tests of what a user of a notebook lives through."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

SECONDS = 60.0


@dataclass
class Cell:
    """A cell that was sent: its displays by id in their latest state, its streams, and its error."""

    status: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    streams: str = ""
    ename: str = ""
    traceback: str = ""
    updates: list[dict[str, Any]] = field(default_factory=list)

    @property
    def html(self) -> str:
        return "\n".join(display["data"].get("text/html", "") for display in self.displays)


class Notebook:
    """One kernel with a client. `run` waits for a cell; `send` and `finish` are its halves, so that one can interrupt.

    `shown` is every display by its id as it is now, whichever cell ran when it was updated.
    """

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self.shown: dict[str, dict[str, Any]] = {}
        assert manager.provisioner is not None
        self.process = psutil.Process(manager.provisioner.pid)  # type: ignore[attr-defined]

    def send(self, code: str) -> str:
        return str(self.client.execute(code))

    def finish(self, message: str, seconds: float = SECONDS) -> Cell:
        cell, deadline = Cell(), time.monotonic() + seconds
        idle = False
        while not (idle and cell.status):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the cell did not end within {seconds:g} s")
            if idle:
                reply = self.client.get_shell_msg(timeout=left)
                if reply["parent_header"].get("msg_id") == message:
                    cell.status = reply["content"]["status"]
                continue
            with contextlib.suppress(queue.Empty):
                idle = self._take(cell, message, self.client.get_iopub_msg(timeout=left))
        return cell

    def _take(self, cell: Cell, message: str, got: dict[str, Any]) -> bool:
        content = got["content"]
        if name := content.get("transient", {}).get("display_id"):
            self.shown[name] = content["data"]
        if got["parent_header"].get("msg_id") != message:
            return False
        match got["msg_type"]:
            case "status":
                return bool(content["execution_state"] == "idle")
            case "stream":
                cell.streams += content["text"]
            case "error":
                cell.ename, cell.traceback = content["ename"], "\n".join(content["traceback"])
            case "display_data" | "execute_result":
                cell.displays.append(content)
            case "update_display_data":
                cell.updates.append(content)
                name = content["transient"]["display_id"]
                for display in cell.displays:
                    if display.get("transient", {}).get("display_id") == name:
                        display["data"] = content["data"]
        return False

    def run(self, code: str, seconds: float = SECONDS) -> Cell:
        return self.finish(self.send(code), seconds)

    def value(self, expression: str, seconds: float = SECONDS) -> Any:
        """Give the JSON value of an expression in the notebook."""
        cell = self.run(f"import json; print(json.dumps({expression}))", seconds)
        assert cell.status == "ok", cell.traceback
        return json.loads(cell.streams)

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def descendants(self) -> list[psutil.Process]:
        return [process for process in self.process.children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def notebook(folder: Path, **variables: str) -> Iterator[Notebook]:
    """Give a kernel that runs in `folder` with these environment variables more, the extension loaded."""
    manager = KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable  # type: ignore[union-attr]
    manager.start_kernel(cwd=str(folder), env={**os.environ, **variables})
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=SECONDS)
        opened = Notebook(manager, client)
        loaded = opened.run("%load_ext rlm_jupyter")
        assert loaded.status == "ok", loaded.traceback
        yield opened
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def gone(processes: list[psutil.Process], seconds: float = 10.0) -> bool:
    """Tell whether all have ended within `seconds`."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def run_folders(temporary: str) -> list[str]:
    """Give the private folders of environments that are in a folder for temporary files now."""
    return [entry.name for entry in Path(temporary).glob("rlm-*")]

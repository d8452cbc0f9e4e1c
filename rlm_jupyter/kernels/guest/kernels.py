"""One IPython kernel as the supervisor holds it: its process, folders, sockets and pipes, from the start to the last trace.

What it is busy with is in `cells`. Nothing of a kernel outlives it: not what it started, not its files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
from typing import Any, Protocol

from . import processes, wire
from .asks import AskConnection, AskListener
from .cells import Cells, execute_request
from .finals import Finals
from .frames import Header
from .launch import Forker, Place, start_cold
from .loop import Loop
from .output import HALF
from .pipes import OutputPipes
from .shell import ShellChannel
from .sources import sources


class Hub(Protocol):
    """What a kernel needs of its supervisor."""

    loop: Loop
    context: Any
    forker: Forker | None
    settings: dict[str, Any]

    def send(self, message: wire.Message) -> None: ...
    def gone(self, kernel: GuestKernel) -> None: ...
    def came_up(self, kernel: GuestKernel) -> None: ...


class GuestKernel:
    """A kernel. `number` is the host's name for it, 0 while it is a spare."""

    def __init__(self, hub: Hub, slot: int, run: str, how: str) -> None:
        self.hub, self.slot, self.how = hub, slot, how
        self.number = 0
        self.pid = 0
        self.python = ""
        self.ready = self.closing = self.dead = False
        self.failure = ""
        self.place = Place.make(run, slot)
        self._kill_notes: list[str] = []
        self.loop = hub.loop
        self.pipes = OutputPipes(hub.loop)
        self.cells = Cells(self)
        self._install = ""
        token = secrets.token_hex(32)
        path = self.place.sockets + ".ask"
        caps = hub.settings["caps"]
        self._listener = AskListener(hub.loop, path, token, caps["message"] + (1 << 22), self._ask, self.cells.hung_up)
        self.finals = Finals(self.place.path("final"), caps["value"])
        packages = hub.settings.get("packages", [])
        self._settings = {
            **caps,
            "packages": packages,
            "address": path,
            "token": token,
            "finals": self.place.path("final"),
            "output": HALF,
        }
        self._shell: ShellChannel | None = None
        self._deadline = hub.loop.later(hub.settings["start_seconds"], self._start_too_slow)
        self._launch()

    def _launch(self) -> None:
        writers = self.pipes.writers
        forker = self.hub.forker
        try:
            if self.how != "cold" and forker is not None:
                forker.fork(self.slot, self.place, self._settings, writers, self._born)
            else:
                cold = self.hub.settings["cold"]
                self.pid = start_cold(cold["argv"], self.place, cold["env"], *writers)
                self._install = self.request("execute_request", execute_request(self._install_code(), silent=True))
        except (OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.hub.loop.later(0, lambda: self.exited(1 << 8))
        finally:
            self.pipes.close_writers()

    def _born(self, pid: int) -> None:
        self.pid = pid
        if self.closing:
            self.kill("")

    def _install_code(self) -> str:
        modules = "__import__('sys').modules"
        lines = []
        for name, source in sources():
            lines.append(f"{modules}[{name!r}] = __import__('types').ModuleType({name!r})")
            lines.append(f"exec(compile({source!r}, '<rlm>', 'exec'), {modules}[{name!r}].__dict__)")
        lines.append(f"{modules}['_rlm_repl'].install(get_ipython(), {self._settings!r})\nNone")
        return "\n".join(lines)

    def request(self, kind: str, content: dict[str, Any]) -> str:
        """Send a request on the shell channel; the first one connects it."""
        if self._shell is None:
            address = f"ipc://{self.place.sockets}-1"
            self._shell = ShellChannel(self.hub.loop, self.hub.context, address, self.place.key, self._replied)
        return self._shell.request(kind, content)

    # The host's orders

    def give(self, number: int) -> None:
        """Make a spare the host's kernel."""
        self.number = number

    def send(self, message: wire.Message) -> None:
        self.hub.send(message)

    def interrupt(self) -> None:
        """Begin the kill ladder for what it does; a kernel that still starts is killed at once."""
        if self.ready:
            self.cells.interrupt()
        else:
            self.kill("killed while it started")

    def value(self, number: int, offset: int) -> None:
        self.hub.send(wire.ValuePart(self.number, number, offset, self.finals.piece(number, offset)))

    def close(self) -> None:
        self.closing = True
        if self.dead:
            self.hub.send(wire.Closed(self.number))
        else:
            self.kill("")

    def kill(self, note: str) -> None:
        """Kill the process and all that it started."""
        if note:
            self._kill_notes.append(note)
        if self.pid and not self.dead:
            table = processes.parents()
            processes.kill([self.pid, *processes.descendants([self.pid], table)])
            if not table:
                processes.kill_group(self.pid, signal.SIGKILL)
            self._kill_rest(table)

    def _kill_rest(self, table: dict[int, int] | None = None) -> None:
        """Kill what has left the tree by daemonising: the supervisor has adopted it."""
        table = processes.parents() if table is None else table
        me = os.getpid()
        for pid in [pid for pid, parent in table.items() if parent == me and pid != self.pid]:
            if processes.belongs_to(pid, self.place.folder):
                processes.kill([pid, *processes.descendants([pid], table)])

    # What the process does

    def _start_too_slow(self) -> None:
        self.failure = f"it did not answer within {self.hub.settings['start_seconds']:.0f} s"
        self.kill("")

    def exited(self, status: int) -> None:
        """The process is gone; `status` as of waitpid."""
        if self.dead:
            return
        self.dead = True
        self._deadline.cancel()
        last: list[bytes] = []
        if not self.ready:
            self.pipes.drain(lambda stream, data: last.append(data))
        tail = b"".join(last)[-2000:].decode("utf-8", "replace").strip()
        notes = [*self.cells.died(), *self._kill_notes]
        self._kill_rest()
        self._tear_down()
        if self.closing:
            self.hub.send(wire.Closed(self.number))
        elif self.number:
            self.hub.send(self._last_report(status, notes, tail))
        self.hub.gone(self)

    def _last_report(self, status: int, notes: list[str], tail: str) -> wire.Message:
        by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        if self.ready:
            return wire.Died(self.number, code, by_signal, tuple(notes))
        how = f"signal {by_signal}" if by_signal else f"exit status {code}"
        text = self.failure or "; ".join(self._kill_notes) or tail
        return wire.StartFailed(self.number, text or f"its process ended with {how}")

    def _tear_down(self) -> None:
        self._listener.close()
        if self._shell is not None:
            self._shell.close()
        self.pipes.close()
        self.finals.close()
        for port in range(1, 6):
            with contextlib.suppress(OSError):
                os.unlink(f"{self.place.sockets}-{port}")
        threading.Thread(target=shutil.rmtree, args=(self.place.folder, True), daemon=True).start()

    # What its sockets say

    def _replied(self, request: str, content: dict[str, Any]) -> None:
        if self.dead:
            return
        if not self.ready and request == self._install and content.get("status") == "error":
            self.failure = f"the REPL could not be set up in it: {content.get('ename')}: {content.get('evalue')}"[:2000]
            self.kill("")
        self.cells.replied(request, content)

    def _ask(self, connection: AskConnection, header: Header, body: bytes) -> None:
        if header.get("kind") == "ready" and not self.ready:
            self._became_ready(connection, header)
        else:
            self.cells.ask(connection, header, body)

    # What its code asks

    def _became_ready(self, connection: AskConnection, header: Header) -> None:
        self.ready = True
        self.python = str(header.get("python"))[:40]
        self._deadline.cancel()
        self.pipes.drain(lambda stream, data: None)
        connection.answer({})
        self.hub.came_up(self)

"""One IPython kernel as the supervisor drives it: start, cells, output, calls, finals, the kill ladder, the end.

A cell is over when its shell reply has come, its pipes are read dry and its calls are settled. No iopub message is ever
believed or even read: code in the kernel could forge it, and under a flood it would be lost. What the kernel sends on its own
sockets can be forged by its code, too; that only ever tells lies about its own cell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import stat
import threading
import time
from typing import Any, Protocol

from . import processes, wire
from .asks import AskConnection, AskListener
from .frames import Header
from .launch import Forker, Place, output_pipe, start_cold
from .loop import Loop
from .output import HALF, Keeper
from .shell import ShellChannel

FLUSH_SECONDS = 0.02
SECOND_SIGINT = 1.0
KILL_AFTER = 2.0
FINALS_KEPT = 4
OUTSTANDING_CAP = 10_000
_READ_SIZE = 256 * 1024

_NAME = re.compile(r"[0-9a-f]{32}")


class Hub(Protocol):
    """What a kernel needs of its supervisor."""

    loop: Loop
    context: Any
    forker: Forker | None
    settings: dict[str, Any]

    def send(self, message: wire.Message) -> None: ...
    def gone(self, kernel: GuestKernel) -> None: ...
    def came_up(self, kernel: GuestKernel) -> None: ...


@dataclasses.dataclass(slots=True)
class Work:
    """What the kernel is busy with: a cell, or (`cell` 0) the loading of a context."""

    cell: int
    load: int
    request: str
    keeper: Keeper = dataclasses.field(default_factory=Keeper)
    running: bool = True
    status: str = ""
    error: str = ""
    told: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    final: tuple[wire.FinalInfo, int] | None = None
    interrupted: float = 0.0
    probe: str = ""
    timers: list[Any] = dataclasses.field(default_factory=list)
    flush: Any = None


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
        self._work: Work | None = None
        self._calls: dict[str, AskConnection] = {}
        self._finals: dict[int, tuple[wire.FinalInfo, int]] = {}
        self._final_count = 0
        self._kill_notes: list[str] = []
        self._pipes: dict[str, int] = {}
        self._install = ""
        token = secrets.token_hex(32)
        path = self.place.sockets + ".ask"
        caps = hub.settings["caps"]
        self._listener = AskListener(hub.loop, path, token, caps["message"] + (1 << 22), self._ask, self._hung_up)
        self._settings = {**caps, "address": path, "token": token, "finals": self.place.path("final"), "output": HALF}
        self._shell: ShellChannel | None = None
        self._deadline = hub.loop.later(hub.settings["start_seconds"], self._start_too_slow)
        self._launch()

    def _launch(self) -> None:
        self._pipes["stdout"], stdout = output_pipe()
        self._pipes["stderr"], stderr = output_pipe()
        forker = self.hub.forker
        try:
            if self.how != "cold" and forker is not None:
                forker.fork(self.slot, self.place, self._settings, [stdout, stderr], self._born)
            else:
                cold = self.hub.settings["cold"]
                self.pid = start_cold(cold["argv"], self.place, cold["env"], stdout, stderr)
                self._install = self._request("execute_request", _execute(self._install_code(), silent=True))
        except (OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.hub.loop.later(0, lambda: self.exited(1 << 8))
        finally:
            os.close(stdout)
            os.close(stderr)

    def _born(self, pid: int) -> None:
        self.pid = pid
        if self.closing:
            self.kill("")

    def _install_code(self) -> str:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "repl.py"), encoding="utf-8") as file:
            source = file.read()
        module = "__import__('sys').modules['_rlm_repl']"
        return (
            "__import__('sys').modules['_rlm_repl'] = __import__('types').ModuleType('_rlm_repl')\n"
            f"exec(compile({source!r}, '<rlm>', 'exec'), {module}.__dict__)\n"
            f"{module}.install(get_ipython(), {self._settings!r})\nNone"
        )

    def _request(self, kind: str, content: dict[str, Any]) -> str:
        """Send a request on the shell channel; the first one connects it."""
        if self._shell is None:
            address = f"ipc://{self.place.sockets}-1"
            self._shell = ShellChannel(self.hub.loop, self.hub.context, address, self.place.key, self._replied)
        return self._shell.request(kind, content)

    # The host's orders

    def give(self, number: int) -> None:
        """Make a spare the host's kernel."""
        self.number = number

    def execute(self, cell: int, code: str) -> None:
        self._work = Work(cell, 0, self._request("execute_request", _execute(code)))
        for stream, fd in self._pipes.items():
            self.hub.loop.watch(fd, lambda stream=stream: self._drain(stream, once=True))  # type: ignore[misc]

    def load(self, order: wire.Context, path: str) -> None:
        line = {"name": order.name, "path": path, "form": order.form, "size": order.size, "digest": order.digest}
        code = f"__import__('sys').modules['_rlm_repl'].repl.load({json.dumps(line)!r})"
        self._work = Work(0, order.load, self._request("execute_request", _execute(code, silent=True)))

    @property
    def busy(self) -> bool:
        return self._work is not None

    def interrupt(self) -> None:
        """Begin the ladder, if there is anything to interrupt and it has not begun."""
        work = self._work
        if not self.ready:
            self.kill("killed while it started")
        if work is None or work.interrupted:
            return
        work.interrupted = time.monotonic()
        self._sigint(work)
        self._release_calls("the cell was interrupted")
        self._settle()
        if self._work is work:
            later = self.hub.loop.later
            work.timers = [later(SECOND_SIGINT, lambda: self._sigint(work)), later(KILL_AFTER, self._kill_stubborn)]

    def _sigint(self, work: Work) -> None:
        if work.running:
            work.notes.append(f"SIGINT after {time.monotonic() - work.interrupted:.1f} s")
            processes.kill_group(self.pid, signal.SIGINT)
            # A KeyboardInterrupt can fall between the end of the code and the reply, and then there is none:
            # the answer to this later request tells that the shell is free again.
            work.probe = self._request("kernel_info_request", {})

    def _kill_stubborn(self) -> None:
        self.kill(f"SIGKILL of the process tree after {KILL_AFTER:.1f} s: it did not answer two interrupts")

    def reply(self, message: wire.Reply) -> None:
        connection = self._calls.pop(message.call, None)
        if connection is not None:
            connection.answer({"sizes": message.sizes, "errors": message.errors}, message.data)
        self._settle()

    def value(self, number: int, offset: int) -> None:
        found = self._finals.get(number)
        data = os.pread(found[1], wire.VALUE_PIECE, offset) if found else b""
        self.hub.send(wire.ValuePart(self.number, number, offset, data))

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
        work = self._work
        tail = b"".join(self._read_all(stream) for stream in self._pipes) if not self.ready else b""
        if work is not None and work.cell:
            for stream in self._pipes:
                self._drain(stream)
            self._send_output(work, *work.keeper.finish())
        notes = [*(work.notes if work else ()), *self._kill_notes]
        self._end_work()
        self._kill_rest()
        self._tear_down()
        if self.closing:
            self.hub.send(wire.Closed(self.number))
        elif self.number and not self.ready:
            text = self.failure or "; ".join(self._kill_notes) or tail.decode("utf-8", "replace").strip()[-2000:]
            self.hub.send(wire.StartFailed(self.number, text or f"its process ended with status {status}"))
        elif self.number:
            by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
            self.hub.send(wire.Died(self.number, code, by_signal, tuple(notes)))
        self.hub.gone(self)

    def _tear_down(self) -> None:
        self._calls.clear()
        self._listener.close()
        if self._shell is not None:
            self._shell.close()
        for fd in [*self._pipes.values(), *(fd for _, fd in self._finals.values())]:
            self.hub.loop.unwatch(fd)
            os.close(fd)
        self._pipes.clear()
        self._finals.clear()
        for port in range(1, 6):
            with contextlib.suppress(OSError):
                os.unlink(f"{self.place.sockets}-{port}")
        threading.Thread(target=shutil.rmtree, args=(self.place.folder, True), daemon=True).start()

    # What its sockets say

    def _replied(self, request: str, content: dict[str, Any]) -> None:
        work = self._work
        if self.dead:
            return
        if not self.ready and request == self._install and content.get("status") == "error":
            self.failure = f"the REPL could not be set up in it: {content.get('ename')}: {content.get('evalue')}"[:2000]
            self.kill("")
        if work is None or not work.running:
            return
        if request == work.request:
            work.status = "ok" if content.get("status") == "ok" else "error"
            if work.status == "error":
                ename = content.get("ename")
                work.error = f"{ename}: {content.get('evalue')}"[:2000]
                if work.interrupted and ename in ("KeyboardInterrupt", "CancelledError"):
                    work.status = "interrupted"
                if not work.told and work.cell:
                    lines = content.get("traceback")
                    text = "\n".join(map(str, lines)) if isinstance(lines, list) else work.error
                    self._drain_all(work)
                    work.keeper.add("error", text.encode("utf-8", "backslashreplace") + b"\n")
        elif work.probe and request == work.probe:
            work.status, work.error = "interrupted", "KeyboardInterrupt: "
        else:
            return
        work.running = False
        if work.interrupted:
            work.notes.append(f"came back after {time.monotonic() - work.interrupted:.1f} s")
        self._settle()

    def _settle(self) -> None:
        """End the work if nothing of it is under way any more."""
        work = self._work
        if work is None or work.running or self._calls:
            return
        if not work.cell:
            self._end_work()
            self.hub.send(wire.Loaded(self.number, work.load, "" if work.status == "ok" else work.error or work.status))
            return
        self._drain_all(work)
        pieces = work.keeper.finish()
        self._send_output(work, *pieces)
        final, work.final = work.final, None
        self._end_work()
        info = None
        if final is not None:
            if work.status == "ok":
                info = final[0]
                self._keep_final(final)
            else:
                os.close(final[1])
        self.hub.send(wire.Done(self.number, work.cell, work.status, work.error, pieces[1], info, tuple(work.notes)))

    def _keep_final(self, final: tuple[wire.FinalInfo, int]) -> None:
        self._finals[final[0].number] = final
        while len(self._finals) > FINALS_KEPT:
            os.close(self._finals.pop(min(self._finals))[1])

    def _end_work(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        for timer in work.timers:
            timer.cancel()
        if work.flush is not None:
            work.flush.cancel()
        if work.final is not None:
            os.close(work.final[1])
        for fd in self._pipes.values():
            self.hub.loop.unwatch(fd)

    # Output

    def _drain_all(self, work: Work) -> None:
        for stream in self._pipes:
            self._drain(stream)

    def _drain(self, stream: str, once: bool = False) -> None:
        """Read a pipe until it is empty, or one piece of it."""
        work = self._work
        for _ in range(1 if once else 64):
            try:
                data = os.read(self._pipes[stream], _READ_SIZE)
            except (BlockingIOError, KeyError):
                return
            if not data:
                self.hub.loop.unwatch(self._pipes[stream])
                return
            if work is not None and work.cell:
                work.keeper.add(stream, data)
                self._flush_soon(work)

    def _read_all(self, stream: str) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._pipes[stream], _READ_SIZE)
        return b""

    def _flush_soon(self, work: Work) -> None:
        if work.flush is None:
            work.flush = self.hub.loop.later(FLUSH_SECONDS, lambda: self._flush(work))

    def _flush(self, work: Work) -> None:
        work.flush = None
        self._send_output(work, work.keeper.take(), 0, [])

    def _send_output(self, work: Work, head: list[tuple[str, bytes]], omitted: int, tail: list[tuple[str, bytes]]) -> None:
        for stream, data in head:
            self.hub.send(wire.Output(self.number, work.cell, stream, 0, data))
        if omitted and not tail:
            tail = [("stdout", b"")]
        for stream, data in tail:
            self.hub.send(wire.Output(self.number, work.cell, stream, omitted, data))
            omitted = 0

    # What its code asks

    def _ask(self, connection: AskConnection, header: Header, body: bytes) -> None:
        work = self._work
        kind = header.get("kind")
        if kind == "ready" and not self.ready:
            self._became_ready(connection, header)
        elif kind == "show":
            self._show(header, body)
            connection.answer({})
        elif kind not in ("call", "final"):
            connection.close()
        elif work is None or not work.cell or not work.running:
            connection.answer({"refused": "no cell is running: calls and answers are taken only while a cell runs"})
        elif work.interrupted:
            connection.answer({"refused": "the cell was interrupted"})
        elif kind == "final":
            self._final(work, connection, header)
        else:
            self._call(work, connection, header, body)

    def _became_ready(self, connection: AskConnection, header: Header) -> None:
        self.ready = True
        self.python = str(header.get("python"))[:40]
        self._deadline.cancel()
        for stream in self._pipes:
            self._drain(stream)
        connection.answer({})
        self.hub.came_up(self)

    def _show(self, header: Header, body: bytes) -> None:
        work = self._work
        stream, head, skipped = header.get("stream"), header.get("head"), header.get("skipped")
        if work is None or not work.cell or stream not in ("result", "display", "error"):
            return
        if type(head) is not int or type(skipped) is not int or not 0 <= head <= len(body) or not 0 <= skipped < 2**53:
            return
        self._drain_all(work)
        work.told = work.told or stream == "error"
        work.keeper.add(stream, body[:head])
        if skipped:
            work.keeper.skip(skipped)
        if body[head:]:
            work.keeper.add(stream, body[head:])
        self._flush_soon(work)

    def _call(self, work: Work, connection: AskConnection, header: Header, body: bytes) -> None:
        header = {**header, "kernel": self.number, "cell": work.cell}
        try:
            call = wire.decode(header, body, wire.CALL)
        except wire.WireError:
            connection.close()
            return
        assert isinstance(call, wire.Call)
        if call.call in self._calls or len(self._calls) >= OUTSTANDING_CAP:
            connection.answer({"refused": "too many calls are under way"})
            return
        connection.call = call.call
        self._calls[call.call] = connection
        self.hub.send(call)

    def _final(self, work: Work, connection: AskConnection, header: Header) -> None:
        path = header.get("path")
        if not isinstance(path, str) or not _NAME.fullmatch(path):
            connection.close()
            return
        self._final_count += 1
        values = {key: header.get(key) for key in ("name", "type_name", "form", "size", "digest")}
        full = os.path.join(self.place.path("final"), path)
        try:
            info = wire.read_final({"number": self._final_count, **values})
            fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            os.unlink(full)
        except (wire.WireError, OSError):
            connection.answer({"refused": "the answer could not be read"})
            return
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != info.size or info.size > self._settings["value"]:
            os.close(fd)
            connection.answer({"refused": "the answer could not be read"})
            return
        if work.final is not None:
            os.close(work.final[1])
        work.final = (info, fd)
        connection.answer({})

    def _hung_up(self, connection: AskConnection) -> None:
        call = connection.call
        if call and self._calls.pop(call, None) is not None:
            self.hub.send(wire.Dropped(self.number, call))
            self._settle()

    def _release_calls(self, reason: str) -> None:
        calls, self._calls = self._calls, {}
        for call, connection in calls.items():
            self.hub.send(wire.Dropped(self.number, call))
            connection.answer({"refused": reason})


def _execute(code: str, silent: bool = False) -> dict[str, Any]:
    return {
        "code": code, "silent": silent, "store_history": not silent, "user_expressions": {}, "allow_stdin": False,
        "stop_on_error": False,
    }  # fmt: skip

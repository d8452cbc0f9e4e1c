"""What a kernel is busy with: a cell from its code to its end, or the loading of a context.

A cell is over when its shell reply has come, its pipes are read dry and its calls are settled. No iopub message is ever
believed or even read: code in the kernel could forge it, and under a flood it would be lost. What the kernel sends on its own
sockets can be forged by its code, too; that only ever tells lies about its own cell.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from typing import Any, Protocol

from . import codec, processes, wire
from .asks import AskConnection
from .fields import WireError
from .finals import Finals, Held
from .frames import Header
from .loop import Loop, Timer
from .outlet import EARLY_HALF, Outlet
from .output import Keeper
from .parcels import CONTEXT, Parcels, Piece
from .pipes import OutputPipes

SECOND_SIGINT = 1.0
KILL_AFTER = 2.0
BROUGHT_WITHIN = 60.0
"""Seconds for an order that lays a child's answer ready, once the reply that tells of it has come: it may be sent anew."""
OUTSTANDING_CAP = 10_000
CROWD = 256
INTERRUPTED = "the cell was interrupted"
_INTERRUPTS = ("KeyboardInterrupt", "CancelledError", "NoneType")  # the last is IPython's for one within a display


@dataclasses.dataclass(slots=True)
class Work:
    """What the kernel is busy with: a cell, or (`cell` 0, without an outlet) the loading of a context."""

    cell: int
    load: int
    request: str
    outlet: Outlet | None = None
    running: bool = True
    status: str = ""
    error: str = ""
    told: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    final: Held | None = None
    interrupted: float = 0.0
    probe: str = ""
    timers: list[Any] = dataclasses.field(default_factory=list)


class Process(Protocol):
    """What cells need of their kernel."""

    number: int
    pid: int
    loop: Loop
    pipes: OutputPipes
    finals: Finals
    parcels: Parcels
    children: int

    def request(self, kind: str, content: dict[str, Any]) -> str: ...
    def send(self, message: wire.Message) -> None: ...
    def kill(self, note: str) -> None: ...
    def cut_off(self) -> int: ...
    def crowd(self) -> int: ...
    def open_calls(self, cell: int) -> None: ...
    def settled(self, cell: int) -> bool: ...
    def release_calls(self, why: str) -> None: ...


class Cells:
    """The work of one kernel, one piece at a time."""

    def __init__(self, kernel: Process) -> None:
        self._kernel = kernel
        self._work: Work | None = None
        self._calls: dict[str, AskConnection] = {}
        self._takers: dict[AskConnection, tuple[Header, Timer]] = {}

    def execute(self, cell: int, code: str) -> None:
        self._kernel.open_calls(cell)
        self._kernel.parcels.clear_shelf()
        early = Keeper(EARLY_HALF)
        self._kernel.pipes.glance(early.add)
        kernel = self._kernel
        outlet = Outlet(kernel.number, cell, kernel.loop, kernel.pipes, kernel.send)
        self._work = Work(cell, 0, kernel.request("execute_request", execute_request(code)), outlet)
        outlet.open(early)

    def load(self, order: wire.Context, path: str) -> None:
        line = {"name": order.name, "path": path, "form": order.form, "size": order.size, "digest": order.digest}
        code = f"__import__('sys').modules['_rlm_repl'].repl.load({json.dumps(line)!r})"
        self._work = Work(0, order.load, self._kernel.request("execute_request", execute_request(code, silent=True)))

    def inherit(self, order: wire.Inherit, fd: int, piece: Piece) -> None:
        """Load a context that the kernel's parent has left; the descriptor is the kernel's from now on."""
        self._kernel.parcels.put(CONTEXT, (fd, piece))
        code = "__import__('sys').modules['_rlm_repl'].repl.inherit()"
        self._work = Work(0, order.load, self._kernel.request("execute_request", execute_request(code, silent=True)))

    @property
    def busy(self) -> bool:
        return self._work is not None

    def interrupt(self) -> None:
        """Begin the ladder, if there is anything to interrupt and it has not begun."""
        work = self._work
        if work is None or work.interrupted:
            return
        work.interrupted = time.monotonic()
        self._sigint(work)
        self._release_calls(INTERRUPTED)
        self.settle()
        if self._work is work:
            later = self._kernel.loop.later
            work.timers = [later(SECOND_SIGINT, lambda: self._insist(work)), later(KILL_AFTER, self._kill_stubborn)]

    def _insist(self, work: Work) -> None:
        """Send the second SIGINT; but what has become so many processes that it must be a fork bomb is killed now."""
        if work.running and (count := self._kernel.crowd()) > CROWD:
            self._kernel.kill(f"SIGKILL of the process tree after {SECOND_SIGINT:.1f} s: it has grown to {count:,} processes")
        else:
            self._sigint(work)

    def _sigint(self, work: Work) -> None:
        if work.running:
            work.notes.append(f"SIGINT after {time.monotonic() - work.interrupted:.1f} s")
            processes.kill_group(self._kernel.pid, signal.SIGCONT)
            processes.kill_group(self._kernel.pid, signal.SIGINT)
            # A KeyboardInterrupt can fall between the end of the code and the reply, and then there is none:
            # the answer to this later request tells that the shell is free again.
            work.probe = self._kernel.request("kernel_info_request", {})

    def _kill_stubborn(self) -> None:
        self._kernel.kill(f"SIGKILL of the process tree after {KILL_AFTER:.1f} s: it did not answer two interrupts")

    def reply(self, message: wire.Reply) -> None:
        connection = self._calls.pop(message.call, None)
        if connection is not None:
            header = {"sizes": message.sizes, "errors": message.errors, "values": message.values}
            connection.answer(header, message.data)
        self.settle()

    def died(self) -> list[str]:
        """The process is gone: send what it had put out, and give the steps that led to it."""
        work = self._work
        self._calls.clear()
        if work is None:
            return []
        if work.outlet is not None:
            work.outlet.finish()
        self._end()
        return work.notes

    def replied(self, request: str, content: dict[str, Any]) -> None:
        """Take a reply of the shell channel."""
        work = self._work
        if work is None or not work.running:
            return
        if request == work.request:
            work.status = "ok" if content.get("status") == "ok" else "error"
            if work.status == "error":
                ename = content.get("ename")
                work.error = f"{ename}: {content.get('evalue')}"[:2000]
                if work.interrupted and (ename in _INTERRUPTS or content.get("evalue") == INTERRUPTED):
                    work.status = "interrupted"
                if not work.told and work.outlet is not None:
                    lines = content.get("traceback")
                    work.outlet.traceback("\n".join(map(str, lines)) if isinstance(lines, list) else work.error)
        elif work.probe and request == work.probe:
            work.status, work.error = "interrupted", "KeyboardInterrupt: "
        else:
            return
        work.running = False
        if work.interrupted:
            work.notes.append(f"came back after {time.monotonic() - work.interrupted:.1f} s")
        self.settle()

    def settle(self) -> None:
        """End the work if nothing of it is under way any more."""
        work = self._work
        if work is None or work.running or self._calls:
            return
        if work.outlet is None:
            self._end()
            self._kernel.send(
                wire.Loaded(self._kernel.number, work.load, "" if work.status == "ok" else work.error or work.status)
            )
            return
        if not self._kernel.settled(work.cell):
            return
        omitted = work.outlet.finish()
        final, work.final = work.final, None
        if cut := self._kernel.cut_off():
            work.notes.append(f"{cut:,} requests were cut off: too much was being asked at once")
        self._end()
        info = None
        if final is not None:
            info = final[0]
            self._kernel.finals.keep(final)
        self._kernel.send(wire.Done(self._kernel.number, work.cell, work.status, work.error, omitted, info, tuple(work.notes)))

    def _end(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        for timer in work.timers:
            timer.cancel()
        if work.outlet is not None:
            work.outlet.close()
        if work.final is not None:
            os.close(work.final[1])
        self._kernel.parcels.clear_left()

    # What its code asks

    def ask(self, connection: AskConnection, header: Header, body: bytes) -> None:
        """Answer a request of the kernel's code, now or when the host has replied."""
        work = self._work
        kind = header.get("kind")
        if kind == "show":
            self._show(header, body)
            connection.answer({})
        elif kind == "picture":
            self._picture(body)
            connection.answer({})
        elif kind == "take":
            self._take(connection, header)
        elif kind == "forget":
            self._kernel.parcels.forget(header)
            connection.answer({})
        elif kind not in ("call", "final", "children", "parcel"):
            connection.close()
        elif work is None or not work.cell or not work.running:
            connection.answer({"refused": "no cell is running: calls and answers are taken only while a cell runs"})
        elif work.interrupted:
            connection.answer({"refused": INTERRUPTED})
        elif kind == "final":
            self._final(work, connection, header)
        elif kind == "children":
            connection.answer({"children": self._kernel.children})
        elif kind == "parcel":
            self._parcel(connection, header)
        else:
            self._call(work, connection, header, body)

    def _show(self, header: Header, body: bytes) -> None:
        work = self._work
        if work is not None and work.outlet is not None and work.outlet.show(header, body):
            work.told = work.told or header["stream"] == "error"

    def _picture(self, body: bytes) -> None:
        work = self._work
        if work is not None and work.outlet is not None:
            work.outlet.picture(body)

    def _call(self, work: Work, connection: AskConnection, header: Header, body: bytes) -> None:
        header = {**header, "kernel": self._kernel.number, "cell": work.cell}
        try:
            call = codec.decode(header, body, wire.CALL)
        except WireError:
            connection.close()
            return
        assert isinstance(call, wire.Call)
        if call.call in self._calls or len(self._calls) >= OUTSTANDING_CAP:
            connection.answer({"refused": "too many calls are under way"})
            return
        connection.call = call.call
        self._calls[call.call] = connection
        self._kernel.send(call)

    def _final(self, work: Work, connection: AskConnection, header: Header) -> None:
        held = self._kernel.finals.take(header, connection.descriptor())
        if held is None:
            connection.answer({"refused": "the answer could not be read"})
            return
        if work.final is not None:
            os.close(work.final[1])
        work.final = held
        connection.answer({})

    def _parcel(self, connection: AskConnection, header: Header) -> None:
        fd = connection.descriptor() if self._kernel.children else None
        parcel = self._kernel.parcels.leave(header, fd)
        connection.answer({"refused": "the contexts could not be read"} if parcel is None else {"parcel": parcel})

    def _take(self, connection: AskConnection, header: Header) -> None:
        """Hand over what lies ready for the kernel, also while it loads its context; wait for what may be on its way still."""
        if not self._hand_over(connection, header):
            timer = self._kernel.loop.later(BROUGHT_WITHIN, lambda: self._refuse_taker(connection, "it came too late"))
            self._takers[connection] = header, timer

    def _hand_over(self, connection: AskConnection, header: Header) -> bool:
        """Answer a kernel that takes something, unless it may be on its way still; whether it was answered."""
        if (found := self._kernel.parcels.take(header)) is not None:
            connection.answer(found[1].to_header(), fd=found[0])
            os.close(found[0])
        elif self._kernel.parcels.may_come(header):
            return False
        else:
            connection.answer({"refused": "nothing lies ready there"})
        return True

    def brought(self) -> None:
        """Look again for those who wait: something was laid ready, or will not be."""
        for connection, (header, timer) in list(self._takers.items()):
            if self._hand_over(connection, header):
                timer.cancel()
                self._takers.pop(connection, None)

    def _refuse_taker(self, connection: AskConnection, reason: str) -> None:
        _, timer = self._takers.pop(connection)
        timer.cancel()
        connection.answer({"refused": reason})

    def hung_up(self, connection: AskConnection) -> None:
        """Take note that nobody waits on a connection any more."""
        if (taker := self._takers.pop(connection, None)) is not None:
            taker[1].cancel()
        call = connection.call
        if call and self._calls.pop(call, None) is not None:
            self._kernel.send(wire.Dropped(self._kernel.number, call))
            self.settle()

    def _release_calls(self, reason: str) -> None:
        self._kernel.release_calls(reason)
        calls, self._calls = self._calls, {}
        for call, connection in calls.items():
            self._kernel.send(wire.Dropped(self._kernel.number, call))
            connection.answer({"refused": reason})
        for connection in list(self._takers):
            self._refuse_taker(connection, reason)


def execute_request(code: str, silent: bool = False) -> dict[str, Any]:
    return {
        "code": code, "silent": silent, "store_history": not silent, "user_expressions": {}, "allow_stdin": False,
        "stop_on_error": False,
    }  # fmt: skip

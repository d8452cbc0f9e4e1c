"""The supervisor's single thread: the host on one side, the kernels on the other.

It carries out the host's orders, which name a kernel each, and knows every process that may live here: what else there is was
left behind by a kernel that is gone, and is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import zmq

from . import processes, users, wire
from .desk import Desk
from .files import Files
from .host import Host
from .kernels import GuestKernel
from .launch import Forker
from .loop import Loop
from .memory import Memory
from .spares import Spares
from .streams import HostStream

HEARTBEAT_SECONDS = 2.0
SWEEP_SECONDS = 0.05
STOP_SECONDS = 0.5
SWEEP_AGAIN = 0.1


class Hub:
    """Orders in, reports out.

    Parameters
    ----------
    settings
        The line that the host wrote.
    stream
        The stream to the host; where that is a port, the token has not been sent yet.
    forker
        The kernel parent, or None where kernels are started cold.
    desk
        The broker of LM calls, or None where they go over the stream.
    """

    def __init__(self, settings: dict[str, Any], stream: HostStream, forker: Forker | None, desk: Desk | None = None) -> None:
        self.settings = settings
        self.forker = forker
        self.desk = desk
        self.loop = Loop()
        self.context = zmq.Context()
        self._folder: str = settings["folder"]
        self._host = Host(self.loop, settings, stream, self._carry_out, self._shutdown)
        self._files = Files(self._folder)
        self._slots = 0
        self._kernels: dict[int, GuestKernel] = {}
        self._all: dict[int, GuestKernel] = {}
        self._spares: Spares[GuestKernel] = Spares(self.loop, self._fork_spare)
        self._cells: dict[int, int] = {}
        self._starts: dict[int, wire.Start] = {}
        self._forker_end = ""
        self._memory = Memory(settings.get("box", False))
        self._orders: dict[type[wire.Message], Callable[[Any], None]] = {
            wire.Start: self._start, wire.Context: self._load, wire.Execute: self._execute, wire.Interrupt: self._interrupt,
            wire.Inherit: self._inherit, wire.Bring: self._bring,
            wire.Reply: self._reply, wire.GetValue: self._value, wire.LendValue: self._lend, wire.Close: self._close,
            wire.Shutdown: self._shutdown, wire.FilePart: self._files.add, wire.Append: self._files.append,
            wire.Discard: self._files.discard,
            wire.Alive: lambda order: None,
        }  # fmt: skip

    def run(self) -> None:
        """Serve until the host is gone or says so."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else _pipe()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.loop.watch(wake_read, lambda: self._reap(wake_read))
        if not self.settings.get("box"):
            self.loop.watch(0, self._stdin)
        if self.forker is not None:
            self.forker.attach(self.loop, self._exited, self._parent_lost)
        self._host.listen()
        if self.desk is None:
            self._say_ready()
        else:
            self.desk.attach(self.loop, self._say_ready, self._calls_settled, self._broker_lost)
        self._beat()
        self._spares.refill()
        try:
            self.loop.run()
        finally:
            for kernel in list(self._all.values()):
                kernel.kill("")

    def _say_ready(self) -> None:
        self.send(wire.Ready(wire.PROTOCOL, os.getpid(), self.settings.get("users", False)))

    def _calls_settled(self, kernel: int, cell: int) -> None:
        if found := self._kernels.get(kernel):
            found.calls_settled(cell)

    def _broker_lost(self) -> None:
        """End everything: who asks would wait for ever, and who pulls must not meet another at its port."""
        if self.loop.stop():
            print("the broker of LM calls in the sandbox has ended", file=sys.stderr, flush=True)

    def send(self, message: wire.Message) -> None:
        """Report to the host; the messages are numbered from 1."""
        self._host.send(message)

    def pressed(self, resume: Callable[[], None]) -> bool:
        """Whether more waits for the host than is good; then `resume` is called when that is over."""
        return self._host.pressed(resume)

    # Kernels

    def _new(self, how: str) -> GuestKernel:
        if self.forker is None or not self.forker.alive:
            how = "cold"
        self._slots += 1
        kernel = GuestKernel(self, self._slots, self._folder, how)
        self._all[self._slots] = kernel
        return kernel

    def _fork_spare(self) -> GuestKernel | None:
        forks = self.forker is not None and self.forker.alive
        return self._new("spare") if self.settings["how"] == "spare" and forks else None

    def came_up(self, kernel: GuestKernel) -> None:
        if kernel.number:
            self._started(kernel)
        else:
            self._spares.came_up()

    def _started(self, kernel: GuestKernel) -> None:
        self.send(wire.Started(kernel.number, kernel.pid, kernel.how, kernel.python))
        self._spares.soon()

    def gone(self, kernel: GuestKernel) -> None:
        self._all.pop(kernel.slot, None)
        self._kernels.pop(kernel.number, None)
        self._spares.gone(kernel)

    def stop_all(self, pid: int) -> None:
        """Stop what a kernel has started."""
        processes.stop_all([pid], self._own(), STOP_SECONDS)

    def kill_strangers(self) -> None:
        """Kill what kernels that are gone have left behind, now for the most part, or a moment later."""
        if not processes.kill_strangers(self._own(), SWEEP_SECONDS):
            self.loop.later(SWEEP_AGAIN, self.kill_strangers)

    def _own(self) -> set[int]:
        own = {kernel.pid for kernel in self._all.values()} | ({self.desk.pid} if self.desk is not None else set())
        return own | {self.forker.pid} if self.forker is not None else own

    def _exited(self, pid: int, status: int) -> None:
        for kernel in list(self._all.values()):
            if kernel.pid == pid:
                cause = self._cause(kernel) if _killed(status) else ""
                if self._forker_end and not kernel.ready and kernel.how != "cold":
                    self.start_anew(kernel, status, cause)
                else:
                    kernel.exited(status, cause)

    def start_anew(self, kernel: GuestKernel, status: int = 1 << 8, cause: str = "") -> None:
        """Let a kernel go that was to be forked when the parent ended or fell silent; start another in its place, cold."""
        if kernel.closing:
            kernel.exited(status, cause)
            return
        number, kernel.number = kernel.number, 0
        kernel.exited(status, cause)
        if number:
            self._begin(self._starts[number], anew=True)

    def _cause(self, kernel: GuestKernel) -> str:
        """Say why a kernel was killed that we have not killed, where that is known for certain."""
        if self._forker_end and kernel.how != "cold":
            return f"the process that kernels are forked from {self._forker_end}, and its kernels ended with it"
        return self._memory.ran_out()

    def _parent_lost(self) -> None:
        """Start those anew that it was to fork: they were not forked yet, or are killed with it."""
        for kernel in list(self._all.values()):
            if kernel.how != "cold" and not kernel.ready:
                self.start_anew(kernel)

    def _reap(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(wake, 4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
                if not pid:
                    return
                mine = self.forker is not None and pid == self.forker.pid
                if os.WIFSTOPPED(status):
                    if mine and self.forker is not None:
                        self.forker.wake()
                    continue
                if mine and self.forker is not None:
                    self.forker.alive = False
                    self._forker_end = f"was killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "has ended"
                if not mine and pid not in self._own():
                    self.loop.later(0, self.kill_strangers)  # where one was there may be more
                self._exited(pid, status)

    # Orders

    def _carry_out(self, order: wire.Message) -> None:
        self._orders[type(order)](order)

    def _start(self, order: wire.Start) -> None:
        if order.kernel in self._cells:
            return
        self._cells[order.kernel] = 0
        self._begin(order)

    def _begin(self, order: wire.Start, *, anew: bool = False) -> None:
        """Give the host a kernel of that number: a spare, or a new one; `anew`: a spare only if it waits for no fork."""
        self._starts[order.kernel] = order
        self._spares.asked(order, 1 + sum(known.parent > 0 for known in self._kernels.values()))
        kernel = self._spares.take(ready=anew)
        if kernel is None:
            try:
                kernel = self._new("forked")
            except OSError as error:
                self.send(wire.StartFailed(order.kernel, f"its files could not be made ({error.strerror})"))
                return
        elif not kernel.ready and kernel.how == "spare":
            kernel.how = "forked"
        self._kernels[order.kernel] = kernel
        kernel.give(order)
        if kernel.ready:
            self._started(kernel)

    def _load(self, order: wire.Context) -> None:
        kernel = self._kernels.get(order.kernel)
        if kernel is None or kernel.cells.busy or not kernel.ready or not wire.FILE.fullmatch(order.path):
            self.send(wire.Loaded(order.kernel, order.load, "the kernel is not there, or busy"))
        elif failure := self._files.failure(order.path):
            self.send(wire.Loaded(order.kernel, order.load, failure))
        else:
            path = os.path.join(self._folder, order.path)
            if kernel.user is not None:
                with contextlib.suppress(OSError):  # where there is none the kernel says so
                    users.give(path, kernel.user)
            kernel.cells.load(order, path)

    def _inherit(self, order: wire.Inherit) -> None:
        kernel = self._kernels.get(order.kernel)
        if kernel is None or kernel.cells.busy or not kernel.ready:
            self.send(wire.Loaded(order.kernel, order.load, "the kernel is not there, or busy"))
            return
        parent = self._kernels.get(kernel.parent)
        found = parent.parcels.piece(order.parcel, order.place) if parent is not None else None
        if found is None:
            self.send(wire.Loaded(order.kernel, order.load, "its parent has not left it, or is gone"))
        else:
            kernel.cells.inherit(order, *found)

    def _bring(self, order: wire.Bring) -> None:
        if kernel := self._kernels.get(order.kernel):
            kernel.bring(order, self._kernels.get(kernel.parent))

    def _execute(self, order: wire.Execute) -> None:
        kernel = self._kernels.get(order.kernel)
        if kernel is None or not kernel.ready or kernel.cells.busy or order.cell <= self._cells[order.kernel]:
            return
        self._cells[order.kernel] = order.cell
        self._spares.busy()
        kernel.cells.execute(order.cell, order.data.decode("utf-8", "replace"))

    def _interrupt(self, order: wire.Interrupt) -> None:
        if kernel := self._kernels.get(order.kernel):
            kernel.interrupt()

    def _reply(self, order: wire.Reply) -> None:
        if kernel := self._kernels.get(order.kernel):
            kernel.cells.reply(order)

    def _value(self, order: wire.GetValue) -> None:
        if kernel := self._kernels.get(order.kernel):
            kernel.value(order.number, order.offset)

    def _lend(self, order: wire.LendValue) -> None:
        if kernel := self._kernels.get(order.kernel):
            self.send(wire.ValueLent(order.kernel, order.number, kernel.finals.sealed(order.number)))

    def _close(self, order: wire.Close) -> None:
        kernel = self._kernels.get(order.kernel)
        if kernel is None:
            self.send(wire.Closed(order.kernel))
        else:
            kernel.close()

    def _shutdown(self, order: wire.Shutdown | None = None) -> None:
        self.loop.stop()

    # The host's signs of life

    def _stdin(self) -> None:
        if not os.read(0, 4096):
            self._shutdown()

    def _beat(self) -> None:
        if self._host.gone():
            self._shutdown()
        self._memory.look()
        self.send(wire.Heartbeat())
        self.loop.later(self.settings.get("beat", HEARTBEAT_SECONDS), self._beat)


def _killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _pipe() -> tuple[int, int]:
    pipe = os.pipe()
    for fd in pipe:
        os.set_blocking(fd, False)
    return pipe

"""One IPython kernel as the supervisor holds it: its process, folders, sockets and pipes, from the start to the last trace.

What it is busy with is in `cells`. Nothing of a kernel outlives it: not what it started, not its files.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

from . import processes, users, wire
from .asks import AskConnection, AskListener
from .cells import Cells, execute_request
from .desk import Desk
from .finals import Finals
from .frames import Header
from .launch import Forker, Place, start_cold
from .loop import Loop
from .output import HALF
from .parcels import Parcels, Piece
from .pipes import OutputPipes
from .shell import ShellChannel
from .sources import PACKAGE, program

FORK_SECONDS = 10.0
"""How long a fork may take until the kernel parent is taken for lost; this kernel starts cold, and others until it answers."""


class Hub(Protocol):
    """What a kernel needs of its supervisor."""

    loop: Loop
    context: Any
    forker: Forker | None
    desk: Desk | None
    settings: dict[str, Any]

    def send(self, message: wire.Message) -> None: ...
    def gone(self, kernel: GuestKernel) -> None: ...
    def kill_strangers(self) -> None: ...
    def stop_all(self, pid: int) -> None: ...
    def pressed(self, resume: Callable[[], None]) -> bool: ...
    def came_up(self, kernel: GuestKernel) -> None: ...
    def start_anew(self, kernel: GuestKernel) -> None: ...


class GuestKernel:
    """A kernel. `number` is the host's name for it, 0 while it is a spare; `parent` its parent's, 0 where it has none."""

    def __init__(self, hub: Hub, slot: int, run: str, how: str) -> None:
        self.hub, self.slot, self.how = hub, slot, how
        self.number = self.parent = self.children = 0
        self.pid = 0
        self.python = ""
        self.ready = self.closing = self.dead = False
        self.failure = ""
        self.user = users.of(slot) if hub.settings.get("users") else None
        self.place = Place.make(run, slot, self.user)
        self._kill_notes: list[str] = []
        self.loop = hub.loop
        self.pipes = OutputPipes(hub.loop)
        self.cells = Cells(self)
        self._install = self._knock = ""
        self._settled = 0
        self._asks_with = secrets.token_hex(32)
        token = secrets.token_hex(32)
        path = self.place.sockets + ".ask"
        caps = hub.settings["caps"]
        self._listener = AskListener(hub, path, token, caps["message"] + (1 << 22), self._ask, self.cells.hung_up)
        if self.user is not None:
            os.chmod(path, 0o666)  # its token is what opens it
        self.finals = Finals(self.place.path("final"), caps["value"])
        self.parcels = Parcels(self.place.path("final"), caps["context"], late=hub.desk is not None)
        packages = hub.settings.get("packages", [])
        self._settings = {
            **caps,
            "packages": packages,
            "address": path,
            "token": token,
            "finals": self.place.path("final"),
            "output": HALF,
        }
        if hub.desk is not None:
            self._settings["enqueue"] = {"port": hub.desk.port, "token": self._asks_with}
        self._shell: ShellChannel | None = None
        self._deadline = hub.loop.later(hub.settings["start_seconds"], self._start_too_slow)
        self._launch()

    def _launch(self) -> None:
        writers = self.pipes.writers
        if self.user is not None:
            for writer in writers:
                os.fchown(writer, self.user, self.user)  # to be opened by its name, too
        forker = self.hub.forker
        try:
            asked = (self.slot, self.place, self._settings, writers, self._born)
            if self.how != "cold" and forker is not None and forker.fork(*asked):
                self.loop.later(self._patience, self._fork_too_slow)
            else:
                self.how = "cold"
                cold = self.hub.settings["cold"]
                boxed = self.hub.settings.get("box", False)
                self.pid = start_cold(cold["argv"], self.place, cold["env"], boxed, *writers)
                self._install = self.request("execute_request", execute_request(self._install_code(), silent=True))
        except (OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.hub.loop.later(0, lambda: self.exited(1 << 8))
        finally:
            self.pipes.close_writers()

    @property
    def _patience(self) -> float:
        seconds: float = self.hub.settings.get("fork_seconds", FORK_SECONDS)
        return seconds

    def _born(self, pid: int) -> None:
        if pid < 0:
            self.failure = "no further process is allowed, or no memory is left for it"
            self.exited(1 << 8)
            return
        self.pid = pid
        if self.closing:
            self.kill("")
        elif self.dead:
            processes.kill([pid])

    def _install_code(self) -> str:
        return f"{program()}\n__import__('sys').modules[{PACKAGE!r}].install(get_ipython(), {self._settings!r})\nNone"

    def request(self, kind: str, content: dict[str, Any]) -> str:
        """Send a request on the shell channel; the first one connects it."""
        if self._shell is None:
            address = f"ipc://{self.place.sockets}-1"
            self._shell = ShellChannel(self.hub.loop, self.hub.context, address, self.place.key, self._replied)
        try:
            return self._shell.request(kind, content)
        except ConnectionError:
            self.kill("its code has broken the connection on which it takes code")
            return ""

    # The host's orders

    def give(self, order: wire.Start) -> None:
        """Make a spare the host's kernel."""
        self.number, self.parent, self.children = order.kernel, order.parent, order.children
        self.finals.of_child = order.parent > 0
        if self.hub.desk is not None:
            self.hub.desk.admit(self.number, self._asks_with)

    def open_calls(self, cell: int) -> None:
        """Have the broker take calls for a cell that is about to begin."""
        self._settled = 0
        if self.hub.desk is not None:
            self.hub.desk.begin(self.number, cell)

    def settled(self, cell: int) -> bool:
        """Whether the broker holds no call of the cell any more, and takes none; `cells` is told when it is so."""
        if self.hub.desk is not None and self._settled == 0:
            self._settled = -cell
            self.hub.desk.settle(self.number, cell)
        return self.hub.desk is None or self._settled == cell

    def calls_settled(self, cell: int) -> None:
        """The broker has settled the calls of a cell."""
        if self._settled == -cell:
            self._settled = cell
            self.cells.settle()

    def release_calls(self, why: str) -> None:
        """Have the broker give up the calls that wait, and take no more for this cell."""
        if self.hub.desk is not None:
            self.hub.desk.release(self.number, why)

    def send(self, message: wire.Message) -> None:
        self.hub.send(message)

    def crowd(self) -> int:
        """Count the processes that descend from it."""
        return len(processes.descendants([self.pid]))

    def cut_off(self) -> int:
        """Give how many requests were cut off since this was asked last."""
        cut, self._listener.cut = self._listener.cut, 0
        return cut

    def interrupt(self) -> None:
        """Begin the kill ladder for what it does; a kernel that still starts is killed at once."""
        if self.ready:
            self.cells.interrupt()
        else:
            self.kill("killed while it started")

    def bring(self, order: wire.Bring, parent: GuestKernel | None) -> None:
        """Lay an answer ready for the parent; where either is gone, nothing lies there, and the parent is told so."""
        held = self.finals.give_away(order.number)
        if parent is None or parent.dead:
            if held is not None:
                os.close(held[1])
            return
        place = (order.call, order.place)
        if held is None:
            parent.parcels.miss(place)
        else:
            info, fd = held
            parent.parcels.put(place, (fd, Piece(info.form, 0, info.size, info.digest)))
        parent.cells.brought()

    def value(self, number: int, offset: int) -> None:
        self.hub.send(wire.ValuePart(self.number, number, offset, self.finals.piece(number, offset)))

    def close(self) -> None:
        self.closing = True
        if self.dead:
            self.hub.send(wire.Closed(self.number))
        else:
            self.kill("")

    def kill(self, note: str) -> None:
        """Kill the process, and have all that it started stand still meanwhile; that is killed when the process has ended.

        A fork cannot outrun a signal to its group, and a thousand processes that stand still do not delay the end of one.
        """
        if note:
            self._kill_notes.append(note)
        if self.pid and not self.dead:
            alone = not processes.has_children(self.pid)  # what it forks from now on is killed as a stranger when it has ended
            processes.kill([self.pid])
            processes.kill_group(self.pid, signal.SIGSTOP)
            if not alone:
                self.hub.stop_all(self.pid)

    # What the process does

    def _fork_too_slow(self) -> None:
        if not self.pid and not self.dead and self.hub.forker is not None:
            self.failure = f"the process that kernels are forked from has not answered for {self._patience:.0f} s"
            self.hub.forker.alive = False
            self.hub.start_anew(self)

    def _start_too_slow(self) -> None:
        self.failure = f"it did not answer within {self.hub.settings['start_seconds']:.0f} s"
        self.kill("")

    def exited(self, status: int, cause: str = "") -> None:
        """The process is gone; `status` as of waitpid, `cause` what the supervisor knows of a SIGKILL that is not its own."""
        if self.dead:
            return
        self.dead = True
        self._deadline.cancel()
        if self.pid:
            processes.kill_group(self.pid, signal.SIGKILL)
        self.hub.kill_strangers()
        if self.number and self.hub.desk is not None:
            self.hub.desk.forget(self.number)
        last: list[bytes] = []
        if not self.ready:
            self.pipes.drain(lambda stream, data: last.append(data))
        tail = b"".join(last)[-2000:].decode("utf-8", "replace").strip()
        notes = [*self.cells.died(), *self._kill_notes]
        if cause and not self._kill_notes:
            notes.append(cause)
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
        self.parcels.clear_left()
        self.parcels.clear_shelf()
        self.place.close_doors()
        try:
            threading.Thread(target=shutil.rmtree, args=(self.place.folder, True), daemon=True).start()
        except RuntimeError:  # no further thread is allowed
            shutil.rmtree(self.place.folder, True)

    # What its sockets say

    def _replied(self, request: str, content: dict[str, Any]) -> None:
        if self.dead:
            return
        if request == self._knock:
            self.place.close_doors()
        if not self.ready and request == self._install and content.get("status") == "error":
            self.failure = f"the REPL could not be set up in it: {content.get('ename')}: {content.get('evalue')}"[:2000]
            self.kill("")
        self.cells.replied(request, content)

    def _ask(self, connection: AskConnection, header: Header, body: bytes) -> None:
        if header.get("kind") == "ready" and not self.ready:
            self._became_ready(connection, header)
        elif header.get("kind") == "call" and self.hub.desk is not None:
            connection.close()  # they go to the broker
        else:
            self.cells.ask(connection, header, body)

    # What its code asks

    def _became_ready(self, connection: AskConnection, header: Header) -> None:
        self.ready = True
        self.python = str(header.get("python"))[:40]
        self._deadline.cancel()
        self.pipes.drain(lambda stream, data: None)
        connection.answer({})
        # Once this is answered we are connected, and nobody else needs to be. A spare has time to make its first cell this one.
        first = ("kernel_info_request", {}) if self.number else ("execute_request", execute_request("None", silent=True))
        self._knock = self.request(*first)
        self.hub.came_up(self)

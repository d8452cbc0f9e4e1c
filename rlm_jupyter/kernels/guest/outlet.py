"""What a cell puts out, on its way to the host: text as it comes, a few times a second, and pictures between it.

Text comes through the kernel's pipes and, of what is shown, by the kernel's own word; both are collected in one order. What was
written before the cell began is put before its own and called what it is. What is no output, or too much of it, is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import wire
from .frames import Header
from .loop import Loop
from .output import Keeper
from .pipes import OutputPipes

FLUSH_SECONDS = 0.02
EARLY_HALF = 8 * 1024


class Outlet:
    """The output of one cell.

    Parameters
    ----------
    kernel, cell
        Their numbers.
    loop, pipes
        Of the kernel.
    send
        How a report reaches the host.
    """

    def __init__(self, kernel: int, cell: int, loop: Loop, pipes: OutputPipes, send: Callable[[wire.Message], None]) -> None:
        self._kernel, self._cell = kernel, cell
        self._loop, self._pipes, self._send = loop, pipes, send
        self._keeper = Keeper()
        self._flushing: Any = None
        self._pictures = 0

    def open(self, early: Keeper) -> None:
        """Take what comes through the pipes from now on. `early`: what threads and children wrote since the last cell."""
        head, omitted, tail = early.finish()
        if head:
            self._keeper.add("stderr", b"[written after the cell before had ended:]\n")
            for stream, data in head:
                self._keeper.add(stream, data)
            if omitted:
                self._keeper.add("stderr", f"\n[... {omitted:,} bytes of it left out ...]\n".encode())
            for stream, data in tail:
                self._keeper.add(stream, data)
            self._keeper.add("stderr", b"\n[this cell:]\n")
            self._flush_soon()
        self._pipes.watch(self._put)

    def traceback(self, text: str) -> None:
        """Put a traceback that the kernel has not shown itself."""
        self._pipes.drain(self._put)
        self._keeper.add("error", text.encode("utf-8", "backslashreplace") + b"\n")

    def show(self, header: Header, body: bytes) -> bool:
        """Put what the kernel shows, `skipped` bytes of it left out behind the first `head`; whether that is such a thing."""
        stream, head, skipped = header.get("stream"), header.get("head"), header.get("skipped")
        if stream not in ("result", "display", "error"):
            return False
        if type(head) is not int or type(skipped) is not int or not 0 <= head <= len(body) or not 0 <= skipped < 2**53:
            return False
        self._pipes.drain(self._put)
        self._keeper.add(stream, body[:head])
        if skipped:
            self._keeper.skip(skipped)
        if body[head:]:
            self._keeper.add(stream, body[head:])
        self._flush_soon()
        return True

    def picture(self, body: bytes) -> None:
        """Send a picture, after what came before it."""
        if len(body) > wire.PICTURE_CAP:
            return
        self._pictures += 1
        if self._pictures <= wire.PICTURES_OF_A_CELL:
            self._pipes.drain(self._put)
            self._report(self._keeper.take(), 0, [])
            self._send(wire.Picture(self._kernel, self._cell, body))

    def finish(self) -> int:
        """Send all that is left; give how many bytes were left out."""
        self._pipes.drain(self._put)
        head, omitted, tail = self._keeper.finish()
        self._report(head, omitted, tail)
        return omitted

    def close(self) -> None:
        """Read the pipes no more."""
        if self._flushing is not None:
            self._flushing.cancel()
        self._pipes.unwatch()

    def _put(self, stream: str, data: bytes) -> None:
        self._keeper.add(stream, data)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flushing is None:
            self._flushing = self._loop.later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        self._report(self._keeper.take(), 0, [])

    def _report(self, head: list[tuple[str, bytes]], omitted: int, tail: list[tuple[str, bytes]]) -> None:
        for stream, data in head:
            self._send(wire.Output(self._kernel, self._cell, stream, 0, data))
        if omitted and not tail:
            tail = [("stdout", b"")]
        for stream, data in tail:
            self._send(wire.Output(self._kernel, self._cell, stream, omitted, data))
            omitted = 0

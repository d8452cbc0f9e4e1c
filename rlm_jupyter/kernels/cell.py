"""A cell as the host sees it: the pieces of output that it gives, and how it ended.

All of it comes from a kernel that nobody trusts. So text loses its terminal sequences, what claims to be a picture is looked
at first, and what is told of another cell is dropped. More than a supervisor lets through of one cell is a ProtocolError.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels.finals import Final
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.text import TextDecoder, plain
from rlm_jupyter.pictures import NoPicture, Picture, check
from rlm_jupyter.settings import OUTPUT_CAP

OnOutput = Callable[["Output"], None]


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a cell puts out. `stream`: stdout, stderr, result, display or error. Plain text, also of a picture."""

    stream: str
    text: str
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended. `status`: ok, error or interrupted. `omitted`: bytes of output not kept. `notes`: kill ladder steps.

    `final` is there only where the cell ended well; the answer of one that did not is the kernel's `candidate`.
    """

    status: str
    error: str
    omitted: int
    seconds: float
    final: Final | None
    notes: tuple[str, ...]


class Cell:
    """The cell that runs. `number` is its own among those of its kernel, from 1."""

    def __init__(self, number: int, on_output: OnOutput) -> None:
        self.number = number
        self._on_output = on_output
        self._started = time.monotonic()
        self._decoders: dict[str, TextDecoder] = {}
        self._received = 0
        self._pictures = 0

    def output(self, message: wire.Output) -> None:
        """Take a piece of text."""
        if message.cell != self.number:
            return
        self._received += len(message.data)
        if self._received > OUTPUT_CAP + 1024:
            raise ProtocolError("the supervisor sent more output of a cell than it may")
        if message.omitted:
            self._flush()
            self._on_output(Output(message.stream, f"\n[... {message.omitted:,} bytes of output left out ...]\n"))
        text = self._decoders.setdefault(message.stream, TextDecoder()).feed(
            message.data, message.stream in ("result", "display", "error")
        )
        if text:
            self._on_output(Output(message.stream, text))

    def picture(self, message: wire.Picture) -> None:
        """Take what should be a picture."""
        if message.cell != self.number:
            return
        self._pictures += 1
        if self._pictures > wire.PICTURES_OF_A_CELL:
            raise ProtocolError("the supervisor sent more pictures of a cell than it may")
        self._flush()
        try:
            picture = check(message.data)
        except NoPicture as reason:
            self._on_output(Output("display", f"[a picture is not shown: {reason}]\n"))
        else:
            self._on_output(Output("display", f"[a picture of {picture.width}x{picture.height}]\n", picture))

    def end(self, done: wire.Done, final: Final | None) -> CellResult:
        """Hand on what is left, and give the result."""
        seconds = time.monotonic() - self._started
        self._flush()
        return CellResult(done.status, plain(done.error), done.omitted, seconds, final, tuple(map(plain, done.notes)))

    def _flush(self) -> None:
        """Hand on what decoders still hold."""
        for stream, decoder in self._decoders.items():
            if text := decoder.feed(b"", final=True):
                self._on_output(Output(stream, text))
        self._decoders.clear()

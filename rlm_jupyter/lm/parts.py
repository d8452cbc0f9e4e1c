"""The text of a reply while it is streamed: told in pieces, and made void where the request is sent again."""

from __future__ import annotations

import time
from collections.abc import Callable

from rlm_jupyter import events
from rlm_jupyter.events import Emit, clip

PART_SECONDS = 0.05
"""Text of a stream is told at most this often."""


class Parts:
    """Collects the text of a stream and tells it in pieces, not more often than every `PART_SECONDS`."""

    def __init__(self, emit: Emit, node: str, iteration: int, on_text: Callable[[str], None] | None) -> None:
        self._emit, self._node, self._iteration, self._on_text = emit, node, iteration, on_text
        self._pieces: list[str] = []
        self._told = 0
        self._last = 0.0

    @property
    def text(self) -> str:
        """All that has come since the last beginning."""
        return "".join(self._pieces)

    def add(self, text: str) -> None:
        """Take a piece as it comes."""
        self._pieces.append(text)
        if time.monotonic() - self._last >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell what has not been told yet."""
        text = "".join(self._pieces[self._told :])
        if text and self._on_text is not None:
            self._on_text(text)
        elif text:
            self._emit(events.ReplyPart(node=self._node, iteration=self._iteration, text=clip(text)))
        self._told, self._last = len(self._pieces), time.monotonic()

    def restart(self) -> None:
        """Make void what has come so far."""
        if self._told:
            self._emit(events.ReplyRestarted(node=self._node, iteration=self._iteration))
        self._pieces.clear()
        self._told = 0

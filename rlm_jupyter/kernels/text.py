"""Raw output bytes of a hostile kernel -> plain text: UTF-8 decoded piece by piece, terminal sequences removed.

A character or a sequence may be cut by the border of two pieces; so each stream of a cell has a decoder of its own.
"""

from __future__ import annotations

import codecs
import re

_LONGEST = 4096
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM, APC with their strings
    r"|\x1b[ -/]*[0-Z\\-~]"  # the short ones
)
_REST = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")
_OPEN = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*\Z|\x1b[\]PX^_][^\x07\x1b\x9c]*\x1b?\Z|\x1b[ -/]*\Z|\r\Z")


def plain(text: str) -> str:
    """Remove terminal sequences and control characters other than tab, line feed and carriage return; end lines with one."""
    return _REST.sub("", _SEQUENCE.sub("", text)).replace("\r\n", "\n")


class TextDecoder:
    """One stream's text, in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """Give the text that is complete; with `final` all of it."""
        text = self._open + self._decoder.decode(data, final)
        self._open = ""
        if not final and (found := _OPEN.search(text, max(0, len(text) - _LONGEST))):
            self._open = text[found.start() :]
            text = text[: found.start()]
        return plain(text)

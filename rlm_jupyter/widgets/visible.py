"""Text of any origin as text that can be seen: nothing in it hides, moves or reorders what stands beside it.

A model, a kernel, a provider or a file wrote it. It refuses to judge it: every character is still there, written out where it
must be.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"


def visible(text: Any) -> str:
    """Give `text` with everything in it that hides, moves or reorders characters written out.

    Control characters are shown as `\\x1b`, so an ANSI sequence is text; bidirectional and zero-width characters, tags and
    lone surrogates as `\\u202e`. Newline and tab stay. Joiners stay inside
    words of the scripts, and inside the emoji, that need them.
    """
    if not isinstance(text, str):
        text = "" if text is None else str(text)
    return _UNSEEN.sub(_written_out, text.replace("\r\n", "\n"))


def _written_out(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    if char in _JOINERS and _joinable(match.string, match.start() - 1) and _joinable(match.string, match.start() + 1):
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _joinable(text: str, index: int) -> bool:
    if not 0 <= index < len(text) or text[index] < "\u0300":
        return False
    return unicodedata.category(text[index]) in ("Lo", "Mn", "Mc", "So", "Sk") and not _UNSEEN.match(text[index])


def one_line(text: Any, cap: int = 100) -> str:
    """Give the first `cap` characters of `text` as one visible line."""
    if not isinstance(text, str):
        text = visible(text)
    line = " ".join(visible(text[: 4 * cap]).split())
    return line if len(line) <= cap else line[: cap - 1].rstrip() + "…"


def last_line(text: str, cap: int = 160) -> str:
    """Give the last line of a reply that is streaming in."""
    tail = text[-4 * cap :].rstrip()
    line = visible(tail[tail.rfind("\n") + 1 :]).strip()
    return line if len(line) <= cap else "…" + line[1 - cap :]

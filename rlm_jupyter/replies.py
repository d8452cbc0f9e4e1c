"""An LM's reply -> the code to run and what else it asks for.

Only fenced code that is marked ``repl`` or ``python`` counts; what a model writes around it (also a REPL output that it made
up) is prose. `FINAL_VAR(name)` and `FINAL(text)` outside code are heard only where a reply holds no code at all. Nothing here
runs or guesses: a fence that was cut off is refused, not mended.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap

LANGUAGES = frozenset({"repl", "python"})

_OPENING = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})[ \t]*(?P<language>[^\s`]*)[^`]*$")
_THINKING = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_FINAL_VAR = re.compile(
    r"^[ \t>*`]*FINAL_VAR\(\s*(?P<quote>[\"'`]?)(?P<name>[A-Za-z_]\w*)(?P=quote)\s*\)[`*.]*[ \t]*$", re.MULTILINE
)
_FINAL = re.compile(r"^[ \t>*`]*FINAL\((?P<text>.*)\)[`*.]*\s*\Z", re.MULTILINE | re.DOTALL)
_TRIES = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What a reply asks for.

    Attributes
    ----------
    blocks
        The code to run, in order.
    cut
        The reply ended inside a code fence because of the token limit: that code is not among `blocks`.
    final_name, final_text
        `FINAL_VAR(name)` or `FINAL(text)` as plain text, in a reply without code.
    prose
        The reply without its code: the answer of last resort.
    """

    blocks: tuple[str, ...] = ()
    cut: bool = False
    final_name: str | None = None
    final_text: str | None = None
    prose: str = ""


def read(text: str, *, truncated: bool = False) -> Reply:
    """Read a reply.

    Parameters
    ----------
    text
        The reply as the LM wrote it.
    truncated
        Whether the LM was stopped by the token limit (`finish_reason` is `length`).
    """
    lines = _THINKING.sub("", text, count=1).split("\n")
    blocks: list[str] = []
    prose: list[str] = []
    cut = False
    place = 0
    while place < len(lines):
        opening = _OPENING.match(lines[place])
        if opening is None:
            prose.append(lines[place])
            place += 1
            continue
        end = _closing(lines, place, opening["ticks"])
        body = lines[place + 1 : end]
        runs = opening["language"].lower() in LANGUAGES
        if not runs:
            prose += lines[place : end + 1]
        elif end == len(lines) and truncated:
            cut = True
        elif code := _dedent(body, opening["indent"]):
            blocks.append(code)
        place = end + 1
    rest = "\n".join(prose).strip()
    if blocks or cut:
        return Reply(tuple(blocks), cut, prose=rest)
    if match := _FINAL_VAR.search(rest):
        return Reply(final_name=match["name"], prose=rest)
    if match := _FINAL.search(rest):
        return Reply(final_text=_unquote(match["text"].strip()), prose=rest)
    return Reply(prose=rest)


def _closing(lines: list[str], opening: int, ticks: str) -> int:
    """Give the line that closes the fence, or `len(lines)`.

    A line of backticks inside a string of the code closes nothing: where the code up to the first candidate is no Python
    but the code up to a later one is, the later one counts.
    """
    fence = re.compile(rf"^[ \t]*`{{{len(ticks)},}}[ \t]*$")
    candidates = [place for place in range(opening + 1, len(lines)) if fence.match(lines[place])]
    if not candidates:
        return len(lines)
    for place in candidates[:_TRIES]:
        if _is_python(textwrap.dedent("\n".join(lines[opening + 1 : place]))):
            return place
    return candidates[0]


def _is_python(code: str) -> bool:
    try:
        compile(code, "<reply>", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _dedent(body: list[str], indent: str) -> str:
    """Take the fence's own indentation off its lines (a fence in a list item is indented with its code)."""
    width = len(indent)
    if width and all(not line[:width].strip() for line in body):
        body = [line[width:] for line in body]
    code = "\n".join(body).rstrip()
    return code if code.strip() else ""


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
        return value if isinstance(value, str) else text
    return text

"""How a view reads a trace: a reply as prose and code, a cell's calls as groups, its output as segments.

It decides what belongs together and what is worth showing first, once for both views, and refuses to know how it is drawn.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterable, Sequence

from rlm_jupyter.tree import Call, Cell, Child, Iteration
from rlm_jupyter.widgets import words

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)$")
_CODE = ("repl", "python", "py", "python3", "ipython")
_LEFT_OUT = "characters left out ...]"


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a reply: prose, or code that did not run."""

    text: str
    is_code: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent output of a cell. `bad`: stderr or a traceback. `picture`: its number, where it is one to be drawn."""

    text: str
    bad: bool
    picture: int = 0


def _blocks(reply: str) -> list[tuple[str | None, str]]:
    """Split a reply into (None, prose) and (word after the fence, code)."""
    blocks: list[tuple[str | None, str]] = []
    lines: list[str] = []
    fence, info = "", ""
    for line in reply.replace("\r\n", "\n").split("\n"):
        match = _FENCE.match(line)
        if not fence and match:
            blocks.append((None, "\n".join(lines)))
            fence, info, lines = match[1], match[2].strip().lower(), []
        elif fence and match and match[1][0] == fence[0] and len(match[1]) >= len(fence) and not match[2].strip():
            blocks.append((info, "\n".join(lines)))
            fence, lines = "", []
        else:
            lines.append(line)
    blocks.append((info if fence else None, "\n".join(lines)))
    return blocks


def _same(code: str, ran: str) -> bool:
    first, second = (re.sub(r"[ \t]+$", "", text, flags=re.M).strip() for text in (code, ran))
    if first == second:
        return True
    return _LEFT_OUT in first + second and first[:100] == second[:100]


def pieces(iteration: Iteration) -> list[Piece]:
    """Give a reply without the code that ran (which is shown as cells): its prose, and code that did not run."""
    ran = [cell.code for cell in iteration.cells]
    found: list[Piece] = []
    prose: list[str] = []
    for info, text in _blocks(iteration.reply if isinstance(iteration.reply, str) else ""):
        if info is None:
            prose.append(text.strip("\n"))
        elif any(_same(text, code) for code in ran[:1]):
            ran.pop(0)
        elif info.split(" ")[0] in _CODE:
            found += [Piece("\n\n".join(filter(None, prose)))] if any(prose) else []
            found.append(Piece(text, is_code=True))
            prose = []
        else:
            prose.append(f"```{info}\n{text}\n```")
    if any(prose):
        found.append(Piece("\n\n".join(filter(None, prose))))
    return [piece for piece in found if piece.text.strip()]


def code_of(reply: str) -> list[str]:
    """Give the code in a reply that is in fences of the kind that run."""
    return [text for info, text in _blocks(reply) if info is not None and info.split(" ")[0] in _CODE]


def teaser(iteration: Iteration, cap: int = 110) -> str:
    """Give one line that tells an iteration from the others: the first line of its prose, else of its code."""
    for piece in pieces(iteration):
        for line in piece.text.split("\n"):
            if words.one_line(line.strip(" \t#*>-_=`"), cap):
                return words.one_line(line.lstrip(" \t#>").strip("*"), cap)
    for cell in iteration.cells:
        for line in cell.code.split("\n"):
            if line.strip(" #"):
                return words.one_line(line, cap)
    return "set-up code" if iteration.iteration == 0 else "no reply yet" if iteration.state == "asking" else "an empty reply"


def groups(cell: Cell) -> list[list[Call]]:
    """Give a cell's calls, those of one batch together, calls made singly as one group."""
    found: dict[str, list[Call]] = {}
    for call in cell.calls:
        found.setdefault(call.batch, []).append(call)
    return list(found.values())


def families(cell: Cell) -> list[list[Child]]:
    """Give a cell's children, those of one batch together, each of the others alone."""
    found: dict[str, list[Child]] = {}
    for child in cell.children:
        found.setdefault(f"batch {child.batch}" if child.batch else f"node {child.node}", []).append(child)
    return list(found.values())


def pictured(iterations: Iterable[Iteration]) -> list[int]:
    """Give the numbers of the pictures that the cells of some iterations, and of the children below them, made."""
    found: list[int] = []
    for iteration in iterations:
        for cell in iteration.cells:
            found += [output.picture for output in cell.outputs if output.picture]
            for child in cell.children:
                found += pictured(child.iterations)
    return found


def segments(cell: Cell, pictures: Container[int] = (), most: int = 12) -> list[Segment]:
    """Give a cell's output as at most about `most` segments, stdout and results apart from stderr and tracebacks.

    Each of `pictures`, by their numbers, is a segment of its own, and so is what follows it.
    """
    found: list[tuple[list[str], bool, int]] = []
    for output in cell.outputs:
        bad = output.stream in ("stderr", "error")
        if output.picture in pictures:
            found.append(([str(output.text)], False, output.picture))
        elif found and not found[-1][2] and (found[-1][1] == bad or len(found) >= most):
            before = found[-1][0]
            glue = "" if output.stream in ("stdout", "stderr") or not before or before[-1].endswith("\n") else "\n"
            before.append(glue + str(output.text))
        else:
            found.append(([str(output.text)], bad, 0))
    return [Segment(text, bad, picture) for texts, bad, picture in found if (text := "".join(texts).strip("\n")).strip()]


def fair(wanted: Sequence[int], room: int) -> list[int]:
    """Share `room` among the wishes: small ones are granted whole, large ones get equal parts."""
    granted, left = [0] * len(wanted), room
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for position, index in enumerate(order):
        granted[index] = min(wanted[index], left // (len(order) - position))
        left -= granted[index]
    return granted

"""The variables that the code has made in its kernel: SHOW_VARS lists them, FINAL_VAR finds one by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from .helper import Helper


class Variables(Helper):
    """The list of them; `ours` gives the names of our own globals that are not listed."""

    part = "variables"

    def __init__(self, ip: Any, ours: Callable[[], set[str]]) -> None:
        self._ip = ip
        self._ours = ours

    def SHOW_VARS(self) -> None:
        """Print the names, types and sizes of what the REPL holds."""
        hidden = self._ours()
        rows = [("name", "type", "size")]
        for name, value in sorted(self._ip.user_ns.items()):
            if name not in hidden and not name.startswith("_"):
                rows.append((name, type(value).__name__, _size(value)))
        if len(rows) == 1:
            print("no variables yet")
            return
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for row in rows:
            print(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip())


def lookup(name: str, frame: Any, ours: set[str]) -> Any:
    """Give the variable that a frame of the code means by a name; the NameError of one that is not there says what to type."""
    __tracebackhide__ = True
    if name in frame.f_locals:
        return frame.f_locals[name]
    if name in frame.f_globals:
        return frame.f_globals[name]
    known = [each for each in {*frame.f_locals, *frame.f_globals} - ours if not each.startswith("_")]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    shown = name if len(name) <= 60 else name[:60] + "..."
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise NameError(
        f"no variable is named {shown!r}.{hint} FINAL_VAR with a string literal takes the name of a variable; "
        "to give a text itself, assign it first: answer = ...; FINAL_VAR(answer)"
    )


def _size(value: Any) -> str:
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            return " x ".join(map(str, shape))
        if isinstance(value, str):
            return f"{len(value):,} characters"
        return f"{len(value):,} items" if hasattr(value, "__len__") and not isinstance(value, type) else ""
    except Exception:
        return ""

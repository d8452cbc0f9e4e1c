"""How a call that failed looks to the code in a kernel: an error, or in a batch the place of the item that failed."""

from __future__ import annotations

import sys
from typing import Any


class LMError(Exception):
    """A sub-LM call failed; the text says why. Another prompt, or a later attempt, may work."""


class FailedReply(str):
    """The place of a failed item in a batch: a str that starts with `Error: `; `error` is the reason alone."""

    error: str

    def __new__(cls, error: str) -> FailedReply:
        self = super().__new__(cls, f"Error: {error}")
        self.error = error
        return self

    def __reduce__(self) -> tuple[type[FailedReply], tuple[str]]:
        return FailedReply, (self.error,)


def warn_of_failures(outcomes: list[tuple[Any, bool]]) -> None:
    """Print one line of a batch in which some have failed."""
    failures = [place for place, (_, failed) in enumerate(outcomes) if failed]
    if failures:
        places = ", ".join(map(str, failures[:20])) + (", ..." if len(failures) > 20 else "")
        reason = outcomes[failures[0]][0]
        print(f"Warning: {len(failures)} of {len(outcomes)} calls failed, at [{places}]; the first: {reason}", file=sys.stderr)


def holds_failed_reply(value: Any) -> bool:
    """Tell whether a value is or holds the place of a failed call."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, FailedReply):
            return True
        if isinstance(item, (list, tuple, dict, set, frozenset)) and id(item) not in seen:
            seen.add(id(item))
            todo += [*item, *item.values()] if isinstance(item, dict) else item
    return False

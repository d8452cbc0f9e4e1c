"""What a run gives back: the answer, how it ended, what it took, and its trace. Shown in a notebook it draws the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_jupyter.events import Usage
from rlm_jupyter.trace import Trace

if TYPE_CHECKING:
    from rlm_jupyter.errors import RLMError


class Limit(str):
    """The name of the cap that ended a run, a text like any other. `used` of its `cap` was used up; `told` says it in words."""

    used: float
    cap: float
    told: str

    @classmethod
    def of(cls, name: str, used: float, cap: float, told: str) -> Limit:
        limit = cls(name)
        limit.used, limit.cap, limit.told = used, cap, told
        return limit


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RLMResult:
    """The outcome of a run, whole or partial. Equal to itself alone: what it holds, a DataFrame say, may have no plain answer.

    Attributes
    ----------
    response
        The answer as text; "" where there is none.
    value
        The answer with its type; None where there is none. Of a run that a limit, a stop or a failure ended it is the best
        there was: what the LM gave in a last request (after a limit), else the last FINAL_VAR of a cell that did not end well.
    status
        `answered`; `unmarked` (prose instead of FINAL_VAR after two nudges); `limit`; `stopped`; `failed`.
    limit
        The cap that ended the run (`max_calls`, `max_cost`, ...), or None. Its `.used`, `.cap` and `.told` say by how much.
    iterations, calls
        Turns of the root LM, a last request for the answer not counted; requests of every kind, retries included.
    usage, cost
        Tokens, and dollars (None where a price is not known) of the whole run.
    seconds
        From the start to the end.
    sandbox_seconds
        For how long a sandbox ran that somebody else bills (`trace.machine` says which); `cost` does not hold that. None
        where there was none.
    trace
        Everything that happened, as a tree.
    files
        What the code wrote in its working folder, by relative path; names are made safe, sizes are capped.
    error
        What went wrong, or None.
    """

    response: str
    value: Any
    status: str
    limit: Limit | None
    iterations: int
    calls: int
    usage: Usage
    cost: float | None
    seconds: float
    trace: Trace
    error: RLMError | None = None
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    sandbox_seconds: float | None = None

    def save_files(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `files` below `folder`, never over a file that is there; give their paths."""
        from rlm_jupyter.files import save

        return save(self.files, folder)

    def __repr__(self) -> str:
        text = self.response if len(self.response) <= 200 else self.response[:200] + "..."
        return f"RLMResult(status={self.status!r}, response={text!r}, iterations={self.iterations}, calls={self.calls})"

    def __str__(self) -> str:
        return self.response

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from rlm_jupyter.widgets.html import bundle
        from rlm_jupyter.widgets.view import Face

        return bundle(self.trace, face=Face(self.value))

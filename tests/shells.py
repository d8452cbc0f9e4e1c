"""A real IPython shell with the extension loaded, for tests of the magics."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from IPython.core.interactiveshell import InteractiveShell


@dataclass(frozen=True)
class Ran:
    """A cell that ran: what it printed (stdout and stderr) and the exception that ended it."""

    output: str
    error: BaseException | None


class Shell:
    """An IPython shell without a terminal."""

    def __init__(self) -> None:
        self.shell = InteractiveShell.instance()
        self.shell.colors = "nocolor"
        self.namespace: dict[str, Any] = self.shell.user_ns

    def run(self, cell: str) -> Ran:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            result = self.shell.run_cell(cell, store_history=False)
        return Ran(out.getvalue(), result.error_in_exec or result.error_before_exec)

    def complete(self, text: str) -> list[str]:
        """Give what is offered at the end of `text`."""
        return sorted(item.text for item in self.shell.Completer.completions(text, len(text)))


@contextlib.contextmanager
def open_shell() -> Iterator[Shell]:
    """Give a shell with the extension loaded; unloading it ends everything that it keeps."""
    InteractiveShell.clear_instance()
    shell = Shell()
    assert shell.run("%load_ext rlm_jupyter").error is None
    try:
        yield shell
    finally:
        shell.run("%unload_ext rlm_jupyter")
        InteractiveShell.clear_instance()

"""The panels of a notebook: `%rlm panel` opens one, and a cell that is run again opens it as it was.

What a panel needs of its notebook: the variables, the defaults, and a run for a cell's text, read as IPython and the magic
read it. The packages that draw a panel are imported when the first one is opened; where they are missing, one line says so.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from rlm_jupyter.completion import MODELS
from rlm_jupyter.errors import RLMError
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.settings import ENVIRONMENTS

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from rlm_jupyter.run import Run
    from rlm_jupyter.widgets.following import Started
    from rlm_jupyter.widgets.form import Variable
    from rlm_jupyter.widgets.panel import Panel
    from rlm_jupyter.widgets.view import Face

OPEN_CAP = 20
"""Panels that are open at once in a notebook whose front end does not name its cells; the oldest is closed for a new one."""

Aside = tuple["Run", "str | None", "Callable[[], tuple[str, Face]]"]
"""A run that was begun, the variable of `--out`, and what is to be done at its end, which gives a line and what to show."""
Begin = Callable[[str, str, Callable[[str], None]], Aside]
"""Begins the run of a magic's line and a cell's body."""


class Panels:
    """The panels of one shell, by the cells that they are in.

    Parameters
    ----------
    begin
        Starts the run of a `%%rlm` cell.
    defaults, factory
        Give the defaults in force and those of the extension, by the names of their traits.
    """

    def __init__(
        self, shell: InteractiveShell, begin: Begin, defaults: Callable[[], Mapping[str, Any]], factory: Mapping[str, Any]
    ) -> None:
        self._shell: Any = shell  # that of a kernel has more
        self._begin = begin
        self.defaults, self.factory = defaults, factory
        self.environments = ENVIRONMENTS
        self.models = (*MODELS, *(f"{row}/" for row in PROVIDERS))
        self._open: dict[str, Panel] = {}
        self._message: str | None = None
        self._ordinal = 0

    @property
    def latest(self) -> Panel:
        """The panel that was opened last."""
        return list(self._open.values())[-1]

    def open(self) -> None:
        """Open a panel in the cell that runs now."""
        from rlm_jupyter.widgets.displays import publish

        drawing = _drawing()
        if getattr(self._shell, "kernel", None) is None:
            raise UsageError("%rlm panel needs a notebook; here, write the question in a %%rlm cell: %%rlm? tells how")
        place = self._place()
        panel = drawing.Panel(self, publish, self._open.get(place))
        if not self._open:
            self._shell.events.register("post_run_cell", self._refresh)
        self._open.pop(place, None)
        self._open[place] = panel
        for oldest in list(self._open)[:-OPEN_CAP]:
            self._open.pop(oldest).close()
        panel.show()

    def _place(self) -> str:
        """Name the place of a panel: the cell, by what its front end calls it, and which panel of the cell's it is."""
        parent = self._shell.get_parent()
        message, cell = parent.get("header", {}).get("msg_id"), parent.get("metadata", {}).get("cellId")
        self._ordinal = self._ordinal + 1 if message == self._message else 1
        self._message = message
        return f"{cell or message} {self._ordinal}"

    def _refresh(self, *ran: Any) -> None:
        for panel in list(self._open.values()):
            panel.refresh()

    def close(self) -> None:
        """Close every panel; runs go on."""
        if self._open:
            self._shell.events.unregister("post_run_cell", self._refresh)
        for panel in self._open.values():
            panel.close()
        self._open.clear()

    # What a panel needs of its notebook

    def variables(self) -> list[Variable]:
        from rlm_jupyter.widgets.form import variables

        return variables(self._shell.user_ns, self._shell.user_ns_hidden)

    def start(self, cell: str, told: Callable[[str], None]) -> Started:
        from rlm_jupyter.widgets.following import Refused, Started

        try:
            run, out, finish = self._begin(*self._read(cell), told)
        except (UsageError, RLMError) as error:
            raise Refused(str(error)) from None
        except RuntimeError as error:  # a dict that another cell changes while it is read
            raise Refused(f"the context could not be read ({error}); press Run again") from None
        return Started(run.id, out or "", run.feed, run.stop, finish)

    def _read(self, cell: str) -> tuple[str, str]:
        """Give the line and the body that IPython would give to the magic."""
        call = ast.parse(self._shell.input_transformer_manager.transform_cell(cell), mode="eval").body
        assert isinstance(call, ast.Call)
        _, line, body = (ast.literal_eval(argument) for argument in call.args)
        return line, body


def _drawing() -> Any:
    try:
        from rlm_jupyter.widgets import panel
    except ImportError as error:
        raise UsageError(
            f"%rlm panel needs ipywidgets and anywidget ({error}); type %pip install ipywidgets anywidget, restart the kernel"
        ) from None
    return panel

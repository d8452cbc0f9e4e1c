"""The panel: a form of ipywidgets that writes a `%%rlm` cell and runs it in the background, with the run's view below it.

Three displays of the panel's cell: the form, and two for the run as `inline.py` shows it, which stay when the run is over. A
panel that rests has no thread; a run that it follows has one, which ends with the run. What the user sees is what runs: with
each press of Run the front end sends what all fields hold.

A form is alive only beside its kernel. `front/panel.js` leaves it out of what is saved and puts `at_rest` in its place, so that
no notebook is saved with a widget that nobody can show again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from uuid import uuid4

import anywidget
import ipywidgets
import traitlets

from rlm_jupyter.widgets.displays import Publish
from rlm_jupyter.widgets.fields import Fields
from rlm_jupyter.widgets.following import Following, Started
from rlm_jupyter.widgets.form import CAPS, Variable
from rlm_jupyter.widgets.live import open_channel, source
from rlm_jupyter.widgets.markup import CODE, MUTED, escape, page, say, tag
from rlm_jupyter.widgets.visible import one_line, visible

WIDGET = "application/vnd.jupyter.widget-view+json"
HELP = (
    "If no form is shown here, this front end has no ipywidgets: install ipywidgets where Jupyter runs, or write a %%rlm cell."
)
REST = "RLM panel: run this cell to open the form again. The %%rlm cell that is equal to it:"
TOLD_CAP = 300
"""Characters of a line that is shown below the buttons."""


class Notebook(Protocol):
    """What a panel needs of the notebook that it is in."""

    @property
    def factory(self) -> Mapping[str, Any]:
        """The defaults of the extension itself, by the names of their traits."""

    @property
    def environments(self) -> Mapping[str, str]:
        """Where code can run, and what each place keeps it from."""

    @property
    def models(self) -> Sequence[str]:
        """What is suggested for a model's name."""

    def defaults(self) -> Mapping[str, Any]:
        """Give the defaults in force, by the names of their traits."""

    def variables(self) -> Sequence[Variable]:
        """Give the variables that can be a context."""

    def start(self, cell: str, told: Callable[[str], None]) -> Started:
        """Start the run that a cell asks for; `Refused` where the magic would refuse it. `told` hears what takes long."""


class Keeper(anywidget.AnyWidget):
    """The panel's part in the front end: keys, names for screen readers, a new cell, and what is saved of the panel."""

    panel = traitlets.Unicode().tag(sync=True)
    fields = traitlets.Dict().tag(sync=True)
    rest = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        self._esm, self._css = source("panel.js"), source("panel.css")
        super().__init__()

    def open(self) -> None:
        """Open a line to the page on which it is heard also while a cell runs (see `channel`)."""
        if self.comm is None:  # type: ignore[has-type]  # a trait of ipywidgets
            self.comm = open_channel(self)


class Panel:
    """One form. `show` displays it, `close` takes it away; a run that it follows goes on.

    Parameters
    ----------
    notebook
        Where variables are from and runs are started.
    publish
        How what it shows reaches the cell.
    earlier
        The panel in whose place it comes: what was filled in there is filled in here, and its run is followed on.

    Attributes
    ----------
    fields, keeper, box
        What is filled in; the part in the front end; the widget that holds all.
    told
        What the line below the buttons says: of a run, or why there is none.
    """

    def __init__(self, notebook: Notebook, publish: Publish, earlier: Panel | None = None) -> None:
        self._notebook, self._publish, self._earlier = notebook, publish, earlier
        self._name = f"rlm-panel-{uuid4().hex[:16]}"
        self._lock = threading.RLock()
        self._closed = False
        self._following: Following | None = None
        self.told = ""
        self._make_buttons()
        self.keeper = Keeper()
        self.keeper.on_msg(self._heard)
        defaults, environments = notebook.defaults(), list(notebook.environments)
        self.fields = Fields(defaults, environments, list(notebook.models))
        self.fields.changed = self._changed
        self.box = self._arrange()
        self.keeper.fields = {name: widget.model_id for name, widget in self.fields.widgets.items()}
        self.keeper.panel = self.box.model_id
        self.refresh()
        self.fields.fill(earlier.fields.values() if earlier is not None else {})
        self._changed()

    def _make_buttons(self) -> None:
        self._run = ipywidgets.Button(description="Run", button_style="primary", tooltip="Run (Ctrl+Enter)")
        self._stop = ipywidgets.Button(description="Stop", disabled=True, tooltip="Stop the run")
        self._copy = ipywidgets.Button(description="Copy as cell", tooltip="Write the equal %%rlm cell below")
        self._look = ipywidgets.Button(description="Refresh", tooltip="Look for variables again")
        self._run.on_click(lambda button: self.run())
        self._stop.on_click(lambda button: self.stop())
        self._copy.on_click(lambda button: self.copy())
        self._look.on_click(lambda button: self.refresh())
        self._isolation, self._line = ipywidgets.HTML(), ipywidgets.HTML()
        self._copied = ipywidgets.Textarea(description="The equal cell", rows=4)
        self._copied.layout.display, self._copied.layout.width = "none", "auto"
        for widget, name in (
            (self._run, "run"),
            (self._stop, "stop"),
            (self._isolation, "isolation"),
            (self._line, "told"),
            (self._copied, "cell"),
        ):
            widget.add_class(f"rlm-panel-{name}")

    def _arrange(self) -> Any:
        fields = self.fields
        actions = ipywidgets.Box([self._run, self._stop, self._copy, self._look])
        actions.add_class("rlm-panel-actions")
        rows = [
            fields.widgets["question"],
            fields.grid("context", "path", "out"),
            fields.grid("model", "sub_model", "env"),
            self._isolation,
            fields.grid(*CAPS),
            fields.grid("base_url", "api_key_env", "other"),
            actions,
            self._line,
            self._copied,
            self.keeper,
        ]
        box = ipywidgets.VBox(rows)
        box.add_class("rlm-panel")
        return box

    def cell(self) -> str:
        """Give the equal cell."""
        return self.fields.form().cell(self._notebook.defaults(), self._notebook.factory)

    def at_rest(self) -> dict[str, str]:
        """Give what stands for the form where it cannot live: in a saved notebook."""
        cell = visible(self.cell())
        lines = tag("div", MUTED, say(REST)) + tag("pre", CODE, escape(cell.strip()))
        return {"text/html": "".join(map(str, page(*lines))), "text/plain": f"{REST}\n\n{cell}"}

    # What the user does

    def _heard(self, widget: Any, content: Any, buffers: Any) -> None:
        """Take a message of the front end's part: what to do, and what the fields hold there."""
        if not isinstance(content, dict) or self._closed:
            return
        with self._lock:
            if isinstance(held := content.get("values"), dict):
                self.fields.fill(held)
        match content.get("do"):
            case "run":
                self.run()
            case "stop":
                self.stop()
            case "refresh":
                self.refresh()

    def _changed(self) -> None:
        env = self.fields.widgets["env"].value
        self._isolation.value = say(f"{env} is {self._notebook.environments[env]}.")
        self._copied.value = self.cell()
        self.keeper.rest = self.at_rest()

    def run(self) -> None:
        """Start what is filled in, unless a run is under way."""
        with self._lock:
            if self._following is None and not self._closed:
                cell = self.cell()
                self._begun(None)
                self._following = Following(self, lambda told: self._notebook.start(cell, told))

    def stop(self) -> None:
        """Stop the run that it follows."""
        following = self._following
        if following is not None:
            following.stop()

    def copy(self) -> None:
        """Show the equal cell, and put it below the panel's where the front end can."""
        self._copied.layout.display = None
        self.keeper.send({"do": "cell", "cell": self.cell().rstrip("\n")})

    def refresh(self) -> None:
        """Look for the notebook's variables anew."""
        with self._lock:
            if not self._closed:
                self.fields.offer(self._notebook.variables())

    # What it shows

    def show(self) -> None:
        """Display the form, and below it what will show its runs; go on with the run of an earlier panel."""
        told = f"RLM panel: a form. {HELP}"
        plain = "".join(map(str, page(say(told))))
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        self._send("form", {WIDGET: view, "text/html": plain, "text/plain": told})
        for part in ("status", "page"):
            self._send(part, {"text/html": "", "text/plain": ""})
        if self._earlier is not None:
            self._take_over(self._earlier)
            self._earlier = None

    def _take_over(self, earlier: Panel) -> None:
        """Come in the place of another panel: go on with its run, and close it."""
        following = earlier._following
        if following is not None:
            with self._lock:
                self._following = following
                self._begun(following.started)
            if not following.move(self):
                self.over(earlier.told, False)
        earlier.close()

    def close(self) -> None:
        """Take the form away and leave what stands for it. A run that it follows goes on, and its result is bound."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._send("form", dict(self.at_rest()), update=True)
        for widget in _family(self.box):
            widget.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no run is followed; tell whether that is so."""
        following = self._following
        return following is None or following.wait(timeout)

    def _send(self, part: str, bundle: dict[str, Any], update: bool = False) -> None:
        self._publish(bundle, display_id=f"{self._name}-{part}", update=update)

    # Where a run is shown (`following.Place`)

    def send_part(self, bundle: dict[str, str], *, display_id: str, update: bool) -> None:
        """Show a part of a run's view in the display that the panel has for it."""
        self._send(display_id.rpartition("-")[2], dict(bundle), update=True)

    def tell(self, line: str, bad: bool = False) -> None:
        """Show a line below the buttons."""
        self.told, shown = line, say(one_line(line, TOLD_CAP))
        with self._lock:
            if not self._closed:
                self._line.value = f'<span class="rlm-panel-bad">{shown}</span>' if bad else shown

    def under_way(self, started: Started) -> None:
        """Show that a run can be stopped."""
        self._begun(started)

    def _begun(self, started: Started | None) -> None:
        with self._lock:
            if not self._closed:
                self._run.disabled, self._stop.disabled = True, started is None
        into = f", the result goes to {started.out}" if started is not None and started.out else ""
        self.tell(f"Run {started.id} under way{into}" if started is not None else "Starting")

    def over(self, line: str, bad: bool) -> None:
        """Show that the run has ended, or was refused, and what is to be said of it."""
        self.tell(line, bad)
        with self._lock:
            self._following = None
            if not self._closed:
                self._run.disabled, self._stop.disabled = False, True
                self.refresh()


def _family(widget: Any) -> Iterator[Any]:
    """Give a widget and all that it is made of."""
    for child in getattr(widget, "children", ()):
        yield from _family(child)
    yield from (getattr(widget, name) for name in ("layout", "style") if hasattr(widget, name))
    yield widget

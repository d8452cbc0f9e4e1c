"""The panel: its form and the equal cell are one truth, it runs beside the notebook, and nothing of it stays behind."""

from __future__ import annotations

import collections
import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas
import polars
import psutil
import pyarrow
import pytest
from IPython.core.error import UsageError
from ipywidgets.widgets import widget as ipywidgets_widget

from rlm_jupyter import RLMResult
from rlm_jupyter.magics import RLMMagics
from rlm_jupyter.options import parse
from rlm_jupyter.testing import Reply, ScriptedServer
from rlm_jupyter.widgets.fields import A_PATH, NO_CONTEXT
from rlm_jupyter.widgets.form import CAPS, Form, describe, variables
from rlm_jupyter.widgets.panel import WIDGET, Panel
from tests.models import answer, code
from tests.notebooks import Notebook, gone, notebook
from tests.shells import Shell, open_shell

SECONDS = 60.0


class Shown:
    """What panels display, by display id, in its latest state."""

    def __init__(self) -> None:
        self.displays: dict[str, dict[str, Any]] = {}

    def __call__(self, bundle: dict[str, Any], *, display_id: str, update: bool) -> None:
        assert (display_id in self.displays) == update, "what was not shown cannot be updated, and nothing is shown twice"
        self.displays[display_id] = bundle

    def part(self, number: int, part: str) -> str:
        """Give the HTML of a part of the panel that was shown as the `number`-th."""
        found = [bundle for name, bundle in self.displays.items() if name.endswith(f"-{part}")]
        return str(found[number]["text/html"])


class Desk:
    """A shell and the panels that are opened in it."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.shown = shell, Shown()
        self.magics: RLMMagics = shell.shell.magics_manager.registry["RLMMagics"]
        self.opened: list[Panel] = []

    def open(self, values: Mapping[str, str], earlier: Panel | None = None) -> Panel:
        panel = Panel(self.magics.panels, self.shown, earlier)
        self.opened.append(panel)
        panel.fields.fill(values)
        panel.show()
        return panel

    def settings(self, cell: str) -> Any:
        """Give the settings that the magic reads in a cell."""
        line, _ = self.magics.panels._read(cell)
        return self.magics.reader.settings(parse(RLMMagics.ask.parser, line))


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with open_shell() as shell:
        yield shell


@pytest.fixture
def desk(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Give the one shell as if it were new: its own variables, the defaults of the extension, no panel."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shell.shell.reset(new_session=False)
    shell.run("docs = ['alpha', 'beta']; hay = {'a.txt': 'straw\\n' * 50, 'b.txt': 'straw\\nthe needle is here\\n'}")
    shell.run("lines = (line for line in docs)")
    desk = Desk(shell)
    defaults = desk.magics._defaults()
    yield desk
    for panel in desk.opened:
        panel.stop()
        assert panel.wait(SECONDS)
        panel.close()
    for name, value in defaults.items():
        setattr(desk.magics, name, value)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rlm_jupyter panel"]


def server_values(server: ScriptedServer, **more: str) -> dict[str, str]:
    return {"base_url": server.url, "model": "root", "sub_model": "sub", "context": "docs", "question": "Who is first?", **more}


# The form and the cell

FORMS = [
    {},
    {"model": "demo", "context": "docs", "out": "found"},
    {"model": "demo", "context": A_PATH, "path": "docs"},
    {"model": "demo", "context": A_PATH, "path": "./a folder/**/*.md"},
    {"model": "root", "sub_model": "sub", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "MY_KEY", "env": "docker"},
    {"model": 'it\'s "quoted" $HOME \\ {{x}}', "out": ""},
    {"model": "demo", "other": "--max-concurrency 3 --no-trace --setup-code 'import json'"},
    {"model": "demo", **{name: next(iter(cap.choices(None))) for name, cap in CAPS.items() if name != "max_depth"}},
    {"model": "demo", "max_cost": "no cap", "max_tokens": "no cap", "max_calls": "10,000", "timeout": "4 h"},
]
DEFAULTS = ["pass", "%config RLMMagics.max_cost = 0.037\n%config RLMMagics.env = 'docker'\n%config RLMMagics.sub_model = 'x'"]


@pytest.mark.parametrize("config", DEFAULTS)
@pytest.mark.parametrize("values", FORMS)
def test_the_cell_is_read_as_the_form_says(desk: Desk, values: dict[str, str], config: str) -> None:
    desk.shell.run(config)
    panel = desk.open({"model": "demo"} | values)
    form, settings = panel.fields.form(), desk.settings(panel.cell())
    for name, given in (("model", form.model), ("sub_model", form.sub_model or None), ("base_url", form.base_url or None),
                        ("api_key_env", form.api_key_env or None), ("environment", form.env)):  # fmt: skip
        assert getattr(settings, name) == given, name
    for name, cap in form.caps.items():
        assert getattr(settings, name) == cap, name
    assert settings.cost_is_explicit == ("max_cost" in values and values["max_cost"] != "no cap")


def test_a_copied_cell_means_the_same_where_the_defaults_are_others(desk: Desk) -> None:
    desk.shell.run("%config RLMMagics.max_calls = 77\n%config RLMMagics.env = 'docker'")
    panel = desk.open({"model": "demo", "env": "local", "max_iterations": "5"})
    copied, meant = panel.cell(), desk.settings(panel.cell())
    desk.shell.run("%config RLMMagics.max_calls = 1000\n%config RLMMagics.env = 'local'")
    assert desk.settings(copied) == meant
    assert (meant.max_calls, meant.environment) == (77, "local")


QUESTIONS = [
    'Which file contains "needle is here"?',
    ">>> is this a prompt?\n>>> or this",
    "   leading blanks\n\n\ttab\n%%rlm --model gpt-5\n!ls $HOME {{docs}} ?\n'''\" \\ \u2028 \x0c \u202e end\n\n",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_run_and_the_copied_cell_start_the_same_run(desk: Desk, question: str) -> None:
    values = {"model": "demo", "context": "hay", "out": "found", "max_iterations": "8", "max_tokens": "500,000"}
    panel = desk.open(values | {"question": question})
    panel.run()
    assert panel.wait(SECONDS)
    ours = desk.shell.namespace.pop("found")
    ran = desk.shell.run(panel.cell() + "\n")
    theirs = desk.shell.namespace["found"]
    assert isinstance(ours, RLMResult)
    assert (ours.trace.question, ours.trace.settings) == (theirs.trace.question, theirs.trace.settings)
    assert (str(ours), ours.status) == (str(theirs), theirs.status), ran.output
    assert ours.trace.settings["max_iterations"] == 8


BAD = [
    {"question": ""},
    {"model": ""},
    {"model": "opanai/gpt-5"},
    {"model": "gpt-5-mini"},
    {"context": "dosc"},
    {"context": "lines"},
    {"context": A_PATH, "path": "none.txt"},
    {"context": A_PATH, "path": "-x"},
    {"out": "print"},
    {"base_url": "localhost:80"},
    {"other": "--modle x"},
    {"other": "'unclosed"},
    {"other": "more words"},
    {"question": "Who is {{nobody}}?"},
    {"max_cost": "$1.00", "base_url": "http://127.0.0.1:1/v1", "model": "m"},
]


@pytest.mark.parametrize("values", BAD)
def test_bad_input_is_the_magics_own_line_and_nothing_is_started(desk: Desk, values: dict[str, str], own_traces: Path) -> None:
    panel = desk.open({"model": "demo", "context": "docs", "question": "Who?", "out": "found"} | values)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    names = set(desk.shell.namespace)
    panel.run()
    assert panel.wait(SECONDS)
    line, body = desk.magics.panels._read(panel.cell())
    with pytest.raises(BaseException) as refused:  # noqa: PT011  # the cell's own refusal, whatever its class
        desk.magics.ask(line, body)
    assert panel.told == str(refused.value)
    assert panel.told.strip()
    assert "\n" not in panel.told
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    assert set(desk.shell.namespace) == names
    assert not list(own_traces.iterdir())
    assert desk.shown.part(0, "page") == ""
    assert watchers() == []


# Variables


class Meta(type):
    """A metaclass whose types answer nothing."""

    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError(f"the type's {name} was asked for")

    def __instancecheck__(cls, instance: Any) -> bool:
        raise AssertionError("isinstance was asked")

    def __subclasscheck__(cls, subclass: Any) -> bool:
        raise AssertionError("issubclass was asked")

    __hash__ = None  # type: ignore[assignment]


def hostile(kind: str) -> Any:
    """Give an object of a type whose every method fails."""

    def fail(self: Any, *args: Any, **named: Any) -> Any:
        raise AssertionError("the object was asked")

    methods = ("__len__", "__repr__", "__str__", "__iter__", "__getattribute__", "__eq__", "__bool__", "__hash__", "__sizeof__")
    return Meta("Hostile", {"dict": (dict,), "object": ()}[kind], dict.fromkeys(methods, fail))()


SIZED: Mapping[str, tuple[Any, str]] = {
    "text": ("x" * 2000, "str, 2,000 characters"),
    "raw": (b"12", "bytes, 2 bytes"),
    "items": ([1], "list, 1 item"),
    "pair": ((1, 2), "tuple, 2 items"),
    "table": ({"a": 1}, "dict, 1 item"),
    "few": ({1}, "set, 1 item"),
    "queue": (collections.deque("ab"), "deque, 2 items"),
    "counted": (collections.Counter("aab"), "Counter, 2 items"),
    "array": (numpy.zeros((300, 40)), "numpy.ndarray, 300 x 40"),
    "scalar": (numpy.array(3), "numpy.ndarray, 1 value"),
    "frame": (pandas.DataFrame({"a": range(3000), "b": 1}), "pandas.DataFrame, 3,000 rows, 2 columns"),
    "series": (pandas.Series([1, 2]), "pandas.Series, 2 rows"),
    "pl": (polars.DataFrame({"a": [1]}), "polars.DataFrame, 1 row, 1 column"),
    "arrow": (pyarrow.table({"a": [1, 2]}), "pyarrow.Table, 2 rows, 1 column"),
    "nothing": (None, "NoneType"),
    "number": (10**5000, "int"),
}


def test_variables_are_described_by_type_and_size_and_run_no_code_of_theirs() -> None:
    space: dict[str, Any] = {name: value for name, (value, _) in SIZED.items()}
    space |= {"evil": hostile("dict"), "worse": hostile("object"), "_hidden": 1, "In": [], "function": len, "kind": int}
    space |= {"module": numpy, "reader": iter([1]), "file": io.BytesIO(), "generator": (n for n in "ab"), "not a name": 1}
    told = {variable.name: variable.told for variable in variables(space, {"In"})}
    assert told == {name: said for name, (_, said) in SIZED.items()} | {"evil": "Hostile, 0 items", "worse": "Hostile"}
    assert list(told) == sorted(told)


def test_a_types_name_is_one_visible_line() -> None:
    assert describe(type("\u202e<img src=x>\n\x1b[31m" + "x" * 500, (), {})()).startswith("\\u202e<img src=x> \\x1b[31mxxx")
    assert len(describe(type("x" * 500, (), {})())) <= 60


def test_the_choice_of_a_variable_outlives_a_refresh_and_the_variable(desk: Desk) -> None:
    panel = desk.open({"model": "demo", "context": "docs", "question": "Who?"})
    field = panel.fields.widgets["context"]
    assert field.options == (NO_CONTEXT, "docs: list, 2 items", "hay: dict, 2 items", A_PATH)
    desk.shell.run("docs = docs + ['gamma']; late = 'x'")
    panel.refresh()
    assert field.options == (NO_CONTEXT, "docs: list, 3 items", "hay: dict, 2 items", "late: str, 1 character", A_PATH)
    assert field.value == "docs: list, 3 items"
    panel.fields.fill({"context": "docs: list, 2 items"})  # as a front end says that has not heard of it yet
    assert panel.fields.form().context == "docs"
    desk.shell.run("del docs")
    panel.run()
    assert panel.wait(SECONDS)
    assert panel.told.startswith("--context docs: no variable is named docs")
    assert field.value == "docs: not there any more"


def test_what_the_form_cannot_hold_is_left_out() -> None:
    form = Form(context="a\nb\u2028c", is_path=True, model="x\r\ny", question=" q ")
    factory = {"env": "local", "model": "", "sub_model": "", "base_url": "", "api_key_env": ""}
    assert form.cell(factory, factory) == "%%rlm --context 'a b c' --model 'x y'\nq\n"


# Runs


def test_stop_ends_a_cell_that_would_never_end(desk: Desk) -> None:
    with ScriptedServer(models={"root": [code("print('before')"), code("while True: pass")]}) as server:
        panel = desk.open(server_values(server, out="found"))
        panel.run()
        server.wait_for(2, ended=True)
        assert len(watchers()) == 1
        panel.run()  # while one is under way there is no second one
        assert len(watchers()) == 1
        panel.stop()
        assert panel.wait(SECONDS)
    result = desk.shell.namespace["found"]
    assert result.status == "stopped"
    assert panel.told == "Stopped; the result is in found"
    assert "before" in desk.shown.part(0, "page")
    assert "Stopped" in desk.shown.part(0, "status")
    assert watchers() == []


def test_panels_side_by_side_do_not_see_each_other(desk: Desk) -> None:
    turns: list[list[Reply | str]] = [[code("print('looked')"), Reply(answer(f"'answer {name}'"), hold=True)] for name in "ab"]
    with ScriptedServer(models={"root": turns[0]}) as one, ScriptedServer(models={"root": turns[1]}) as two:
        panels = [desk.open(server_values(one, out="a")), desk.open(server_values(two, out="b"))]
        for panel in panels:
            panel.run()
        for server in (one, two):
            server.wait_for(2)
        assert len(watchers()) == 2
        two.release()
        assert panels[1].wait(SECONDS)
        assert "a" not in desk.shell.namespace
        one.release()
        assert panels[0].wait(SECONDS)
    for number, name in enumerate("ab"):
        assert str(desk.shell.namespace[name]) == f"answer {name}"
        assert f"answer {name}" in desk.shown.part(number, "page")
        assert f"answer {'ba'[number]}" not in desk.shown.part(number, "page")


def test_a_panel_that_takes_anothers_place_has_its_values_and_its_run(desk: Desk) -> None:
    before = len(ipywidgets_widget._instances)
    with ScriptedServer(
        models={"root": [code("print('looked')"), code("print('again')"), Reply(answer(), hold=True)]}
    ) as server:
        first = desk.open(server_values(server, out="found", max_calls="50"))
        mine = len(ipywidgets_widget._instances) - before
        first.run()
        server.wait_for(3)
        second = desk.open({}, first)
        assert second.fields.values() == first.fields.values()
        assert len(watchers()) == 1
        server.release()
        assert second.wait(SECONDS)
    assert len(ipywidgets_widget._instances) - before == mine, "the first one is closed, and all that it was made of"
    assert str(desk.shell.namespace["found"]) == "done"
    assert "done" in desk.shown.part(1, "page")
    assert "done" not in desk.shown.part(0, "page")
    assert second.told == "Answered; the result is in found"
    second.fields.fill({"model": "demo", "sub_model": "", "base_url": "", "question": "Which is 'alpha'?"})
    second.run()
    assert second.wait(SECONDS)
    assert "alpha" in str(desk.shell.namespace["found"])
    second.close()
    assert len(ipywidgets_widget._instances) == before
    assert watchers() == []


def test_a_panel_that_is_closed_leaves_words_and_its_result(desk: Desk) -> None:
    with ScriptedServer(models={"root": [Reply(answer(), hold=True)]}) as server:
        panel = desk.open(server_values(server, out="found", question="<b>bold</b> & $x$"))
        panel.run()
        server.wait_for(1)
        panel.close()
        server.release()
        assert panel.wait(SECONDS)
    assert str(desk.shell.namespace["found"]) == "done"
    rest = next(bundle for name, bundle in desk.shown.displays.items() if name.endswith("-form"))
    assert WIDGET not in rest
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; $<b></b>x$<b></b>" in rest["text/html"]
    assert "<b>bold</b> & $x$" in rest["text/plain"]


# In a kernel, and where a panel cannot be

LATEST = "get_ipython().magics_manager.registry['RLMMagics'].panels.latest"


def message(book: Notebook, content: dict[str, Any]) -> None:
    """Send the panel that was opened last a message, as its part in the front end does."""
    comm = book.value(f"{LATEST}.keeper.model_id")
    data = {"method": "custom", "content": content}
    book.client.shell_channel.send(book.client.session.msg("comm_msg", {"comm_id": comm, "data": data}))


def test_in_a_kernel_a_message_runs_and_a_restart_leaves_nothing(tmp_path: Path) -> None:
    with (
        ScriptedServer(models={"root": [answer("context[0]"), code("while True: pass")]}) as server,
        notebook(tmp_path) as book,
    ):
        book.run("docs = ['alpha', 'beta']")
        opened = book.run("%rlm panel")
        assert opened.status == "ok", opened.traceback
        assert [sorted(display["data"]) for display in opened.displays] == [
            [WIDGET, "text/html", "text/plain"],
            ["text/html", "text/plain"],
            ["text/html", "text/plain"],
        ]
        assert "this front end has no ipywidgets" in opened.displays[0]["data"]["text/plain"]
        message(book, {"do": "run", "values": {**server_values(server, out="found"), "context": "docs: list, 2 items"}})
        assert book.value(f"{LATEST}.wait({SECONDS})") is True
        assert book.value("[str(found), found.status]") == ["alpha", "answered"]
        assert book.value("[t.name for t in __import__('threading').enumerate() if 'panel' in t.name]") == []
        book.run("docs = {'a': 1}; late = 'x'")
        shown = book.value(f"{LATEST}.fields.widgets['context'].options")
        assert shown[1:4] == ["docs: dict, 1 item", "found: RLMResult", "late: str, 1 character"]
        message(book, {"do": "run", "values": {}})
        server.wait_for(2, ended=True)
        started = book.descendants()
        assert started
        book.manager.restart_kernel(now=True)
        assert gone(started)


def test_where_a_panel_cannot_be_one_line_says_so(desk: Desk) -> None:
    ran = desk.shell.run("%rlm panel")
    assert isinstance(ran.error, UsageError)
    assert str(ran.error).startswith("%rlm panel needs a notebook; ")
    ran = desk.shell.run("%rlm panel wide")
    assert str(ran.error).startswith("what is 'wide'?")

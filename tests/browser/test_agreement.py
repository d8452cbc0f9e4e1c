"""One finished run, read back out of every rendering of it: they all tell the same facts, and the facts are the run's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import nbconvert
import nbformat
import pytest

from rlm_jupyter import events
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import export, html, text
from tests import facts
from tests.browser.front import mount, told
from tests.browser.lab import Browser, notebook, output_cell
from tests.facts import Facts
from tests.payloads import pictured, png
from tests.runs import ANSWER, PROBE, TRACEBACK, Script, fenced

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(180)]


def run() -> Trace:
    """Give a run with all there is: children in children, batches, failures, pictures; short enough for nothing to be cut."""
    script = Script().ask(fenced("Look at its shape.", PROBE)).run(PROBE, ("stdout", "<class 'dict'> 412\nacme 12044\n")).done()
    script.ask(fenced("A child for each.", "rlm_query_batched(qs)")).run("rlm_query_batched(qs)")
    script.child("Is the lease one?", "b").ask(fenced("I look.", "print(1)")).run("print(1)", ("stdout", "one\n")).call(
        1
    ).done()
    script.answered("The lease is one.")
    script.child("Is the supply contract one?", "b").ask(fenced("Deeper.", "rlm_query(q)")).run("rlm_query(q)")
    script.child("And its annex?").ask(fenced("Read.", "print(2)")).run("print(2)", ("stdout", "two\n")).done().answered("Not.")
    script.done().answered("The supply contract is none.")
    script.child("Is the third one?", "b").answered("", "failed", "KernelDied: the kernel is gone")
    script.done()
    script.ask(fenced("Ask in one batch.", "llm_query_batched(ps)")).run("llm_query_batched(ps)")
    for number in range(7):
        script.call(number, "c", "failed" if number == 3 else "ok", reply=f"Reply {number}:\nyes")
    script.add(events.CellOutput, cell=script.cell, stream="stderr", text="1 of 7 failed: item 4\n").done()
    script.ask(fenced("A plot.", "plot()")).run("plot()")
    script.add(events.CellOutput, cell=script.cell, stream="display", text="[a picture of 24x16]\n")
    script.events.append(dataclasses.replace(pictured(script.cell, png()), number=len(script.events)))
    script.done()
    script.ask(fenced("A typo.", "clause")).run("clause", ("error", TRACEBACK)).done(
        "error", "NameError: name 'clause' is not defined"
    )
    script.ask(fenced("Done.", "FINAL_VAR(answer)")).run("FINAL_VAR(answer)").done()
    return Trace.from_events(script.end(answer=ANSWER).events)


def exported(trace: Trace, folder: Path, browser: Browser) -> Facts:
    path = folder / "run.html"
    path.write_text(export.render(trace), encoding="utf-8")
    return facts.front(browser.open(path.as_uri()))


def converted(trace: Trace, folder: Path, browser: Browser) -> Facts:
    book = nbformat.reads(notebook([output_cell(html.bundle(trace))]), as_version=4)
    source, _ = nbconvert.HTMLExporter().from_notebook_node(book)
    return facts.at_rest(source)


def live(trace: Trace, folder: Path, browser: Browser) -> Facts:
    page = browser.open("about:blank")
    mount(page, messages=told(trace.events))
    return facts.front(page)


RENDERERS: dict[str, Callable[[Trace, Path, Browser], Facts]] = {
    "static": lambda trace, folder, browser: facts.at_rest(html.render(trace)),
    "text": lambda trace, folder, browser: facts.plain(text.render(trace)),
    "live": live,
    "export": exported,
    "nbconvert": converted,
}
"""Each rendering of a run by name, with what reads the facts back out of it."""


@pytest.mark.parametrize("name", RENDERERS)
def test_every_rendering_tells_the_same_facts(name: str, tmp_path: Path, browser: Browser) -> None:
    trace = run()
    wanted = facts.of(trace)
    assert (len(wanted.calls), len(wanted.children), wanted.pictures.total(), wanted.iterations.total()) == (8, 4, 1, 9)
    found = RENDERERS[name](trace, tmp_path, browser)
    for part in dataclasses.fields(Facts):
        assert getattr(found, part.name) == getattr(wanted, part.name), part.name

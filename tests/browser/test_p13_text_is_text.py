"""P13 in a real browser: whatever a run holds is text on the page, live, saved, reopened trusted and untrusted, and exported.

Chromium shows what a real JupyterLab renders. A control in each notebook proves that what we look for would be seen: a raw
payload that runs where a notebook is trusted, and mathematics that is typeset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
import pandas as pd
import pytest
from playwright.sync_api import Page

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import export, html, listing, markdown
from rlm_jupyter.widgets.view import Face
from tests import facts
from tests.browser.lab import Browser, Lab, notebook, output_cell
from tests.payloads import ATTRIBUTES, EVERYTHING, FORGED, PAYLOADS, TAGS, drawn, pictured, png, run_of
from tests.payloads import Page as Parsed
from tests.runs import Script

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600)]

TEXTS = [*(text for name, text in PAYLOADS.items() if not name.startswith("long")), EVERYTHING]
CONTROL = {"text/html": "<p class='control'>$x^2$</p>", "text/plain": "control"}
RAW = {"text/html": "<p class='control'>$x^2$</p><img src=x onerror='window.__control=1'>", "text/plain": "control"}
OURS = ".mathjax_ignore"
NODES = """() => [...document.querySelectorAll('.mathjax_ignore')].map(root => ({
  text: root.textContent,
  nodes: [root, ...root.querySelectorAll('*')].map(node => [node.localName, node.getAttributeNames()]),
  pictures: [...root.querySelectorAll('img')].map(node => [node.getAttribute('src'), node.alt]),
}))"""
OPEN_ALL = "() => document.querySelectorAll('.mathjax_ignore details').forEach(node => { node.open = true; })"
PWNED = "() => [window.__pwned, document.documentElement.getAttribute('__pwned')].filter(found => found != null)"


def forged() -> list[Event]:
    """Give a run with one true picture among those that are none, as a trace file may hold it."""
    script = Script().ask("```repl\nplot()\n```").run("1").run("plot()")
    script.events += [*list(FORGED.values())[:10], pictured(2, png()), *list(FORGED.values())[10:19]]
    return script.done().end(answer="x").events


def bundles() -> list[dict[str, str]]:
    """Give runs of which every text is a payload, one with markdown drawn, one with a table, and a list of runs."""
    traces = [Trace.from_events(stream) for stream in (forged(), *map(run_of, TEXTS))]
    drawn, table = Trace.from_events(run_of(EVERYTHING)), Trace.from_events(run_of(EVERYTHING))
    drawn.answer_type = "str"
    cells = pd.DataFrame({PAYLOADS["image"]: pd.Series(TEXTS, dtype=object)})
    faces = [html.bundle(drawn, face=Face(EVERYTHING, "markdown")), html.bundle(table, face=Face(cells))]
    return [*map(html.bundle, traces), *faces, listing.bundle(traces)]


def text_of(bundle: dict[str, str]) -> str:
    return Parsed(bundle["text/html"], more=markdown.TAGS).text


def settle(page: Page) -> None:
    """Wait until the outputs are drawn and what can be typeset is typeset, then open every row."""
    page.wait_for_selector(".control mjx-container", state="attached")
    page.evaluate(OPEN_ALL)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def squeezed(texts: Iterable[str]) -> str:
    """Give texts without white space: nbconvert's parser drops a text that is nothing else."""
    return "".join("".join(texts).split())


def check(page: Page, browser: Browser, expected: list[str], pictures: int) -> None:
    """Assert that the page shows our outputs as the text that they are, `pictures` of one kind, and that nothing came of it."""
    found: list[dict[str, Any]] = page.evaluate(NODES)
    assert squeezed(root["text"] for root in found) == squeezed(expected)
    for root in found:
        for tag, attributes in root["nodes"]:
            assert tag in TAGS | markdown.TAGS | {"tbody"}, f"<{tag}> in our output"
            assert set(attributes) <= ATTRIBUTES.keys(), f"{attributes} in our output"
    assert [drawn(*image) for root in found for image in root["pictures"]] == [png()] * pictures
    assert page.evaluate(PWNED) == []
    assert browser.dialogs == []
    assert browser.popups == []
    assert [url for url in browser.requests if "pwned" in url] == []


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "untrusted"])
def test_p13_a_saved_notebook_shows_text(lab: Lab, browser: Browser, trusted: bool) -> None:
    shown = bundles()
    name = f"saved-{trusted}.ipynb"
    lab.save(name, [output_cell(*shown, RAW)], trusted)
    page = lab.open(browser, name).page
    settle(page)
    assert (page.evaluate("() => window.__control") == 1) is trusted
    check(page, browser, [text_of(bundle) for bundle in shown], pictures=1)
    assert browser.foreign() == []


def test_p13_an_exported_page_shows_text(tmp_path: Path, browser: Browser) -> None:
    shown = bundles()
    exporter = nbconvert.HTMLExporter()
    urls = []
    for name, cells in (("empty", [output_cell(CONTROL)]), ("full", [output_cell(*shown, CONTROL)])):
        source, _ = exporter.from_notebook_node(nbformat.reads(notebook(cells), as_version=4))
        path = tmp_path / f"{name}.html"
        path.write_text(source, encoding="utf-8")
        before = len(browser.requests)
        page = browser.open(path.as_uri())
        page.wait_for_selector(".control", state="attached")
        page.evaluate(OPEN_ALL)
        page.wait_for_load_state("load")
        urls.append(sorted(browser.requests[before + 1 :]))
        if name == "full":
            check(page, browser, [text_of(bundle) for bundle in shown], pictures=1)
            urls[-1] = [url for url in urls[-1] if not url.startswith("data:image/png;base64,")]
    assert urls[0] == urls[1], "the export asks for what it would ask for without our outputs, and nothing else"


SHAPES = """() => [...new Set([...document.querySelectorAll('*')].map(
  node => [node.localName, ...node.getAttributeNames().sort()].join(' ')))].sort()"""


def test_p13_a_file_for_a_browser_shows_text(tmp_path: Path, browser: Browser) -> None:
    shapes: dict[str, set[str]] = {"plain": set(), "script": set()}
    script = Script().ask("```repl\nplot()\n```").run("plain").done().run("plot()")
    script.events.append(pictured(2, png()))
    plain = [run_of("plain"), run_of("plain\n" * 1000), script.done().end(answer="x").events]
    for word, streams in (("plain", plain), ("script", [run_of(EVERYTHING), forged()])):
        for number, stream in enumerate(streams):
            path = tmp_path / f"{word}{number}.html"
            path.write_text(export.render(Trace.from_events(stream)), encoding="utf-8")
            page = browser.open(path.as_uri())
            facts.front(page)
            page.get_by_role("button", name="Timeline").click()
            shapes[word] |= set(page.evaluate(SHAPES))
            page.get_by_role("searchbox").fill(word)
            page.get_by_text(re.compile(r"^\d+ found$")).wait_for()
            shapes[word] |= set(page.evaluate(SHAPES))
            assert page.evaluate(PWNED) == []
    assert shapes["script"] <= shapes["plain"], "what a run holds brings no element and no attribute"
    assert browser.dialogs == browser.popups == browser.foreign() == []
    assert all(url.startswith(("file:", "data:image/png;base64,")) for url in browser.requests)


LIVE = """import json, time
from rlm_jupyter.events import from_dict
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.html import HtmlView

view, trace = HtmlView(), Trace()
view.start(trace)
for line in open("events.jsonl", encoding="ascii"):
    event = from_dict(json.loads(line))
    trace.add(event)
    view.update(event)
    time.sleep(0.02)
view.finish()
from IPython.display import display
display({"text/html": "<p class='control'>$x^2$</p>", "text/plain": "control"}, raw=True)"""


def test_p13_a_live_run_shows_text_and_is_saved_as_text(lab: Lab, browser: Browser) -> None:
    stream = run_of(EVERYTHING)
    (lab.folder / "events.jsonl").write_text("".join(event.to_json() + "\n" for event in stream), encoding="ascii")
    lab.save("live.ipynb", [nbformat.v4.new_code_cell(LIVE)], trusted=True)
    opened = lab.open(browser, "live.ipynb")
    opened.run(0)
    page = opened.page
    settle(page)
    expected = [Parsed(html.render(Trace.from_events(stream))).text]
    check(page, browser, expected, pictures=0)
    outputs = opened.save().cells[0].outputs
    assert [sorted(output["data"]) for output in outputs] == [["text/html", "text/plain"]] * 3
    assert "".join(Parsed("".join(output["data"]["text/html"])).text for output in outputs[:2]) == expected[0]
    assert browser.foreign() == []

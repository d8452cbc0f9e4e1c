"""The magic itself in a real JupyterLab: seen live in a widget, stopped by its button or the notebook's, saved without it."""

from __future__ import annotations

import json

import nbformat
import pytest
from playwright.sync_api import Page

from rlm_jupyter.testing import Reply, ScriptedServer
from tests.browser.ipykernels import HEARING, VERSIONS
from tests.browser.lab import Browser, Lab, OpenNotebook
from tests.models import answer, code

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600)]
each_ipykernel = pytest.mark.parametrize("lab", VERSIONS, indirect=True)


def start(lab: Lab, browser: Browser, name: str, server: ScriptedServer) -> OpenNotebook:
    """Open a notebook with a magic cell and start to run that."""
    magic = f"%%rlm --context docs --base-url {server.url} --model root --sub-model sub --out result\nWho is first?"
    sources = ("%load_ext rlm_jupyter\ndocs = ['alpha', 'beta']", magic)
    lab.save(name, [nbformat.v4.new_code_cell(source) for source in sources], trusted=True)
    opened = lab.open(browser, name)
    opened.run(0)
    opened.start(1)
    return opened


@each_ipykernel
def test_a_run_is_seen_live_and_saved_as_static_html(lab: Lab, browser: Browser, hears: bool) -> None:
    turns: list[Reply | str] = [
        code("print('looked at', context)"),
        Reply("Thinking about it " * 30, pause=0.05),
        Reply(answer("context[0]"), hold=True),
    ]
    with ScriptedServer(models={"root": turns}) as server:
        opened = start(lab, browser, "magic-live.ipynb", server)
        live = opened.page.locator(".rlm-live")
        if hears:
            live.get_by_text("Thinking about it").first.wait_for()
            live.get_by_text("iteration 3 of 30").wait_for()
            live.get_by_role("treeitem", name="Iteration 1").click()
            live.get_by_text("looked at ['alpha', 'beta']").wait_for()
            live.get_by_role("searchbox").fill("Thinking about it")
            live.get_by_text("1 found").wait_for()
            live.get_by_role("searchbox").press("Escape")
            live.get_by_role("treeitem", name="Iteration 3").press("ArrowUp")
        else:
            opened.page.get_by_text("Thinking about it").first.wait_for()
            opened.page.get_by_text("iteration 3 of 30").wait_for()
            opened.page.locator("details summary").first.wait_for()
            assert live.count() == 0
        server.release()
        opened.page.get_by_text("Answered").first.wait_for()
        assert opened.ended() == "ok"
        assert live.count() == 0
        book = opened.save()
    outputs = book.cells[1].outputs
    text = json.dumps(outputs)
    assert [sorted(output["data"]) for output in outputs] == [["text/html", "text/plain"]] * 2
    assert "alpha" in text
    assert "widget" not in json.dumps(book)
    for trusted in (True, False):
        name = f"magic-live-{trusted}.ipynb"
        lab.save(name, book.cells, trusted=trusted)
        reopened = lab.open(browser, name).page
        reopened.get_by_text("Answered").first.wait_for()
        assert reopened.get_by_text("Error displaying widget").count() == 0
    assert browser.foreign() == []


@pytest.mark.parametrize("lab", HEARING, indirect=True)
def test_the_views_own_stop_button_stops_a_cell_that_blocks(lab: Lab, browser: Browser) -> None:
    with ScriptedServer(models={"root": [code("print('before')"), code("while True: pass")]}) as server:
        opened = start(lab, browser, "magic-own-stop.ipynb", server)
        live = opened.page.locator(".rlm-live")
        live.get_by_text("iteration 2 of 30").wait_for()
        server.wait_for(2, ended=True)
        live.get_by_role("button", name="Stop").click()
        opened.page.get_by_text("RunStopped").first.wait_for()
        assert opened.ended() == "error"
        text = json.dumps(opened.save().cells[1].outputs)
    assert "before" in text
    assert "Stopped" in text


@each_ipykernel
def test_the_notebooks_stop_button_stops_a_run(lab: Lab, browser: Browser) -> None:
    with ScriptedServer(models={"root": [code("print('before')"), code("while True: pass")]}) as server:
        opened = start(lab, browser, "magic-stop.ipynb", server)
        page = opened.page
        page.get_by_text("iteration 2 of 30").first.wait_for()
        server.wait_for(2, ended=True)
        page.locator("[data-command='notebook:interrupt-kernel'], button[title^='Interrupt']").first.click()
        page.get_by_text("Stopped").first.wait_for()
        page.get_by_text("RunStopped").first.wait_for()
        assert opened.ended() == "error"
        text = json.dumps(opened.save().cells[1].outputs)
    assert "before" in text


PLOT = """import matplotlib.pyplot as plt
plt.figure(figsize=(3, 2), dpi=100)
plt.plot([1, 3, 2])
plt.show()"""
FORGED = "from IPython.display import SVG\ndisplay(SVG('<svg onload=alert(1) id=forged></svg>'))"
ROWS, BELOW, LIVE = ".mathjax_ignore details img", ".jp-RenderedImage img", ".rlm-live img"


@each_ipykernel
def test_a_plot_is_seen_in_its_row_live_and_in_the_saved_notebook_also_untrusted(
    lab: Lab, browser: Browser, hears: bool
) -> None:
    turns: list[Reply | str] = [code(PLOT), Reply(code(FORGED), hold=True), answer("1")]
    with ScriptedServer(models={"root": turns}) as server:
        opened = start(lab, browser, "magic-plot.ipynb", server)
        page = opened.page
        page.get_by_text("iteration 2 of 30").first.wait_for()
        if hears:
            page.locator(".rlm-live").get_by_role("treeitem", name="Iteration 1").click()
            seen(page, LIVE)
        assert page.locator(BELOW).count() == 0
        server.release()
        page.get_by_text("Answered").first.wait_for()
        shown_at_the_end(page)
        assert opened.ended() == "ok"
        book = opened.save()
    shown = [sorted(output["data"]) for output in book.cells[1].outputs]
    assert shown == [["text/html", "text/plain"]] * 2 + [["image/png", "text/plain"]]
    for trusted in (True, False):
        name = f"magic-plot-{trusted}.ipynb"
        lab.save(name, book.cells, trusted=trusted)
        reopened = lab.open(browser, name).page
        reopened.get_by_text("Answered").first.wait_for()
        shown_at_the_end(reopened)
    assert browser.foreign() == []


def shown_at_the_end(page: Page) -> None:
    """Check that the one picture is below the run, and in its row when that is opened."""
    seen(page, BELOW)
    row = page.locator(".mathjax_ignore details summary").first
    assert "1 picture" in row.inner_text()
    row.click()
    seen(page, ROWS)


def seen(page: Page, where: str) -> None:
    """Wait for the one picture of a run, and check that it is drawn, and that no other came."""
    picture = page.locator(where)
    picture.wait_for()
    assert picture.count() == 1
    assert picture.evaluate("image => image.decode().then(() => [image.naturalWidth > 150, image.clientWidth > 100])") == [
        True,
        True,
    ]
    assert page.locator("#forged").count() == 0

"""The panel in a real JupyterLab: from the choice of a variable to the answer, stopped, copied, opened again, and at rest."""

from __future__ import annotations

import json

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect

from rlm_jupyter.testing import Reply, ScriptedServer
from tests.browser.lab import DEADLINE, OPEN, Browser, Lab, OpenNotebook
from tests.models import answer, code

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600)]

SET_UP = """%load_ext rlm_jupyter
docs = ['alpha', 'beta']
odd = type('<img src=x onerror=alert(1)>$\\\\href{javascript:alert(2)}{x}$', (), {})()"""
BLOCK = """import time
while 'found' not in globals():
    time.sleep(0.02)"""
SOURCES = (SET_UP, "%rlm panel", "late = 'x' * 3", "print('bound:', found, found.status)", BLOCK)
BLOCKING = len(SOURCES) - 1
ODD = "odd: <img src=x onerror=alert(1)>$\\href{javascript:alert(2)}{x}$"


def fill(page: Page, server: ScriptedServer) -> None:
    """Fill in the form, by what its fields are called."""
    page.get_by_label("Question").fill("Who is first?")
    page.get_by_label("Context").select_option(label="docs: list, 2 items")
    page.get_by_label("Result into variable").fill("found")
    page.get_by_label("Model", exact=True).fill("root")
    page.get_by_label("Server (base URL)").fill(server.url)
    page.get_by_label("Iterations").press("ArrowLeft")


def form(page: Page) -> Locator:
    return page.get_by_role("form", name="Recursive Language Model")


def pressed(page: Page, name: str) -> None:
    form(page).get_by_role("button", name=name, exact=True).click()


def seen(page: Page, text: str) -> None:
    expect(page.get_by_text(text).first).to_be_visible(timeout=1000 * DEADLINE)


def test_the_panel_from_choice_to_answer_and_at_rest(lab: Lab, browser: Browser) -> None:
    lab.save("panel.ipynb", [nbformat.v4.new_code_cell(source) for source in SOURCES], trusted=True)
    turns: list[Reply | str] = [
        code("print('before')"),
        code("while True: pass"),
        Reply(answer("context[0] + ' is first'"), hold=True),
    ]
    with ScriptedServer(models={"root": turns}) as server:
        book = lab.open(browser, "panel.ipynb")
        book.run(0)
        book.run(1)
        page = book.page
        fill(page, server)
        seen(page, "local is not isolated: the code runs with your own rights on this machine.")
        stop_a_run_whose_cell_does_not_end(book, server)
        page.get_by_label("Question").press("Control+Enter")
        server.wait_for(3)
        book.run(2)  # the kernel is free while the run goes on, and what its cells make is offered
        expect(page.get_by_label("Context").locator("option")).to_have_text(
            ["none: the question is all there is", "docs: list, 2 items", "found: RLMResult", "late: str, 3 characters", ODD,
             "a path, a folder or a glob"], timeout=1000 * DEADLINE
        )  # fmt: skip
        server.release()
        seen(page, "Answered; the result is in found")
        seen(page, "alpha is first")
        book.run(3)
        seen(page, "bound: alpha is first answered")
        cell = copied(page)
        assert (
            cell == f"%%rlm --context docs --model root --base-url {server.url} --max-iterations 20 --out found\nWho is first?"
        )
        at_rest(lab, browser, book, cell)
        book.run(1)  # the panel's cell once more: the form is as it was
        expect(page.get_by_label("Question")).to_have_value("Who is first?", timeout=1000 * DEADLINE)
        expect(page.get_by_label("Context")).to_have_value("docs: list, 2 items", timeout=1000 * DEADLINE)
    assert browser.foreign() == []
    assert browser.dialogs == []


def stop_a_run_whose_cell_does_not_end(book: OpenNotebook, server: ScriptedServer) -> None:
    """Stop it while a cell of the notebook's blocks the kernel, which ends only when the result is there."""
    page = book.page
    pressed(page, "Run")
    server.wait_for(2, ended=True)
    seen(page, "iteration 2 of 20")
    book.start(BLOCKING)
    pressed(page, "Stop")
    seen(page, "Stopped; the result is in found")
    assert book.ended() == "ok"
    expect(form(page).get_by_role("button", name="Run", exact=True)).to_be_enabled(timeout=1000 * DEADLINE)


def copied(page: Page) -> str:
    """Copy the form as a cell; give the cell that came below, which holds what the form shows."""
    pressed(page, "Copy as cell")
    expect(page.locator(".jp-CodeCell")).to_have_count(len(SOURCES) + 1, timeout=1000 * DEADLINE)
    source = str(page.evaluate("() => window.__panel.content.widgets[2].model.sharedModel.source"))
    assert page.get_by_label("The equal cell").input_value() == f"{source}\n"
    return source


def at_rest(lab: Lab, browser: Browser, book: OpenNotebook, cell: str) -> None:
    """Save the notebook, and look at it again with another kernel, trusted and not: the facts are there, the form is not."""
    saved = book.save()
    assert book.page.locator(".rlm-panel").count() == 1, "the form stays where it is used"
    outputs = saved.cells[1].outputs
    assert [sorted(output["data"]) for output in outputs] == [["text/html", "text/plain"]] * 3
    assert cell in outputs[0]["data"]["text/plain"]
    assert "widget" not in json.dumps([*outputs, saved.metadata])
    for trusted in (True, False):
        name = f"panel-{trusted}.ipynb"
        lab.save(name, saved.cells, trusted=trusted)
        book.ask(OPEN, name)
        again = book.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        expect(again.get_by_text("run this cell to open the form again")).to_be_visible(timeout=1000 * DEADLINE)
        expect(again.get_by_text("alpha is first").first).to_be_visible(timeout=1000 * DEADLINE)
        assert again.locator(".rlm-panel").count() == 0
        assert book.page.get_by_text("Error displaying widget").count() == 0
    book.ask(OPEN, book.path.name)

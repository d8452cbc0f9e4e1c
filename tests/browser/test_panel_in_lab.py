"""The panel in a real JupyterLab and Notebook 7: from the choice of a variable to the answer, stopped, copied, at rest."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect

from rlm_jupyter.testing import Reply, ScriptedServer
from tests.browser.ipykernels import VERSIONS
from tests.browser.lab import DEADLINE, OPEN, Browser, Lab, OpenNotebook, jupyter_lab
from tests.models import answer, code

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600)]
each_ipykernel = pytest.mark.parametrize("lab", VERSIONS, indirect=True)

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


@each_ipykernel
def test_the_panel_from_choice_to_answer_and_at_rest(lab: Lab, browser: Browser, hears: bool) -> None:
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
        stop_a_run_whose_cell_does_not_end(book, server, hears)
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


def stop_a_run_whose_cell_does_not_end(book: OpenNotebook, server: ScriptedServer, hears: bool) -> None:
    """Stop it, where it is heard while a cell of the notebook's blocks the kernel, which ends only when the result is there."""
    page = book.page
    pressed(page, "Run")
    server.wait_for(2, ended=True)
    seen(page, "iteration 2 of 20")
    if hears:
        book.start(BLOCKING)
    pressed(page, "Stop")
    seen(page, "Stopped; the result is in found")
    if hears:
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


AXE = """() => axe.run('.rlm-panel', {runOnly: {type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']}}).then(
  found => found.violations.flatMap(rule => rule.nodes.map(node => [rule.id, node.html.slice(0, 200)])))"""
THEME = "async name => { await window.jupyterapp.commands.execute('apputils:change-theme', {theme: name}); }"


@each_ipykernel
def test_the_panel_in_notebook_7_on_light_and_dark(lab: Lab, browser: Browser) -> None:
    lab.save("panel-seven.ipynb", [nbformat.v4.new_code_cell(source) for source in SOURCES[:2]], trusted=True)
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    turns: list[Reply | str] = [code("print('before')"), Reply(answer("context[1] + ' is last'"), hold=True)]
    with ScriptedServer(models={"root": turns}) as server:
        book = lab.open_in_notebook(browser, "panel-seven.ipynb")
        book.run(0)
        book.run(1)
        page = book.page
        fill(page, server)
        page.evaluate(f"() => {{ {axe} }}")
        try:
            for theme in ("JupyterLab Dark", "JupyterLab Light"):
                book.ask(THEME, theme)
                expect(page.locator(f"body[data-jp-theme-name='{theme}']")).to_be_attached(timeout=1000 * DEADLINE)
                assert page.evaluate(AXE) == [], theme
        finally:
            book.ask(THEME, "JupyterLab Light")
        page.get_by_label("Question").press("Control+Enter")
        server.wait_for(2)
        seen(page, "iteration 2 of 20")
        assert page.evaluate(AXE) == [], "while a run goes on"
        server.release()
        seen(page, "Answered; the result is in found")
        seen(page, "beta is last")
        pressed(page, "Copy as cell")
        expect(page.locator(".jp-CodeCell")).to_have_count(3, timeout=1000 * DEADLINE)
        saved = book.save()
    assert "beta is last" in json.dumps(saved.cells[1].outputs)
    assert "widget" not in json.dumps([*saved.cells[1].outputs, saved.metadata])
    assert browser.foreign() == []
    assert browser.dialogs == []


@pytest.mark.matrix
def test_without_ipywidgets_in_the_front_end_one_line_says_so_and_runs_are_seen_all_the_same(
    tmp_path: Path, browser: Browser
) -> None:
    config = tmp_path / "jupyter_config_dir" / "labconfig"
    config.mkdir(parents=True)
    (config / "page_config.json").write_text('{"disabledExtensions": {"@jupyter-widgets/jupyterlab-manager": true}}')
    ask = "%%rlm --context docs --model root --base-url {url}\nWho is first?"
    with jupyter_lab(tmp_path) as bare, ScriptedServer(models={"root": [answer("context[0] + ' is first'")]}) as server:
        sources = (SET_UP, "%rlm panel", ask.format(url=server.url))
        bare.save("bare.ipynb", [nbformat.v4.new_code_cell(source) for source in sources], trusted=True)
        book = bare.open(browser, "bare.ipynb")
        book.run(0)
        book.run(1)
        seen(book.page, "If no form is shown here, this front end has no ipywidgets")
        book.run(2)
        seen(book.page, "alpha is first")
        for told in ("Error displaying widget", "Loading widget", "model_id"):
            assert book.page.get_by_text(told).count() == 0

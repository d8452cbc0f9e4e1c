"""The live view in Notebook 7, and of a run in the background whose page was loaded anew."""

from __future__ import annotations

import importlib.metadata
import json

import nbformat
import packaging.version
import pytest
from playwright.sync_api import expect

from rlm_jupyter.testing import Reply, ScriptedServer
from tests.browser.ipykernels import INSTALLED, NEWEST, VERSIONS
from tests.browser.lab import DEADLINE, Browser, Lab
from tests.models import answer, code

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600), pytest.mark.parametrize("lab", VERSIONS, indirect=True)]

LOAD = "%load_ext rlm_jupyter\ndocs = ['alpha', 'beta']"
ASK = "%%rlm --context docs --base-url {url} --model root --sub-model sub --out result {options}\nWho is first?"


def test_notebook_7_shows_a_batch_that_fills_and_stops_by_a_button(lab: Lab, browser: Browser, hears: bool) -> None:
    root: list[Reply | str] = [code("replies = llm_query_batched([f'question {n}' for n in range(12)])"), answer("replies")]
    with ScriptedServer(
        models={"root": root, "sub": lambda request: Reply("yes", hold=request.prompt == "question 7")}
    ) as server:
        sources = (LOAD, ASK.format(url=server.url, options="--max-concurrency 2"))
        lab.save("seven.ipynb", [nbformat.v4.new_code_cell(source) for source in sources], trusted=True)
        opened = lab.open_in_notebook(browser, "seven.ipynb")
        opened.run(0)
        opened.start(1)
        live = opened.page.locator(".rlm-live")
        opened.page.get_by_text("11 ok, 1 running").first.wait_for()
        if hears:
            live.locator(".rlm-group", has_text="12 × llm_query").wait_for()
            live.locator(".rlm-group").click()
            eighth = live.get_by_role("treeitem", name="Sub-call 8, question 7, running")
            eighth.click()
            eighth.press("ArrowDown")
            expect(live.get_by_role("treeitem").filter(has_text="question 7").last).to_be_focused(timeout=1000 * DEADLINE)
            live.get_by_role("button", name="Stop").click()
        else:
            opened.page.locator("[data-command='notebook:interrupt-kernel'], button[title^='Interrupt']").first.click()
        assert opened.ended() == "error"
        opened.page.get_by_text("Stopped").first.wait_for()
        assert live.count() == 0
        book = opened.save()
    assert "widget" not in json.dumps(book)
    assert "11 ok" in json.dumps(book)
    assert browser.foreign() == []


def test_a_page_that_was_loaded_anew_is_attached_to_its_run(lab: Lab, browser: Browser) -> None:
    root: list[Reply | str] = [code("print('seen before')"), Reply(answer("context[0]"), hold=True)]
    with ScriptedServer(models={"root": root}) as server:
        sources = (LOAD, ASK.format(url=server.url, options="--background"), "%rlm attach", "result.wait().response")
        lab.save("anew.ipynb", [nbformat.v4.new_code_cell(source) for source in sources], trusted=True)
        first = lab.open(browser, "anew.ipynb")
        first.run(0)
        first.run(1)
        first.page.locator(".rlm-live").get_by_text("iteration 2 of 30").wait_for()
        first.page.close()
        second = lab.open(browser, "anew.ipynb")
        second.run(2)
        live = second.page.locator(".jp-Cell", has_text="%rlm attach").locator(".rlm-live")
        live.get_by_text("iteration 2 of 30").wait_for()
        live.get_by_role("treeitem", name="Iteration 1").click()
        live.get_by_text("seen before").first.wait_for()
        server.release()
        second.page.get_by_text("Answered").first.wait_for()
        second.run(3)
        book = second.save()
    shown = book.cells[2].outputs
    assert [sorted(output["data"]) for output in shown] == [["text/html", "text/plain"]] * 2
    assert "alpha" in json.dumps(shown)
    assert "widget" not in json.dumps(book)
    assert browser.foreign() == []


def test_the_notebook_has_the_ipykernel_that_was_asked_for(lab: Lab, browser: Browser, request: pytest.FixtureRequest) -> None:
    lab.save("version.ipynb", [nbformat.v4.new_code_cell("import ipykernel\nprint(ipykernel.__version__)")], trusted=True)
    opened = lab.open(browser, "version.ipynb")
    opened.run(0)
    told = packaging.version.Version(opened.save().cells[0].outputs[0].text.strip())
    version = request.node.callspec.params["lab"]
    here = packaging.version.Version(importlib.metadata.version("ipykernel"))
    assert told >= here if version == NEWEST else told == here if version == INSTALLED else str(told).startswith(f"{version}.")

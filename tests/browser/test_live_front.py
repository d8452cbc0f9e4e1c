"""The live view's page: what it shows of a run, how it is steered, what it makes of hostile texts and of very many rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.visible import visible
from tests.browser.front import DRAWN, Kernel, mount, tell, told
from tests.browser.lab import Browser, chromium
from tests.payloads import EVERYTHING, FORGED, PAYLOADS, PWN, pictured, png, run_of
from tests.runs import ANSWER, Script, fenced, finished, short_run

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(opened: Browser) -> Iterator[Page]:
    page = opened.open("about:blank")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def rows(page: Page) -> list[str]:
    """Give the names of the rows on the page, as a screen reader has them."""
    labels: list[str] = page.locator("[role=treeitem]").evaluate_all(
        "rows => rows.map(row => row.getAttribute('aria-label') || document.getElementById("
        "row.getAttribute('aria-labelledby')).textContent)"
    )
    return labels


def focused(page: Page) -> str:
    label: str = page.evaluate(
        "() => document.activeElement.getAttribute('aria-label')"
        " || document.activeElement.querySelector('.rlm-name').textContent"
    )
    return label


def family() -> list[Event]:
    """Give a run under way whose four children run, have answered, or have failed."""
    script = Script().ask(fenced("Each contract to a child.", "answers = rlm_query_batched(questions, contexts)"))
    script.run("answers = rlm_query_batched(questions, contexts)")
    for number in range(4):
        script.child(f"Which clauses of contract {number} deal with it?", batch="b")
        script.ask(fenced("Look at the lease.", "print(context)")).run("print(context)", ("stdout", "LEASE\n")).batch(3).done()
        if number < 3:
            failed = number == 1
            script.answered(
                "" if failed else f"Clause 14.{number}.", "failed" if failed else "answered", "gone" if failed else ""
            )
        else:
            script.node, script.iteration, script.cell = script._above.pop()
    return script.events


def test_a_run_is_seen_as_it_goes_on(page: Page) -> None:
    script = Script().ask(fenced("Let me look.", "print(1)")).run("print(1)", ("stdout", "seen\n")).done()
    script.add(events.IterationStarted, iteration=2, of=30)
    script.add(events.ReplyPart, iteration=2, text="Now I cut it up.\n\n```repl\nparts = con")
    mount(page)
    expect(page.locator(".rlm-word")).to_have_text("Starting")
    kernel = Kernel()
    tell(page, kernel.tell(script.events))
    expect(page.locator(".rlm-word")).to_have_text("Reading the reply")
    expect(page.locator(".rlm-progress")).to_have_text("iteration 2 of 30")
    expect(page.locator(".rlm-total-tokens")).to_have_text("2,320 tokens")
    expect(page.locator(".rlm-total-cost")).to_have_text("$0.0123 of $2.00")
    assert [row.split(",")[0] for row in rows(page)] == ["Iteration 1", "Iteration 2", "Reasoning", "Code"]
    assert page.locator(".rlm-prose .rlm-body").inner_text() == "Now I cut it up."
    assert page.locator(".rlm-draft .rlm-body").inner_text() == "parts = con"
    before, script.iteration = len(script.events), 2
    reply = fenced("Now I cut it up.", "parts = context.split()\nllm_query_batched(parts)")
    script.add(
        events.ReplyEnded, iteration=2, text=reply, finish_reason="stop", usage=events.Usage(10, 5), cost=0.001, attempts=1,
        seconds=1.0,
    )  # fmt: skip
    script.run("parts = context.split()\nllm_query_batched(parts)").batch(256, failed=2, running=3)
    tell(page, kernel.tell(script.events[before:]))
    expect(page.locator(".rlm-group .rlm-label")).to_have_text("256 × llm_query")
    expect(page.locator(".rlm-group .rlm-state")).to_have_text("251 ok, 3 running, 2 failed")
    expect(page.locator(".rlm-code .rlm-keyword")).to_have_count(0)
    assert page.locator(".rlm-draft").count() == 0, "code that ran is told once"
    page.locator(".rlm-group").click()
    first = page.locator(".rlm-call").first
    first.click()
    assert first.locator(".rlm-figure").all_inner_texts() == ["876", "$0.0003", "1.2 s"]
    assert (
        page.locator(".rlm-text .rlm-body").all_inner_texts()[1]
        == 'Yes. "upon a Change of Control of the Tenant" (clause 14.1)'
    )
    assert page.evaluate("() => document.querySelectorAll('[role=treeitem]').length") < 80


def test_the_end_is_the_answer_first_and_the_failed_can_be_had_alone(page: Page) -> None:
    mount(page, messages=told(finished(short_run(), answer=ANSWER)))
    expect(page.locator(".rlm-word")).to_have_text("Answered")
    assert page.locator(".rlm-answer-text").inner_text() == ANSWER
    box = page.locator(".rlm-answer").bounding_box()
    tree = page.locator(".rlm-tree").bounding_box()
    assert box is not None
    assert tree is not None
    assert box["y"] + box["height"] <= tree["y"]
    assert page.locator(".rlm-stop").is_hidden()
    page.get_by_role("button", name="Failed 2").click()
    expect(page.locator(".rlm-found")).to_have_text("6 found")
    states = page.locator(".rlm-call .rlm-state")
    expect(states).to_have_text(["failed, 5 attempts"] * 2)
    page.get_by_role("button", name="Failed 2").click()
    expect(page.locator(".rlm-turn")).to_have_count(5)


def test_children_are_trees_in_the_tree(page: Page) -> None:
    mount(page, messages=told(family()))
    assert "child RLMs 2 ok, 1 running, 1 failed · depth 1" in page.locator(".rlm-progress").inner_text()
    page.get_by_role("button", name="Expand all").click()
    page.evaluate(DRAWN)
    found = page.locator(".rlm-turn").evaluate_all("rows => rows.map(row => row.getAttribute('aria-level'))")
    assert found[:2] == ["1", "4"], "an iteration of a child stands below the batch, and that below the root's iteration"
    page.get_by_role("button", name="Timeline").click()
    label = page.locator("canvas").get_attribute("aria-label")
    assert label is not None
    assert label.startswith("Timeline of ")
    assert "depth 1" in label
    assert page.evaluate(
        "() => document.querySelector('canvas').getContext('2d').getImageData(0, 0, 2000, 2000).data.some(Boolean)"
    )


def test_messages_are_numbered_and_a_gap_is_mended(page: Page) -> None:
    kernel = Kernel()
    messages = kernel.tell(short_run().events)
    assert [message["n"] for message in messages] == list(range(1, len(messages) + 1))
    assert len(messages) > 20
    mount(page, messages=messages[:5])
    tell(page, messages[3:5])
    tell(page, messages[6:9])
    asked = page.evaluate("() => sent.filter(message => message.kind === 'resync')")
    assert len(asked) == 1, "once, however many messages come after the gap"
    tell(page, kernel.hear(asked[0]))
    expect(page.locator(".rlm-turn")).to_have_count(5)
    expect(page.locator(".rlm-progress")).to_have_text("iteration 5 of 30 · sub-calls 298 ok, 2 failed")


def test_the_keyboard_moves_as_in_a_tree(page: Page) -> None:
    mount(page, messages=told(finished(short_run(40), answer="yes")))
    assert page.locator("[role=treeitem][tabindex='0']").count() == 1
    page.locator("[role=treeitem][tabindex='0']").focus()
    keys = page.keyboard
    keys.press("End")
    assert focused(page) == "Code"
    keys.press("ArrowLeft")
    assert focused(page).startswith("Iteration 5")
    keys.press("ArrowLeft")
    assert page.locator(":focus").get_attribute("aria-expanded") == "false"
    keys.press("ArrowUp")
    keys.press("ArrowRight")
    assert page.locator(":focus").get_attribute("aria-expanded") == "true"
    for _ in range(3):
        keys.press("ArrowDown")
    assert focused(page).startswith("Batch 40 × llm_query")
    keys.press("Enter")
    keys.press("ArrowRight")
    assert focused(page).startswith("Sub-call 1")
    assert [page.locator(":focus").get_attribute(f"aria-{name}") for name in ("level", "posinset", "setsize")] == [
        "3",
        "1",
        "40",
    ]
    keys.press("End")
    keys.press("Home")
    assert focused(page).startswith("Iteration 1")
    assert page.locator("[role=treeitem][tabindex='0']").count() == 1
    keys.press("ArrowDown")
    before = page.evaluate("() => document.activeElement.id")
    page.locator(".rlm-tree").evaluate("tree => { tree.scrollTop = tree.scrollHeight; }")
    page.evaluate(DRAWN)
    assert page.evaluate("() => document.activeElement.id") == before, "a row that is scrolled away keeps the keyboard"


def test_search_finds_what_is_folded_away_and_marks_it(page: Page) -> None:
    script, kernel = short_run(), Kernel()
    mount(page, messages=kernel.tell(script.events))
    page.get_by_role("searchbox").fill("14.77 of contract")
    expect(page.locator(".rlm-found")).to_have_text("1 found")
    expect(page.locator("mark")).to_have_text(["14.77 of contract"])
    assert [row.split(",")[0] for row in rows(page)] == ["Iteration 4", "Batch 300 × llm_query", "Sub-call 77", "Prompt"]
    script.add(events.Notice, text="14.77 of contract again")
    tell(page, kernel.tell(script.events[-1:]))
    expect(page.locator(".rlm-found")).to_have_text("2 found")
    page.get_by_role("searchbox").press("Escape")
    expect(page.locator(".rlm-turn")).to_have_count(5)


def test_code_and_prompts_are_copied_as_they_were_told(page: Page) -> None:
    code = "x = 1  # a\n" * 400
    mount(page, messages=told(Script().ask(fenced("Run it.", code.strip())).run(code).call(7, prompt="ask this\nof it").events))
    assert page.locator(".rlm-code .rlm-body").inner_text().count("\n") < 40
    page.evaluate("() => { window.copied = []; addEventListener('copy', event => copied.push(event.target.value)); }")
    page.locator(".rlm-code").hover()
    page.locator(".rlm-code").get_by_role("button", name="Copy code").click()
    page.locator(".rlm-call").focus()
    page.keyboard.press("c")
    expect(page.locator(".rlm-code .rlm-copy")).to_have_text("Copied")
    assert page.evaluate("() => copied") == [code, "ask this\nof it"]


def test_stop_is_a_message_and_is_there_only_while_it_does_anything(page: Page) -> None:
    stream = short_run().events
    mount(page, messages=told(stream, on_stop=None))
    assert page.locator(".rlm-stop").is_hidden()
    mount(page, messages=told(stream))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".rlm-stop")).to_be_disabled()
    assert page.evaluate("() => sent.filter(message => message.kind === 'stop').length") == 1


def test_figures_are_those_of_the_other_views(page: Page) -> None:
    mount(page)
    seconds = [0, 0.004, 0.0994, 0.0996, 1, 9.94, 9.96, 59.4, 59.6, 61, 600, 3599.4, 3600, 7261, 4e5, -1]
    amounts = [0, 0.00001, 0.0001, 0.01234, 0.99994, 1, 1.005, 1234.5, 2e6]
    counts = [(number, noun) for number in (0, 1, 2, 1234, 1e6) for noun in ("iteration", "retry", "llm_query")]
    assert page.evaluate("values => values.map(front.duration)", seconds) == [words.duration(value) for value in seconds]
    assert page.evaluate("values => values.map(front.dollars)", amounts) == [words.dollars(value) for value in amounts]
    assert page.evaluate("pairs => pairs.map(([n, noun]) => front.count(n, noun))", counts) == [
        words.count(*pair) for pair in counts
    ]


AXE = """() => axe.run('#host', {runOnly: {type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']}}).then(
  found => found.violations.flatMap(rule => rule.nodes.map(node => [rule.id, node.html.slice(0, 200)])))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_and_names_hold_wcag_aa(page: Page, dark: bool) -> None:
    script = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    streams = (short_run(60, failed=1, running=3).events, family(), list(finished(short_run(60, 1), answer=ANSWER)))
    for stream, steps in zip(streams, (("Timeline",), ("Expand all",), ("Failed 1", "Timeline")), strict=True):
        mount(page, dark, told(stream))
        if stream is streams[0]:
            page.locator(".rlm-turn").nth(3).click()
            page.locator(".rlm-group").click()
        for name in steps:
            page.get_by_role("button", name=name).click()
        page.evaluate(DRAWN)
        page.evaluate(f"() => {{ {script} }}")
        assert page.evaluate(AXE) == []
    page.evaluate("() => { document.querySelector('.rlm-word').style.color = '#808890'; }")
    page.evaluate("() => { document.querySelector('.rlm-word').style.background = '#888'; }")
    assert [rule for rule, _ in page.evaluate(AXE)] == ["color-contrast"], "it would be seen"


def test_a_view_that_is_drawn_before_it_is_on_the_page_is_dark_on_dark(page: Page) -> None:
    mount(page, dark=True)
    page.evaluate(
        """() => {
          const el = document.createElement('div'), model = {get: () => 'one', send: () => {}, on: () => {}};
          front.default.render({model, el});
          document.body.append(el);
        }"""
    )
    expect(page.locator(".rlm-live.rlm-dark")).to_have_count(2)


TAGS = {"section", "div", "span", "pre", "button", "input", "canvas", "i", "img", "mark"}
ATTRIBUTES = {
    "class", "role", "aria-label", "aria-level", "aria-posinset", "aria-setsize", "aria-expanded", "aria-selected",
    "aria-labelledby", "aria-describedby", "aria-hidden", "aria-pressed", "data-tone", "data-lm-suppress-shortcuts",
    "dir", "id", "tabindex", "style", "type", "title", "placeholder", "hidden", "width", "height", "alt", "src",
}  # fmt: skip
NODES = """() => [...document.querySelectorAll('#host *')].map(node => [node.localName, node.getAttributeNames(),
  node.getAttribute('src') || ''])"""
TEXT = "() => [...document.querySelectorAll('.rlm-body')].map(node => node.textContent).join('\\n')"


def everything(page: Page) -> Iterator[str]:
    """Open all rows, go through them from the top to the bottom, and give what each window shows, its elements checked."""
    page.locator(".rlm-expand").click()
    page.evaluate("() => { document.querySelector('.rlm-tree').scrollTop = 0; }")
    for _ in range(60):
        page.evaluate(DRAWN)
        for tag, attributes, address in page.evaluate(NODES):
            assert tag in TAGS, f"<{tag}>"
            assert set(attributes) <= ATTRIBUTES, attributes
            assert address == "" or address.startswith("data:image/png;base64,"), address[:80]
        yield page.evaluate(TEXT)
        if page.evaluate(
            "() => { const tree = document.querySelector('.rlm-tree'), before = tree.scrollTop; tree.scrollTop += 400;"
            " return tree.scrollTop === before; }"
        ):
            return
    raise AssertionError("the tree has no end")


STRONGEST = ("everything", "5 MB line", "long lines", "controls", "closes pre")
REST = [name for name in PAYLOADS if name not in ("empty", "blank", *STRONGEST)]


@pytest.mark.parametrize("name", [*STRONGEST, *(pytest.param(name, marks=pytest.mark.matrix) for name in REST)])
def test_p13_hostile_texts_are_text(page: Page, opened: Browser, name: str) -> None:
    text = {"everything": EVERYTHING, "5 MB line": "<b>" * (5 * 2**20 // 3)}.get(name) or PAYLOADS[name]
    before = len(opened.requests)
    messages = told(run_of(text))
    assert len(json.dumps(messages)) < 4 * 2**20
    mount(page, messages=messages)
    seen = "".join(everything(page))
    wanted = visible(text)
    assert (wanted if len(wanted) < 500 else wanted[:200]).strip() in seen
    page.locator(".rlm-when").click()
    page.get_by_role("searchbox").fill(wanted[:40])
    page.evaluate(DRAWN)
    assert page.evaluate("() => [window.__pwned, document.documentElement.getAttribute('__pwned')]") == [None, None]
    assert opened.dialogs == []
    assert opened.popups == []
    kinds = {url.partition(":")[0] for url in opened.requests[before:]}
    assert kinds <= {"about", "blob", "data"}


def test_p14_only_checked_pictures_are_drawn(page: Page) -> None:
    script = Script().ask(fenced("Plot.", "plot()")).run("1").run("plot()")
    script.events += [*FORGED.values(), pictured(2, png())]
    mount(page, messages=told(script.events))
    for _ in everything(page):
        pass
    page.evaluate("() => { document.querySelector('.rlm-tree').scrollTop = 1e9; }")
    page.evaluate(DRAWN)
    sizes = page.evaluate(
        "() => Promise.all([...document.querySelectorAll('img')].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert sizes == [24]
    tell(page, [{"n": 999, "reset": True, "records": [*forged_records()]}])
    assert page.locator("img").count() == 0, "also where a message lies"


def forged_records() -> Iterator[dict[str, Any]]:
    base = {"b": 0, "at": 1.0, "i": 1, "c": 1}
    yield base | {"k": "turn", "of": 2}
    yield base | {"k": "cell", "code": "1"}
    for kind, data in (("image/svg+xml", "AAAA"), ("image/png", f'AA"onerror="{PWN}'), ("text/html", "AAAA"), (3, "AAAA")):
        yield base | {"k": "pic", "type": kind, "data": data, "told": "x", "w": 1, "h": 1}
    yield base | {"k": "__proto__"}
    yield base | {"k": "constructor"}


def large() -> list[Event]:
    script = Script()
    for number in range(20):
        code = f"replies = llm_query_batched(pieces[{number}])"
        script.ask(fenced(f"Iteration {number}: ask about the next pieces.", code)).run(code).batch(480, failed=3).done()
    return list(finished(script, answer="done"))


def test_ten_thousand_nodes_are_told_whole_and_few_are_on_the_page(page: Page) -> None:
    stream = large()
    messages = told(stream)
    mount(page)
    drawn = page.evaluate(
        """async text => {
          let most = 0, count = 0;
          for (const message of JSON.parse(text)) {
            tell(JSON.stringify([message]));
            if (count++ % 30) continue;
            await new Promise(requestAnimationFrame);
            most = Math.max(most, document.querySelectorAll('[role=treeitem]').length);
          }
          return most;
        }""",
        json.dumps(messages),
    )
    assert drawn < 100
    expect(page.locator(".rlm-progress")).to_have_text("iteration 20 of 30 · sub-calls 9,540 ok, 60 failed")
    assert page.evaluate("() => sent.filter(message => message.kind === 'resync').length") == 0
    page.get_by_role("button", name="Expand all").click()
    page.evaluate(DRAWN)
    most = page.evaluate(
        """async () => {
          const tree = document.querySelector('.rlm-tree');
          let most = 0;
          for (let step = 0; step <= 20; step += 1) {
            tree.scrollTop = step * tree.scrollHeight / 20;
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            most = Math.max(most, document.querySelectorAll('[role=treeitem]').length);
          }
          return most;
        }"""
    )
    assert most < 100
    page.locator(".rlm-tree").evaluate("tree => { tree.scrollTop = tree.scrollHeight; }")
    expect(page.locator(".rlm-row", has_text="(clause 14.480)").last).to_be_attached()

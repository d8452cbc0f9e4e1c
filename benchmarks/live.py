"""The live view of a run of ten thousand nodes: what an event costs the kernel, and what the page is kept busy with.

    python benchmarks/live.py

Needs Chromium. Times of the page are its own clock's, tasks those that the browser calls long (over 50 ms), frames those of a
scroll through all rows. `cpu` is the time that the page's thread spent, which a busy machine does not stretch. The page is told
of the run three times: one message a frame, as it streams in; so again with every row and the timeline open; and all of it at
once, as a page that comes late is told. The last lines are of an exported file that is opened, and of a real JupyterLab whose
kernel tells of the run as fast as events come, until the saved page stands in the live view's place.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nbformat
from playwright.sync_api import CDPSession, Page

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import export, html
from rlm_jupyter.widgets.teller import Message, Teller
from tests.browser.front import DRAWN, mount, told
from tests.browser.lab import Browser, chromium, jupyter_lab
from tests.runs import Script, fenced, finished

TASKS = """window.tasks = [];
new PerformanceObserver(list => list.getEntries().forEach(entry => tasks.push(Math.round(entry.duration))))
  .observe({entryTypes: ['longtask']});"""
# What the bench itself takes to hand over megabytes is done before tasks are counted.
STAGE = "text => { window.staged = JSON.parse(text).map(message => JSON.stringify([message])); }"
STREAM = """async () => {
  const frames = [];
  let last = performance.now(), began = last, first = 0;
  for (const text of staged) {
    tell(text);
    await new Promise(requestAnimationFrame);
    if (!first && document.querySelector('[role=treeitem]')) first = performance.now() - began;
    frames.push(performance.now() - last);
    last = performance.now();
  }
  frames.sort((one, other) => one - other);
  return [first, frames[Math.floor(frames.length * 0.99)], frames[frames.length - 1]].map(Math.round);
}"""
BURST = """async () => {
  const began = performance.now(), turn = new MessageChannel();
  for (const text of staged) {
    tell(text);
    await new Promise(done => { turn.port1.onmessage = done; turn.port2.postMessage(0); });
  }
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return Math.round(performance.now() - began);
}"""
SCROLL = """async () => {
  const tree = document.querySelector('.rlm-tree'), frames = [];
  let last = performance.now();
  tree.scrollTop = 0;
  for (let step = 0; step < 300; step += 1) {
    tree.scrollTop += 300;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
  }
  frames.sort((one, other) => one - other);
  return [frames[150], frames[297], frames[299]].map(Math.round);
}"""
FIRST = """() => new Promise(done => {
  const began = performance.now(), look = () => document.querySelector('[role=treeitem], .mathjax_ignore summary');
  const watch = new MutationObserver(() => look() && (watch.disconnect(), done(Math.round(performance.now() - began))));
  watch.observe(document.body, {childList: true, subtree: true});
})"""
MAKE = """from benchmarks.live import large
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.inline import LiveView
import rlm_jupyter.widgets.live
import time
stream = large()"""
SHOW = """view, trace = LiveView(), Trace()
view.start(trace)
for number, event in enumerate(stream):
    trace.add(event)
    view.update(event)
    if number % 100 == 0:
        time.sleep(0.05)
view.finish()"""


def large() -> list[Event]:
    """Give a run of 20 iterations with 480 sub-calls each."""
    script = Script()
    for number in range(20):
        code = f"replies = llm_query_batched(pieces[{number}])"
        script.ask(fenced(f"Iteration {number}: ask about the next pieces.", code)).run(code).batch(480, failed=3).done()
    return list(finished(script, answer="done"))


def kernel_side(stream: list[Event]) -> tuple[float, float]:
    """Give the microseconds of one event, for the trace alone and for telling a page of it."""
    spent = []
    sent: list[str] = []
    for tells in (False, True):
        trace, teller = Trace(), Teller(lambda message: sent.append(json.dumps(message)))
        teller.start(trace)
        began = time.process_time()
        for event in stream:
            trace.add(event)
            if tells:
                teller.update(event)
        spent.append(1e6 * (time.process_time() - began) / len(stream))
    return spent[0], spent[1] - spent[0]


def busy(session: CDPSession) -> float:
    metrics: list[dict[str, Any]] = session.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


def longest(page: Page) -> int:
    """Give the longest task since this was asked last, once the browser has told of all; 0 where none was over 50 ms."""
    page.evaluate(DRAWN)
    found: int = page.evaluate("() => Math.max(0, ...tasks.splice(0))")
    return found


def page_side(page: Page, session: CDPSession, stream: list[Event]) -> None:
    messages = told(stream)
    mount(page)
    stage(page, messages)
    page.evaluate(f"() => {{ {TASKS} }}")
    for name in ("streamed in", "again, all rows and the timeline open"):
        before = busy(session)
        first, high, most = page.evaluate(STREAM)
        lost = page.evaluate("() => sent.splice(0).filter(message => message.kind === 'resync').length")
        print(
            f"page   {len(messages)} messages {name}: first row {first} ms, {'SOME' if lost else 'none'} lost, longest task ",
            end="",
        )
        print(f"{longest(page)} ms, frames 99 % {high} ms, longest {most} ms; cpu {1000 * (busy(session) - before):.0f} ms")
        if name == "streamed in":
            page.get_by_role("button", name="Expand all").click()
            page.get_by_role("button", name="Timeline").click()
            print(f"page   all rows and the timeline opened: longest task {longest(page)} ms")
    stage(page, export.messages(Trace.from_events(stream)))
    longest(page)
    whole = page.evaluate(BURST)
    print(f"page   all at once: {whole} ms, longest task {longest(page)} ms")
    before = busy(session)
    middle, high, most = page.evaluate(SCROLL)
    cpu = 1000 * (busy(session) - before) / 300
    print(f"page   scroll of 300 frames: median {middle} ms, 99 % {high} ms, longest {most} ms; cpu {cpu:.1f} ms a frame")


def stage(page: Page, messages: list[Message]) -> None:
    page.evaluate(STAGE, json.dumps(messages))


def file_side(browser: Browser, stream: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = export.save(Trace.from_events(stream), f"{folder}/run.html")
        page = browser.open("about:blank")
        page.add_init_script(TASKS)
        page.goto(path.as_uri())
        page.locator("[role=treeitem]").first.wait_for()
        painted = page.evaluate("() => Math.round(performance.getEntriesByName('first-contentful-paint')[0].startTime)")
        print(f"file   {path.stat().st_size:,} bytes: first paint {painted} ms, longest task {longest(page)} ms")


def lab_side() -> None:
    with (
        tempfile.TemporaryDirectory() as base,
        jupyter_lab(Path(base), {"PYTHONPATH": sys.path[0]}) as lab,
        chromium() as browser,
    ):
        cells = [nbformat.v4.new_code_cell(source) for source in (MAKE, SHOW)]  # type: ignore[no-untyped-call]
        lab.save("live.ipynb", cells, trusted=True)
        opened = lab.open(browser, "live.ipynb")
        opened.run(0)
        page = opened.page
        page.evaluate(f"() => {{ {TASKS}; window.first = ({FIRST})(); }}")
        began = time.perf_counter()
        opened.run(1)
        seconds = time.perf_counter() - began
        first = page.evaluate("() => first")
        print(f"lab    a cell of {seconds:.1f} s: first row {first} ms, longest task, the end's included, {longest(page)} ms")
        print(f"lab    saved output {len(json.dumps(opened.save().cells[1].outputs)):,} bytes")


def main() -> None:
    stream = large()
    folded, telling = kernel_side(stream)
    saved = len(json.dumps(html.bundle(Trace.from_events(stream))))
    print(f"kernel {len(stream):,} events: {folded:.1f} us each for the trace, {telling:.1f} us for telling the page")
    print(f"saved  {saved:,} bytes")
    with chromium() as browser:
        page = browser.open("about:blank")
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page_side(page, session, stream)
        file_side(browser, stream)
    lab_side()


if __name__ == "__main__":
    main()

"""The live view of a run of ten thousand nodes: what an event costs the kernel, and what the page is kept busy with.

    python benchmarks/live.py

Needs Chromium. Times of the page are its own clock's, tasks those that the browser calls long (over 50 ms), frames those of a
scroll through all rows. `cpu` is the time that the page's thread spent, which a busy machine does not stretch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import CDPSession, Page

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import html
from rlm_jupyter.widgets.teller import Teller
from tests.browser.front import mount, told
from tests.browser.lab import chromium
from tests.runs import Script, fenced, finished

TASKS = """() => { window.tasks = [];
  new PerformanceObserver(list => list.getEntries().forEach(entry => tasks.push(Math.round(entry.duration))))
    .observe({entryTypes: ['longtask']}); }"""
STREAM = """async text => {
  const began = performance.now();
  let first = 0;
  for (const message of JSON.parse(text)) {
    tell(JSON.stringify([message]));
    await new Promise(requestAnimationFrame);
    if (!first && document.querySelector('[role=treeitem]')) first = performance.now() - began;
  }
  return Math.round(first);
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


def page_side(page: Page, session: CDPSession, stream: list[Event]) -> None:
    messages = told(stream)
    mount(page)
    page.evaluate(TASKS)
    before = busy(session)
    first = page.evaluate(STREAM, json.dumps(messages))
    told_all = page.evaluate("() => sent.filter(message => message.kind === 'resync').length") == 0
    print(f"page   first row {first} ms; {len(messages)} messages streamed in, {'none' if told_all else 'SOME'} lost; ", end="")
    print(f"longest task {max(page.evaluate('() => tasks'), default=0)} ms; cpu {1000 * (busy(session) - before):.0f} ms")
    page.evaluate("() => { tasks.length = 0; }")
    page.get_by_role("button", name="Expand all").click()
    before = busy(session)
    middle, high, most = page.evaluate(SCROLL)
    cpu = 1000 * (busy(session) - before) / 300
    print(f"scroll of 300 frames: median {middle} ms, 99 % {high} ms, longest {most} ms; cpu {cpu:.1f} ms a frame")


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


if __name__ == "__main__":
    main()

"""The live view's own page in a Chromium, without a notebook: its real code, and messages as a kernel would send them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from playwright.sync_api import Page

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.live import SOURCES, source
from rlm_jupyter.widgets.teller import Message, Teller

LIGHT = "--jp-content-font-color1: rgba(0, 0, 0, .87); --jp-layout-color0: #fff; background: #fff"
DARK = "--jp-content-font-color1: #fff; --jp-layout-color0: #111; background: #111"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>front</title><style>%s</style></head>
<body style="margin: 20px; %s"><main id="host"></main></body></html>"""
MOUNT = """async source => {
  const module = await import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})));
  const handlers = [];
  const sent = [];
  // As anywidget does it: who initializes and each view have objects of their own for the same model.
  const model = () => ({get: key => key === 'name' ? 'one' : undefined, send: message => sent.push(message),
    on: (name, handler) => handlers.push(handler)});
  window.sent = sent;
  window.front = module;
  window.tell = text => JSON.parse(text).forEach(message => handlers.forEach(handler => handler(message)));
  module.default.initialize({model: model()});
  window.close_view = module.default.render({model: model(), el: document.getElementById('host')});
}"""
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"


class Kernel:
    """What a kernel would send of a run whose events come 20 ms after one another."""

    def __init__(self, on_stop: Callable[[], None] | None = lambda: None) -> None:
        self._messages: list[Message] = []
        self._clock = self._now = 0.0
        self._trace = Trace()
        self._teller = Teller(self._take, on_stop, clock=lambda: self._clock, now=lambda: self._now)
        self._teller.start(self._trace)
        self._teller.hear({"kind": "ready", "has": True})

    def tell(self, stream: Iterable[Event]) -> list[Message]:
        """Give the messages that tell of these events, and that were not given yet."""
        for event in stream:
            self._clock += 0.02
            self._now = event.at + 0.5
            self._trace.add(event)
            self._teller.update(event)
        self._teller.flush()
        messages, self._messages = self._messages, []
        return messages

    def hear(self, message: Message) -> list[Message]:
        """Take what the page says, and give the answer."""
        self._teller.hear(message)
        return self.tell([])

    def _take(self, message: Message) -> None:
        self._messages.append(json.loads(json.dumps(message)))


def told(stream: Iterable[Event], on_stop: Callable[[], None] | None = lambda: None) -> list[Message]:
    """Give the messages that tell of a stream of events."""
    return Kernel(on_stop).tell(stream)


def mount(page: Page, dark: bool = False, messages: list[Message] | None = None) -> None:
    """Show the view on an empty page, light or dark, told of `messages`."""
    page.set_content(PAGE % (source("live.css"), DARK if dark else LIGHT))
    page.evaluate(MOUNT, source(*SOURCES))
    if messages is not None:
        tell(page, messages)


def tell(page: Page, messages: list[Message]) -> None:
    """Give the page messages, and wait until they are drawn."""
    page.evaluate("text => tell(text)", json.dumps(messages))
    page.evaluate(DRAWN)

"""What the live view's page is told: bounded, visible, numbered, and all of it anew when it is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import wire
from rlm_jupyter.widgets.teller import INTERVAL, Message, Teller
from rlm_jupyter.widgets.wire import Encoder, Record
from tests.notebooks import notebook
from tests.payloads import EVERYTHING, FORGED, PAYLOADS, coded, png, run_of, unseen
from tests.runs import Script, finished, short_run


class Page:
    """The one who is told, and a clock that goes on by 50 ms an event."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.stops = 0
        self.clock = 0.0
        self.trace = Trace()
        self.teller = Teller(self._take, self._stop, clock=lambda: self.clock)
        self.teller.start(self.trace)

    def see(self, stream: Iterable[Event]) -> None:
        for event in stream:
            self.clock += 0.05
            self.trace.add(event)
            self.teller.update(event)

    def records(self) -> list[Record]:
        """Give what the page has in the end: what came since it was last told to forget."""
        found: list[Record] = []
        for message in self.messages:
            found = [*([] if message["reset"] else found), *message["records"]]
        return found

    def _take(self, message: Message) -> None:
        self.messages.append(json.loads(json.dumps(message)))

    def _stop(self) -> None:
        self.stops += 1


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def shape(records: Iterable[Record]) -> list[tuple[str, Any]]:
    """Give records without the pieces of replies that are whole by now."""
    return [(record["k"], record.get("id", record.get("c"))) for record in records if record["k"] not in ("part", "restart")]


def test_messages_are_numbered_and_few() -> None:
    page = Page()
    stream = list(finished(short_run(), answer="x"))
    page.see(stream)
    assert [message["n"] for message in page.messages] == list(range(1, len(page.messages) + 1))
    assert len(page.messages) <= 2 + len(stream) * 0.05 / INTERVAL
    assert sum(record["k"] == "got" for record in page.records()) == 300
    assert page.records()[-1]["k"] == "end"


def test_pieces_of_one_text_are_joined() -> None:
    page = Page()
    script = Script()
    script.add(events.IterationStarted, iteration=1, of=3)
    for number in range(1000):
        script.add(events.ReplyPart, iteration=1, text=f"{number} ")
    page.see(script.events)
    page.teller.flush()
    parts = [record for record in page.records() if record["k"] == "part"]
    assert len(parts) <= 1000 * 0.05 / INTERVAL + 1
    assert "".join(record["t"] for record in parts) == "".join(f"{number} " for number in range(1000))


@pytest.mark.parametrize("place", [1, 5, 40, 400])
def test_a_page_that_missed_something_is_told_everything_anew(place: int) -> None:
    stream = list(finished(short_run(), answer="x"))
    page = Page()
    page.see(stream[:place])
    page.teller.hear({"kind": "resync"})
    page.see(stream[place:])
    assert sum(message["reset"] for message in page.messages) == 2
    whole = Page()
    whole.see(stream)
    assert shape(page.records()) == shape(whole.records())


def test_a_page_that_comes_late_has_the_reply_that_streams_in() -> None:
    page = Page()
    script = Script().ask("first")
    script.add(events.IterationStarted, iteration=2, of=3)
    page.see(script.add(events.ReplyPart, iteration=2, text="half a").events)
    page.teller.hear({"kind": "ready"})
    page.see(script.add(events.ReplyPart, iteration=2, text=" reply").events[-1:])
    page.teller.flush()
    last = [message for message in page.messages if message["reset"]][-1]
    told = [record["t"] for record in last["records"] if record["k"] == "part" and record["i"] == 2]
    assert told == ["half a reply"], "the piece that came with the question is in it, once"


def test_only_a_page_that_was_heard_is_offered_a_stop() -> None:
    page = Page()
    page.see(short_run().events[:3])
    assert not any(message["stoppable"] for message in page.messages)
    rubbish: list[Any] = [None, [], "stop", {"kind": ["stop"]}, {"kind": "Stop"}, {"stop": 1}]
    for content in rubbish:
        page.teller.hear(content)
    assert page.stops == 0
    page.teller.hear({"kind": "ready", "has": True})
    page.teller.update(None)
    assert page.messages[-1]["heard"]
    assert page.messages[-1]["stoppable"]
    assert not page.messages[-1]["reset"]
    page.teller.hear({"kind": "stop"})
    assert page.stops == 1


@pytest.mark.parametrize(
    "text", [*PAYLOADS.values(), EVERYTHING, "\ud800<b>" * 2_000_000], ids=[*PAYLOADS, "everything", "long"]
)
def test_p13_whatever_a_run_holds_reaches_the_page_visible_and_bounded(text: str) -> None:
    page = Page()
    page.see(run_of(text))
    page.teller.hear({"kind": "resync"})
    page.teller.flush()
    assert all(unseen(found) == set() for message in page.messages for found in strings(message))
    assert len(json.dumps(page.messages)) < 12 * 2**20


def test_p14_a_picture_is_told_only_if_its_bytes_are_one() -> None:
    encoder = Encoder()
    told = [record for event in FORGED.values() for record in encoder.records(event)]
    assert len(told) == len(FORGED)
    assert all("data" not in record and "type" not in record for record in told)
    script = Script()
    script.add(
        events.CellPicture,
        cell=1,
        media_type="image/png",
        width=24,
        height=16,
        data=coded(png()),
    )
    assert [record["type"] for record in encoder.records(script.events[-1])] == ["image/png"]


def test_figures_are_finite_and_bounded() -> None:
    for value in (math.nan, math.inf, -math.inf, 10**5000, -(10**5000), True, "3", None):
        assert abs(wire.number(value)) <= wire.NUMBER_CAP
    assert wire.price(None) is None


def test_a_run_of_very_many_calls_does_not_fill_the_page() -> None:
    script = Script().ask("```repl\n1\n```").run("1")
    for number in range(2000):
        script.call(number, prompt="p" * 30_000, reply="r")
    encoder = Encoder()
    prompts = [record["p"] for event in script.events for record in encoder.records(event) if record["k"] == "call"]
    assert len(prompts) == 2000
    assert len(prompts[0]) == 30_000
    assert len(prompts[-1]) < 2 * wire.SHORT_CAP
    assert "characters left out" in prompts[-1]
    assert sum(map(len, prompts)) < wire.ROOM + 2000 * 2 * wire.SHORT_CAP


def test_where_no_page_answers_the_plain_view_is_shown_and_saved(tmp_path: Path) -> None:
    with notebook(tmp_path) as opened:
        opened.run("docs = ['The keeper is Mara.', 'The tower is tall.']")
        cell = opened.run("%%rlm --context docs --model demo --view live\nWho is the keeper?")
        assert cell.status == "ok", cell.traceback + cell.streams
        assert [sorted(display["data"]) for display in cell.displays] == [["text/html", "text/plain"]] * 2
        assert all(sorted(update["data"]) == ["text/html", "text/plain"] for update in cell.updates)
        assert "Mara" in cell.html

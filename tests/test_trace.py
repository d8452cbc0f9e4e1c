"""The trace: events folded into a tree as they come, its file, and reading it back."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_jupyter import events
from rlm_jupyter.events import Usage
from rlm_jupyter.trace import DEPTH_CAP, PICTURES_CAP, PICTURES_KEPT, Trace
from rlm_jupyter.trace_file import TraceFile, purge, trace_folder
from rlm_jupyter.widgets import html, text
from tests.payloads import EVERYTHING, FORGED, Page, pictured, png, run_of
from tests.runs import ANSWER, Script, fenced, long_run, short_run


def stored(stream: list[events.Event]) -> list[events.Event]:
    return [event for event in stream if not isinstance(event, events.LIVE_ONLY)]


def family() -> Script:
    """Give a run whose first cell has two children, the second with a child and a sub-call of its own."""
    script = Script().ask("x").run("rlm_query_batched(...)").child("first", "b").ask("y").run("1").done().answered("one")
    script.child("second", "b").ask("z").run("rlm_query(...)").call(1).child("third").ask("w").run("2").done().answered("three")
    return script.done().answered("two").done()


@pytest.mark.parametrize(
    "stream",
    [
        short_run().end(answer=ANSWER).events,
        long_run().events,
        run_of(EVERYTHING),
        Script().events,
        family().events,
        [*Script().run("1").run("2").events, pictured(1, png()), *FORGED.values()],
    ],
    ids=["short", "long", "hostile", "begun", "family", "pictures"],
)
def test_a_trace_comes_back_from_its_text_as_it_was(stream: list[events.Event]) -> None:
    trace = Trace.from_events(stream)
    back = Trace.from_jsonl(trace.to_jsonl())
    assert back.to_dict() == trace.to_dict()
    assert back.events == stored(stream) == trace.events
    assert back.to_jsonl() == trace.to_jsonl()
    json.dumps(trace.to_dict())


def test_the_tree_holds_what_happened() -> None:
    trace = Trace.from_events(short_run(number=256, failed=2, running=3).events)
    assert trace.status == "running"
    assert [iteration.iteration for iteration in trace.iterations] == [1, 2, 3, 4, 5]
    assert [iteration.state for iteration in trace.iterations] == ["ended"] * 4 + ["running"]
    assert [[cell.status for cell in iteration.cells] for iteration in trace.iterations] == [
        ["ok"],
        ["error"],
        ["ok"],
        ["ok"],
        ["ok"],
    ]
    calls = trace.iterations[3].cells[0].calls
    assert calls == trace.calls
    assert [sum(call.state == state for call in calls) for state in ("ok", "running", "failed")] == [251, 3, 2]
    assert len({call.batch for call in calls}) == 1
    failed = next(call for call in calls if call.state == "failed")
    assert (failed.reply, failed.attempts) == ("", 5)
    assert failed.error.startswith("LMUnavailable")


def test_sums_grow_with_each_reply_and_the_hosts_ledger_has_the_last_word() -> None:
    script = Script().ask(fenced("Ask.", "go()"), usage=Usage(100, 10, 50), cost=0.5).run("go()").call(1).call(2, ends="failed")
    trace = Trace.from_events(script.done().events)
    assert trace.usage == Usage(912, 74, 50)
    assert trace.cost == pytest.approx(0.5003)
    assert trace.requests == 1 + 1 + 5
    trace.add(events.RunEnded(status="answered", limit="", answer="x", answer_type="str", error="", calls=9,
                              usage=Usage(1, 2, 3, True), cost=0.75, seconds=4.5))  # fmt: skip
    assert (trace.usage, trace.cost, trace.requests, trace.seconds) == (Usage(1, 2, 3, True), 0.75, 9, 4.5)
    assert (trace.status, trace.answer, trace.iterations[-1].state) == ("answered", "x", "ended")


def test_children_hang_below_the_cells_that_began_them() -> None:
    trace = Trace.from_events(family().events)
    (cell,) = trace.iterations[0].cells
    first, second = cell.children
    (third,) = second.iterations[0].cells[0].children
    assert [child.question for child in trace.children] == ["first", "second", "third"]
    assert [(child.depth, child.parent, child.answer) for child in (first, second, third)] == [
        (1, "0", "one"),
        (1, "0", "two"),
        (2, second.node, "three"),
    ]
    assert first.batch == second.batch == "b"
    assert len(second.iterations[0].cells[0].calls) == len(trace.calls) == 1
    assert {branch.iterations[0].state for branch in (first, second, third)} == {"ended"}
    assert (
        trace.to_dict()["iterations"][0]["cells"][0]["children"][1]["iterations"][0]["cells"][0]["children"][0]["answer"]
        == "three"
    )


def test_what_a_child_takes_counts_for_all_above_it() -> None:
    script = Script().ask("x", cost=1.0).run("1").child().ask("y", cost=0.25).run("1").child().ask("z", cost=0.5)
    trace = Trace.from_events(script.events)
    (child, grandchild) = trace.children
    assert [branch.cost for branch in (trace, child, grandchild)] == [1.75, 0.75, 0.5]
    assert [branch.requests for branch in (trace, child, grandchild)] == [3, 2, 1]
    assert trace.usage.total_tokens == sum(e.usage.total_tokens for e in script.events if isinstance(e, events.ReplyEnded))


def test_a_trace_has_a_bounded_depth_and_each_child_once() -> None:
    script = Script()
    for _ in range(DEPTH_CAP):
        script.ask("x").run("1").child()
    trace = Trace.from_events(script.events)
    assert [child.depth for child in trace.children] == list(range(1, DEPTH_CAP + 1))
    json.dumps(trace.to_dict())
    with pytest.raises(ValueError, match="began twice"):
        trace.add(next(event for event in script.events if isinstance(event, events.ChildStarted)))
    with pytest.raises(ValueError, match="17 levels below the root"):
        Trace.from_events(script.ask("x").run("1").child().events)
    with pytest.raises(ValueError, match="speaks of 'nobody', which never began"):
        trace.add(events.IterationStarted(node="nobody", iteration=1, of=2))


def test_a_run_without_a_known_price_has_no_cost() -> None:
    assert Trace.from_events(Script().ask("x", cost=None).events).cost is None


def test_pieces_of_one_stream_are_joined_and_streams_are_kept_apart() -> None:
    script = Script().ask(fenced("Go.", "go()")).run("go()", ("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d"),
                                                     ("result", "1"), ("result", "2"))  # fmt: skip
    outputs = Trace.from_events(script.events).iterations[0].cells[0].outputs
    assert [(output.stream, output.text) for output in outputs] == [
        ("stdout", "ab"), ("stderr", "c"), ("stdout", "d"), ("result", "1"), ("result", "2"),
    ]  # fmt: skip


def plotted(number: int, size: int = 100) -> list[events.Event]:
    """Give the events of a cell that makes `number` pictures of `size` characters of base64, each told in words first."""
    script = Script().ask(fenced("Plot.", "plot()")).run("plot()")
    for place in range(number):
        script.add(events.CellOutput, cell=1, stream="display", text="[a picture of 24x16]\n")
        script.events.append(pictured(1, f"{place:04}" + "A" * (size - 4)))
    return script.done().end(answer=ANSWER).events


def test_a_picture_is_kept_at_the_words_that_tell_it() -> None:
    stream = [*plotted(2), pictured(1, "AAAA", width=10**3000)]
    trace = Trace.from_events(stream)
    outputs = trace.iterations[0].cells[0].outputs
    assert [(output.text, output.picture) for output in outputs] == [
        ("[a picture of 24x16]\n", 1), ("[a picture of 24x16]\n", 2), ("[a picture]\n", 3),
    ]  # fmt: skip
    assert list(trace.pictures.values()) == [event for event in stream if isinstance(event, events.CellPicture)]
    assert "AAAA" not in json.dumps(trace.to_dict())


def test_the_last_pictures_are_at_hand_within_their_cap() -> None:
    many = Trace.from_events(plotted(50))
    assert list(many.pictures) == list(range(51 - PICTURES_KEPT, 51))
    large = Trace.from_events(plotted(10, PICTURES_CAP // 4))
    assert list(large.pictures) == [7, 8, 9, 10]
    kept = [event.data for event in large.events if isinstance(event, events.CellPicture)]
    assert [len(data) for data in kept] == [PICTURES_CAP // 4] * 4 + [0] * 6


def test_a_file_holds_pictures_up_to_their_cap_and_says_what_it_left_out(folder: Path) -> None:
    file = TraceFile(folder, "run")
    for event in plotted(6, PICTURES_CAP // 4):
        file.write(event)
    file.close()
    assert PICTURES_CAP < file.path.stat().st_size < PICTURES_CAP + 20_000
    trace = Trace.from_file(file.path)
    assert [len(picture.data) for picture in trace.pictures.values()] == [PICTURES_CAP // 4] * 4 + [0] * 2
    assert trace.notices == ["the trace file holds 16 MiB of pictures: those that do not fit are not in it"]
    assert text.render(trace).count("[a picture of 24x16]") == 6
    assert Page(html.render(trace)).text.count("a picture of 24x16, not shown: the trace had no room for it") == 2


def test_a_reply_is_seen_as_it_streams_in_and_begins_again_after_a_retry() -> None:
    script = Script().add(events.IterationStarted, iteration=1, of=3)
    script.add(events.ReplyPart, iteration=1, text="Hel").add(events.ReplyPart, iteration=1, text="lo")
    trace = Trace.from_events(script.events)
    assert trace.iterations[0].reply == "Hello"
    trace.add(events.ReplyRestarted(iteration=1))
    assert (trace.iterations[0].reply, trace.iterations[0].state) == ("", "asking")
    trace.add(events.RequestRetried(call="", attempt=1, error="503", wait=1.0))
    assert trace.retries == 1
    assert not any(isinstance(event, events.LIVE_ONLY) for event in trace.events)


def test_set_up_code_is_iteration_0() -> None:
    script = Script().run("import numpy").done().ask(fenced("Go.", "1")).run("1").done()
    trace = Trace.from_events(script.events)
    assert [(iteration.iteration, iteration.cells[0].code) for iteration in trace.iterations] == [(0, "import numpy"), (1, "1")]


def test_a_file_whose_writer_was_killed_is_read_up_to_its_last_whole_line() -> None:
    text = Trace.from_events(short_run().events).to_jsonl()
    whole = text.count("\n")
    for cut in (1, 10, 40):
        assert len(Trace.from_jsonl(text[:-cut]).events) == (whole if cut == 1 else whole - 1)


def test_a_line_that_is_no_event_is_refused_by_its_number() -> None:
    lines = Trace.from_events(short_run().events).to_jsonl().split("\n")
    lines[3] = lines[3][:-5]
    with pytest.raises(ValueError, match="line 4 of the trace is not JSON"):
        Trace.from_jsonl("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0)
    try:
        yield trace_folder(tmp_path / "a" / "traces")
    finally:
        os.umask(before)


def test_the_folder_and_the_file_are_their_owners_alone(folder: Path) -> None:
    file = TraceFile(folder, "run")
    file.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    folder.chmod(0o755)
    assert stat.S_IMODE(trace_folder(folder).stat().st_mode) == 0o700


def test_the_folder_is_the_one_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_JUPYTER_TRACES", str(tmp_path / "named"))
    assert trace_folder() == tmp_path / "named"


def test_a_file_holds_the_run_without_what_is_live_only(folder: Path) -> None:
    stream = short_run().end(answer=ANSWER).events
    file = TraceFile(folder, "run")
    for event in stream:
        file.write(event)
    file.close()
    file.write(events.Notice(text="after the end"))
    assert Trace.from_jsonl(file.path.read_text(encoding="utf-8")).events == stored(stream)


def test_a_full_file_says_so_once_and_still_has_the_end(folder: Path) -> None:
    file = TraceFile(folder, "run", cap=20_000)
    for event in short_run().end(answer=ANSWER).events:
        file.write(event)
    file.close()
    assert file.path.stat().st_size < 23_000
    trace = Trace.from_jsonl(file.path.read_text(encoding="utf-8"))
    assert trace.notices == ["the trace file is full: what follows is not in it"]
    assert (trace.status, trace.answer) == ("answered", ANSWER)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff{}\n", "the trace is not UTF-8 at byte 0"),
        (b"[" * 100_000 + b"\n\n", "line 1 of the trace is not JSON"),
        (b"9" * 10_000 + b"\n\n", "line 1 of the trace is not JSON"),
        (b'"' + b"x" * (13 * 1024 * 1024) + b'"\n', "line 1 of the trace is longer than 12,582,912 characters"),
        (bytes(67 * 1024 * 1024), "the trace file is larger than any of ours: over 69,206,016 bytes"),
        (b'{"kind":"CellPicture","version":1}\n', "CellPicture lacks fields"),
        (json.dumps(FORGED["an SVG"].to_dict()).encode(), "CellPicture speaks of 2, which never began"),
    ],
    ids=["bytes", "nesting", "digits", "line", "file", "fields", "cell"],
)
def test_a_file_that_somebody_else_wrote_is_bounded(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=told):
        Trace.from_file(path)


def later(event: events.Event, **fields: Any) -> str:
    return json.dumps(event.to_dict() | {"version": 2} | fields) + "\n"


def test_of_a_later_version_what_can_be_read_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    script = Script().ask("I will ask a child.").run("rlm_query('x')").child("What is x?").answered("7").done()
    stream = stored(script.end(answer=ANSWER).events)
    lines = [later(event, mood="new in version 2") for event in stream]
    started = next(number for number, event in enumerate(stream) if isinstance(event, events.ChildStarted))
    whole = [event.to_json() + "\n" for event in stream]
    path = tmp_path / "later.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    assert Trace.from_file(path).to_dict() == Trace.from_jsonl("".join(whole)).to_dict()
    lines[started] = later(stream[started], node=5)  # its type has changed: so the child's own events have no place
    lines.insert(3, json.dumps({"kind": "Dreamt", "version": 2, "of": "sheep"}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    trace = Trace.from_file(path)
    lost = 1 + sum(event.node != "0" for event in stream)
    assert (trace.unread, trace.status, trace.answer, trace.children) == (lost, "answered", ANSWER, [])
    assert trace.notices[-1].endswith(f"of its events {lost} are not understood and left out")
    path.write_text("".join(line.replace('"version": 2', '"version": "2"') for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match="version '2'; this release reads version 1"):
        Trace.from_file(path)


def test_a_trace_with_children_comes_back_whole_from_its_file_and_its_dict_is_json() -> None:
    script = Script().ask("I ask.").run("rlm_query_batched(qs)").child("one", batch="b").ask("deeper").run("rlm_query('two')")
    script.child("two").ask("I know.").run("FINAL_VAR(2)").call().done().answered("2").done().answered("1").done()
    trace = Trace.from_events(script.end(answer=ANSWER).events)
    again = Trace.from_jsonl(trace.to_jsonl())
    assert again.to_dict() == trace.to_dict() == json.loads(json.dumps(trace.to_dict()))
    assert trace.to_dict()["version"] == events.VERSION
    assert [(child.parent, child.depth) for child in again.children] == [("0", 1), (again.children[0].node, 2)]
    assert again.to_jsonl() == trace.to_jsonl()


def test_a_file_is_not_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (folder / "run.jsonl").symlink_to(target)
    with pytest.raises(OSError, match=r"run\.jsonl"):
        TraceFile(folder, "run")
    assert target.read_text() == "untouched"


def test_purging_deletes_the_oldest_first_and_nothing_else(folder: Path) -> None:
    for age in range(5):
        path = folder / f"{age}.jsonl"
        path.write_text("x" * 100)
        os.utime(path, (1_000 - age, 1_000 - age))
    (folder / "notes.txt").write_text("mine")
    assert purge(folder, keep_bytes=250) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["0.jsonl", "1.jsonl", "notes.txt"]
    assert purge(folder) == 2
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]

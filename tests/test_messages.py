"""Frames and messages: what is written is read back, and nothing else is."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels import messages
from rlm_jupyter.kernels.guest import codec, frames, wire
from rlm_jupyter.kernels.guest.fields import WireError
from rlm_jupyter.kernels.messages import CallOutcome, Incoming

CALL = "0123456789abcdef" * 2
FINAL = wire.FinalInfo(1, "answer", "dict", "json", 7, "0" * 64)
SAMPLES: list[wire.Message] = [
    wire.Start(1), wire.Context(1, 2, "context", "context-1", "text", 3, "0" * 64), wire.Execute(1, 2, b"print('\xc3\xa9')"),
    wire.Interrupt(1), wire.Reply(1, CALL, (2, 0), (1,), b"ab"), wire.GetValue(1, 2, 2**40), wire.LendValue(1, 2),
    wire.Close(1), wire.Shutdown(),
    wire.FilePart("context-1", 2**33, b"ab"), wire.Append("context-1", "context-1-1"), wire.Discard("context-1"), wire.Alive(),
    wire.Ready(1, 7), wire.Started(1, 7, "spare", "3.11.7"), wire.StartFailed(1, "no"), wire.Loaded(1, 2, ""),
    wire.Output(1, 2, "stdout", 5, b"\xff"),
    wire.Picture(1, 2, b"png"), wire.Call(1, 2, CALL, True, None, (1, 2), b"abc"), wire.Dropped(1, CALL),
    wire.Done(1, 2, "ok", "", 0, FINAL, ("a note",)), wire.Done(1, 2, "error", "E: x\ud800", 3, None, ()),
    wire.ValuePart(1, 2, 0, b"x"), wire.ValueLent(1, 2, 9), wire.Died(1, 0, 9, ()), wire.Closed(1), wire.Heartbeat(),
    wire.Start(2, 1, 8), wire.Inherit(2, 1, 3, 0), wire.Bring(2, 1, CALL, 4), wire.Reply(1, CALL, (0, 0), (), b"", (0, 1)),
    wire.Call(1, 2, CALL, False, None, (1,), b"abc", True, 7, (2,)),
]  # fmt: skip
KNOWN = {**wire.TO_SUPERVISOR, **wire.TO_HOST}


def stream(header: dict[str, Any], body: bytes = b"") -> bytes:
    return b"".join(map(bytes, frames.pack(header, body)))


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_is_read_back_as_it_was(message: wire.Message) -> None:
    ((header, body),) = frames.Parser().feed(stream(*codec.encode(message)))
    assert codec.decode(header, body, KNOWN) == message


def test_every_kind_has_a_sample() -> None:
    assert {type(message) for message in SAMPLES} == set(KNOWN.values())


@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_messages_are_found_however_the_stream_is_cut(cuts: list[int]) -> None:
    data = b"".join(stream({"kind": "x", "n": n}, bytes([n]) * n) for n in range(5))
    parser = frames.Parser()
    found: list[tuple[frames.Header, bytes]] = []
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        found += parser.feed(data[start:end])
    assert found == [({"kind": "x", "n": n}, bytes([n]) * n) for n in range(5)]


BIG = b"".join(n.to_bytes(4, "big") for n in range(100_000))


@given(
    headers=st.lists(st.sampled_from([1, 100, 70_000, 200_000]), min_size=1, max_size=4),
    steps=st.lists(st.sampled_from([1, 3, 5_000, 65_536, 262_144]), min_size=1, max_size=6),
    more=st.booleans(),
)
@settings(deadline=None)
def test_large_frames_are_found_however_the_stream_is_cut(headers: list[int], steps: list[int], more: bool) -> None:
    """Headers and bodies of any size, in pieces of any size; with `more`, each message cut into several frames too."""
    wanted = [({"kind": "x" * size}, BIG[: 300_000 // size * size + n]) for n, size in enumerate(headers)]
    data = b""
    for header, body in wanted:
        whole = stream(header, body)
        if more:
            content = whole[5:]
            cuts = [content[at : at + 90_000] for at in range(0, len(content), 90_000)]
            whole = b"".join(struct.pack(">IB", len(cut), n < len(cuts)) + cut for n, cut in enumerate(cuts, 1))
        data += whole
    parser, at = frames.Parser(), 0
    found: list[tuple[frames.Header, bytes]] = []
    for step in itertools.cycle(steps):
        step = max(step, len(data) // 3000)
        found += parser.feed(data[at : at + step])
        at += step
        if at >= len(data):
            break
    assert [header for header, _ in found] == [header for header, _ in wanted]
    assert [body == expected for (_, body), (_, expected) in zip(found, wanted, strict=True)] == [True] * len(wanted)


def test_a_message_above_a_frame_is_cut_and_joined() -> None:
    body = bytes(range(256)) * (frames.FRAME_CAP // 100)
    pieces = frames.pack({"kind": "x"}, body)
    assert len(pieces) > 2
    ((header, got),) = frames.Parser().feed(b"".join(map(bytes, pieces)))
    assert (header, got == body) == ({"kind": "x"}, True)


def test_a_large_frame_in_single_bytes_costs_no_more_than_its_bytes() -> None:
    body = bytes(200_000)
    whole = stream({"kind": "x"}, body)
    parser = frames.Parser()
    found: list[tuple[frames.Header, bytes]] = []
    tracemalloc.start()
    try:
        for at in range(len(whole)):
            found += parser.feed(whole[at : at + 1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [({"kind": "x"}, body)]
    assert peak < 4 * len(whole)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">IB", frames.FRAME_CAP + 1, 0),
        struct.pack(">IB", 10, 2),
        struct.pack(">IB", 2, 0) + b"ab",
        struct.pack(">IBI", 4, 0, 5),
        struct.pack(">IBI", 8, 0, 4) + b"null",
        struct.pack(">IBI", 7, 0, 3) + b"NaN",
        struct.pack(">IBI", 6, 0, 2) + b"\xc3\xa9",
        struct.pack(">IBI", 100_004, 0, 100_000) + b"[" * 100_000,
        struct.pack(">IBI", 5_004, 0, 5_000) + b"9" * 5_000,
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        list(frames.Parser().feed(data))


def test_a_message_above_the_cap_is_refused_before_it_is_stored() -> None:
    parser = frames.Parser(1000)
    with pytest.raises(frames.FrameError, match="1,000"):
        list(parser.feed(struct.pack(">IB", 1001, 0)))
    parser = frames.Parser(1000)
    list(parser.feed(struct.pack(">IB", 600, 1) + bytes(600)))
    with pytest.raises(frames.FrameError, match="1,000"):
        list(parser.feed(struct.pack(">IB", 600, 1)))


def changed(message: wire.Message, **changes: Any) -> dict[str, Any]:
    header, _ = codec.encode(message)
    header = {**json.loads(json.dumps(header)), **changes}
    return {name: value for name, value in header.items() if value != "gone"}


DONE, OUTPUT, ASK = (next(each for each in SAMPLES if type(each) is kind) for kind in (wire.Done, wire.Output, wire.Call))


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (changed(DONE, kind="nothing"), b""),
        (changed(DONE, kind=["done"]), b""),
        (changed(DONE, kernel="gone"), b""),
        (changed(DONE, further=1), b""),
        (changed(DONE, kernel=True), b""),
        (changed(DONE, kernel=-1), b""),
        (changed(DONE, kernel=2**64), b""),
        (changed(DONE, kernel=1.0), b""),
        (changed(DONE, error=None), b""),
        (changed(DONE, error="x" * 70_000), b""),
        (changed(DONE, status="great"), b""),
        (changed(DONE, notes="text"), b""),
        (changed(DONE, notes=["x"] * 1001), b""),
        (changed(DONE, final={"number": 1}), b""),
        (changed(DONE, final={**dataclasses.asdict(FINAL), "form": "marshal"}), b""),
        (changed(DONE, final={**dataclasses.asdict(FINAL), "preview": "x" * 70_000}), b""),
        (changed(DONE, final={**dataclasses.asdict(FINAL), "digest": "x"}), b""),
        (changed(DONE), b"body"),
        (changed(OUTPUT, stream="stdin"), b""),
        (changed(ASK, call="short"), b"abc"),
        (changed(ASK, call=CALL.upper()), b"abc"),
        (changed(ASK, sizes=[1, 3]), b"abc"),
        (changed(ASK, sizes=[4, -1]), b"abc"),
        (changed(ASK, sizes=3), b"abc"),
        (changed(ASK, batch=False), b"abc"),
        (changed(ASK, batch=1), b"abc"),
        (changed(ASK, model=5), b"abc"),
        (changed(ASK, child=True), b"abc"),
        (changed(ASK, told=[0, 0]), b"abc"),
        (changed(ASK, child=True, told=[1, 1]), b"abc"),
        (changed(ASK, child=1, told=[1, 1]), b"abcde"),
    ],
)
def test_what_no_sender_writes_is_refused(header: dict[str, Any], body: bytes) -> None:
    with pytest.raises(WireError):
        codec.decode(header, body, KNOWN)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300)
@given(message=st.sampled_from(SAMPLES), key=st.text(max_size=12), value=JSON, body=st.binary(max_size=20), data=st.data())
def test_forged_headers_end_in_a_wire_error_or_a_message(
    message: wire.Message, key: str, value: Any, body: bytes, data: st.DataObject
) -> None:
    header, _ = codec.encode(message)
    header[data.draw(st.sampled_from([*header, key]))] = value
    with contextlib.suppress(WireError):
        assert isinstance(codec.decode(header, body, KNOWN), wire.Message)


def test_the_supervisors_messages_come_once_and_in_order() -> None:
    for number in (1, 3, None, "2"):
        incoming = Incoming()
        assert incoming.read({"kind": "heartbeat", "n": 1}, b"") == wire.Heartbeat()
        with pytest.raises(ProtocolError, match="missing or came twice"):
            incoming.read({"kind": "heartbeat", "n": number}, b"")


def test_the_host_takes_no_message_of_its_own_kind() -> None:
    with pytest.raises(ProtocolError, match="unknown kind 'shutdown'"):
        Incoming().read({"kind": "shutdown", "n": 1}, b"")


def test_prompts_are_cut_out_of_the_body() -> None:
    message = wire.Call(1, 2, CALL, True, "m", (1, 0, 3), b"a\xed\xa0\x80")
    assert messages.call_request(message).prompts == ("a", "", "\ud800")
    with pytest.raises(ValueError, match="not UTF-8"):
        messages.call_request(wire.Call(1, 2, CALL, False, None, (1,), b"\xff"))


def test_outcomes_become_a_reply_with_errors_in_their_places() -> None:
    message = wire.Call(1, 2, CALL, True, None, (1, 1, 1), b"abc")
    outcomes = [CallOutcome(text="x\ud800"), CallOutcome(error="no"), CallOutcome(text="")]
    reply = messages.reply(message, outcomes)
    assert (reply.call, reply.sizes, reply.errors, reply.data) == (CALL, (4, 2, 0), (1,), b"x\xed\xa0\x80no")
    with pytest.raises(ValueError, match="2 outcomes for 3 prompts"):
        messages.reply(message, outcomes[:2])
    assert messages.failed(message, "gone").errors == (0, 1, 2)

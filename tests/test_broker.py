"""The broker: who gets in, that each call is answered once by the host alone, and that callers who block keep nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import random
import secrets
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

from rlm_jupyter.kernels.guest import lines, wire
from rlm_jupyter.kernels.guest.book import AGAIN, CONFLICT, GONE, TAKEN, WAITING_CAP, Book, Refused
from rlm_jupyter.kernels.guest.broker import HANDED, Broker
from rlm_jupyter.kernels.guest.desk import bound
from rlm_jupyter.kernels.guest.doors import Channel
from rlm_jupyter.kernels.guest.frames import Parser
from rlm_jupyter.kernels.guest.lines import SESSION, TOKEN
from tests.brokers import CAPS, LM, WAIT, BrokerProcess, Tunnel, asked, bridged, call_message, hang_up_after, head, threads

HOST = "h" * 64


@pytest.fixture(scope="module")
def shared() -> Iterator[BrokerProcess]:
    process = BrokerProcess()
    yield process
    process.close()


@pytest.fixture
def broker(shared: BrokerProcess) -> BrokerProcess:
    """The one process of this module; each test leaves no call in it."""
    assert shared.health()["waiting"] == 0
    return shared


@pytest.fixture
def apps() -> Iterator[Broker]:
    ours, theirs = socket.socketpair()
    made = Broker({"token": HOST, "lease": 60.0, "caps": CAPS}, bound("127.0.0.1", 0), bound("127.0.0.1", 0), theirs)
    ours.sendall(json.dumps({"kind": "kernel", "kernel": 1, "token": "k" * 64}).encode() + b"\n")
    yield made
    for each in (made.public, made.local, ours, theirs):
        each.close()


def routes(app: Flask) -> list[tuple[str, str]]:
    return [(method, rule.rule) for rule in app.url_map.iter_rules() for method in sorted(rule.methods or ())]


# P4


def test_p04_every_route_of_the_broker_refuses_without_its_token(apps: Broker) -> None:
    for app, right, wrong in ((apps.public_app, HOST, "k" * 64), (apps.local_app, "k" * 64, HOST)):
        known = routes(app)
        assert len(known) >= 2
        client = app.test_client()
        for method, rule in [*known, ("GET", "/nothing"), ("POST", "/nothing")]:
            for shown in (None, "", wrong, right[:-1], right + "0", f"{right}, {right}"):
                headers = {} if shown is None else {TOKEN: shown}
                response = client.open(rule, method=method, headers=headers, data=call_message(["stolen"]))
                assert (response.status_code, rule) == (401, rule)
                assert apps.book.session.encode() not in response.data + str(response.headers).encode()
    assert apps.book.waiting == 0
    assert apps.public_app.test_client().get("/health", headers={TOKEN: HOST}).status_code == 200
    assert {rule for _, rule in routes(apps.public_app)} == {"/pending", "/respond", "/health"}
    assert {rule for _, rule in routes(apps.local_app)} == {"/enqueue"}


def test_p04_the_doors_read_no_body_without_a_token(broker: BrokerProcess) -> None:
    for port in (broker.port, broker.enqueue_port):
        for token in ("", "0" * 64):
            for fields in (
                b"Content-Length: 60000",
                b"Transfer-Encoding: chunked",
                b"Content-Length: 9\r\nExpect: 100-continue",
            ):
                answer = head(broker, fields, port=port, token=token)
                assert answer.startswith(b"HTTP/1.1 401 ")
                assert b"Connection: close" in answer
    assert broker.request("POST", "/respond", b"", broker.kernels[1])[0] == 401
    assert broker.request("POST", "/enqueue", call_message(["x"]), broker.token, broker.enqueue_port)[0] == 401
    assert broker.request("POST", "/enqueue", call_message(["x"]), broker.kernels[1])[0] == 401
    assert broker.request("POST", "/enqueue", call_message(["x"]))[0] == 404  # the public port has no such route
    assert broker.health()["waiting"] == 0


def test_p04_a_kernel_that_is_gone_asks_no_more(broker: BrokerProcess) -> None:
    token = broker.admit(7)
    broker.order(kind="gone", kernel=7)
    assert broker.request("POST", "/enqueue", call_message(["x"]), token, broker.enqueue_port)[0] == 401


def test_p19_calls_are_taken_while_a_cell_runs_and_it_is_settled_when_none_waits(broker: BrokerProcess) -> None:
    no_cell = ["Error: no cell is running: calls and answers are taken only while a cell runs"]
    token = broker.kernels[8] = broker.admit(8)
    call = secrets.token_hex(16)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(broker.ask, ["slow"], kernel=8, call=call)
        event = asked(broker, call)
        broker.order(kind="settle", kernel=8, cell=1)
        assert broker.ask(["late"], kernel=8) == no_cell
        assert results(broker, [(wire.Reply(8, call, (4,), (), b"done"), event.digest)]) == [TAKEN]
        assert broker.answer() == {"kind": "settle", "kernel": 8, "cell": 1}
        assert asking.result(WAIT) == ["done"]
        assert broker.ask(["late"], kernel=8) == no_cell
        broker.order(kind="cell", kernel=8, cell=2)  # whoever asks after this was written finds it carried out
        call = secrets.token_hex(16)
        raw = pool.submit(broker.enqueue, call_message(["x"], call=call, cell=77), token)
        assert asked(broker, call).call.cell == 2, "what the code says of its cell counts for nothing"
        broker.order(kind="release", kernel=8, why="the cell was interrupted")
        assert raw.result(WAIT)[0] == {"refused": "the cell was interrupted"}
        assert broker.ask(["more"], kernel=8) == ["Error: the cell was interrupted"]
        broker.order(kind="settle", kernel=8, cell=2)
        assert broker.answer() == {"kind": "settle", "kernel": 8, "cell": 2}
    broker.order(kind="gone", kernel=8)


def test_bodies_without_a_length_and_above_their_caps_are_refused() -> None:
    caps = {"message": 4096, "prompt": 100, "batch": 3}
    broker = BrokerProcess(caps=caps)
    try:
        assert broker.ask(["x" * 101]) == ["Error: a prompt above 100 bytes"]
        assert broker.ask(["x"] * 4) == ["Error: a batch of 4 prompts; at most 3"] * 4
        for fields, status in ((b"Content-Length: 5000000", b"413"), (b"Transfer-Encoding: chunked", b"411")):
            assert head(broker, fields, token=broker.token).startswith(b"HTTP/1.1 " + status)
        good = call_message(["x"])
        for nonsense in (b"", b"\0" * 64, good[:-1], good * 2, call_message(["x"], call="Z" * 32)):
            header, _ = broker.enqueue(nonsense, broker.kernels[1])
            assert list(header) == ["refused"]
        for nonsense in (b"\0" * 64, b"x", good):
            assert broker.request("POST", "/respond", nonsense)[0] == 400
        assert broker.request("POST", "/respond?after=1")[0] == 409
        assert broker.request("GET", "/pending?wait=0&session=" + "0" * 32)[0] == 409
        assert broker.health()["waiting"] == 0
    finally:
        broker.close()


# P5


class Callers:
    """Threads that wait in a book, and what each got."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.got: dict[str, str] = {}
        self.calls: dict[str, wire.Call] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, kernel: int) -> wire.Call:
        data = secrets.token_bytes(8)
        call = wire.Call(kernel, 1, secrets.token_hex(16), False, None, (8,), data)
        self.calls[call.call] = call
        before = self.book.waiting
        thread = threading.Thread(target=self._wait, args=(call,), daemon=True)
        thread.start()
        self._threads.append(thread)
        while self.book.waiting == before and thread.is_alive():
            threading.Event().wait(0.0005)
        return call

    def _wait(self, call: wire.Call) -> None:
        try:
            self.got[call.call] = self.book.ask(call, call.call).data.decode()
        except Refused as error:
            self.got[call.call] = f"refused: {error}"

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive()


def reply_to(call: wire.Call, text: str) -> wire.Reply:
    return wire.Reply(call.kernel, call.call, (len(text),), (), text.encode())


@pytest.mark.parametrize("seed", range(6))
def test_p05_only_a_true_reply_answers_and_the_first_one_stays(seed: int) -> None:
    """Random orders of asking, reading, answering, forging, repeating and giving up, against an oracle."""
    dice, book = random.Random(seed), Book(60.0)
    callers, reader = Callers(book), book.open(lambda: None)
    read: set[str] = set()
    expected: dict[str, str] = {}
    for step in range(400):
        known = [*callers.calls.values()]
        call = dice.choice(known) if known else callers.ask(1)
        good, truth = reply_to(call, f"true {call.call}"), lines.digest_of(call)
        settled = expected.get(call.call)
        match dice.randrange(8):
            case 0:
                callers.ask(dice.choice((1, 2)))
            case 1:
                read |= {event.call.call for event in book.read(reader, 0) or () if isinstance(event, lines.Asked)}
            case 2 | 3:
                if call.call not in read:
                    wanted = CONFLICT
                elif settled is None:
                    wanted, expected[call.call] = TAKEN, good.data.decode()
                else:
                    wanted = AGAIN if settled.startswith("true") else GONE
                assert book.answer(good, truth) == wanted, step
            case 4:
                forged = reply_to(call, f"forged {step}")
                assert book.answer(forged, dice.choice((secrets.token_hex(32), truth[:-1], "", call.call * 2))) == CONFLICT
            case 5:
                stranger = wire.Reply(3 - call.kernel, call.call, good.sizes, (), good.data)
                assert book.answer(stranger, truth) == GONE
                assert book.answer(wire.Reply(call.kernel, secrets.token_hex(16), (1,), (), b"x"), truth) == GONE
            case 6:
                for sizes, errors in (((), ()), ((1, 1), ()), ((1,), (1,))):
                    assert book.answer(wire.Reply(call.kernel, call.call, sizes, errors, b"x" * sum(sizes)), truth) == CONFLICT
                if settled is not None and settled.startswith("true"):
                    assert book.answer(reply_to(call, "another"), truth) == CONFLICT
            case 7:
                book.leave(call.kernel, call.call, call.call)
                if settled is None:
                    expected[call.call] = "refused: this call was given up before"
    for call in callers.calls.values():
        if call.call not in expected:
            book.leave(call.kernel, call.call, call.call)
            expected[call.call] = "refused: this call was given up before"
    callers.join()
    assert callers.got == expected
    assert book.waiting == 0
    assert {text[:4] for text in expected.values()} == {"true", "refu"}


def test_p05_a_reply_of_an_old_session_or_to_another_body_is_taken_by_nobody(broker: BrokerProcess) -> None:
    call = secrets.token_hex(16)
    hang_up = hang_up_after(broker, call_message(["a secret"], call=call))
    digest = asked(broker, call).digest
    true = wire.Reply(1, call, (4,), (), b"true")
    other = BrokerProcess()
    try:
        assert results(other, [(true, digest)]) == [GONE]
        assert broker.request("GET", "/health", token=other.token)[0] == 401
    finally:
        other.close()
    assert results(broker, [(true, "0" * 64), (wire.Reply(2, call, (4,), (), b"true"), digest)]) == [CONFLICT, GONE]
    assert broker.ask(["another body"], call=call) == ["Error: this call id was used before, for another call"]
    assert results(broker, [(true, digest), (true, digest)]) == [TAKEN, AGAIN]
    assert broker.ask(["a secret"], call=call) == ["true"]  # its reply was lost: it gets the same one
    hang_up()


def results(broker: BrokerProcess, replies: list[tuple[wire.Reply, str]]) -> list[str]:
    body = b"".join(lines.pack_reply(reply, digest) for reply, digest in replies)
    status, data = broker.request("POST", "/respond", body)
    assert status == 200
    told: list[str] = json.loads(data)["results"]
    return told


# P6


@pytest.mark.anyio
async def test_p06_a_way_that_is_cut_anywhere_asks_the_lm_once_for_each_call(broker: BrokerProcess) -> None:
    """Cut after every so many bytes, in the middle of lines, prompts, replies and their receipts."""
    with threads(12) as run:
        async with Tunnel.to(broker.port) as tunnel:
            lm, told = LM(), list[str]()
            async with bridged(tunnel.url, broker.token, lm, told, silence=2.0):
                wanted, got = [], []
                for number in range(24):
                    size = random.Random(number).choice((10, 3_000, 700_000))
                    prompts = [[f"{number}.{place}" + "x" * size] for place in range(6)]
                    prompts.append([f"{number} of a batch: {place}" for place in range(50)])
                    tunnel.conditions.after(137 * number + (number % 3) * 40_000, "cut", None)
                    replies = await asyncio.wait_for(asyncio.gather(*(run(broker.ask, each) for each in prompts)), WAIT)
                    wanted += [[f"re: {prompt}" for prompt in each] for each in prompts]
                    got += replies
            assert got == wanted
            assert set(lm.calls.values()) == set(lm.asked.values()) == {1}
            assert len(lm.calls) == 24 * 7
            assert any("is lost" in line for line in told)
    assert broker.health()["waiting"] == 0


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["down", "502", "black hole"])
async def test_p06_an_outage_in_the_middle_of_calls_and_a_batch(broker: BrokerProcess, fault: str) -> None:
    with threads(9) as run:
        async with Tunnel.to(broker.port) as tunnel:
            lm, told = LM(seconds=0.2, gate=9), list[str]()
            async with bridged(tunnel.url, broker.token, lm, told, silence=1.0, deadline=20.0):
                calls = [run(broker.ask, [f"one {number}"]) for number in range(8)]
                batch = run(broker.ask, [f"many {number}" for number in range(200)])
                await asyncio.wait_for(lm.open.wait(), WAIT)
                tunnel.conditions.enter(fault, 2.0)  # all are under way: the replies come while nothing passes
                assert await asyncio.wait_for(asyncio.gather(*calls), WAIT) == [[f"re: one {number}"] for number in range(8)]
                assert await asyncio.wait_for(batch, WAIT) == [f"re: many {number}" for number in range(200)]
                assert await asyncio.wait_for(run(broker.ask, ["after"]), WAIT) == ["re: after"]
            assert set(lm.calls.values()) == set(lm.asked.values()) == {1}
            assert len(lm.asked) == 8 + 200 + 1
            assert told, "the outage was not told"
            assert lm.cancelled == 0


@pytest.mark.anyio
async def test_p06_replies_that_are_brought_twice_count_once(broker: BrokerProcess) -> None:
    """The receipt is lost each time: the request passes, its answer does not."""
    with threads(1) as run:
        async with Tunnel.to(broker.port) as tunnel:
            lm = LM()
            async with bridged(tunnel.url, broker.token, lm, silence=2.0):
                for number in range(5):
                    size = 200_000
                    asking = run(broker.ask, [f"{number} " + "y" * size])
                    # the prompt as base64, the reply, and then a little: in the middle of the receipt
                    tunnel.conditions.after(size * 4 // 3 + size + 600, "cut", None)
                    assert (await asyncio.wait_for(asking, WAIT))[0].startswith(f"re: {number} y")
            assert set(lm.calls.values()) == {1}
    assert broker.health()["waiting"] == 0


# Many at once


@pytest.mark.anyio
async def test_300_callers_block_at_once_and_all_are_answered(broker: BrokerProcess) -> None:
    lm = LM(gate=300)  # nobody is answered until all of them are asked
    with threads(300) as run:
        async with bridged(broker.url, broker.token, lm):
            asking = [run(broker.ask, [f"number {number}"]) for number in range(300)]
            got = await asyncio.wait_for(asyncio.gather(*asking), WAIT)
    assert got == [[f"re: number {number}"] for number in range(300)]
    assert lm.most == 300
    assert len(lm.asked) == 300


@pytest.mark.anyio
async def test_16_threads_are_asked_side_by_side(broker: BrokerProcess) -> None:
    lm = LM(seconds=1.0, gate=16)
    with threads(16) as run:
        async with bridged(broker.url, broker.token, lm):
            began = asyncio.get_running_loop().time()
            await asyncio.wait_for(asyncio.gather(*(run(broker.ask, [str(number)]) for number in range(16))), WAIT)
            took = asyncio.get_running_loop().time() - began
    assert lm.most == 16
    assert took < 8.0  # one after the other: 16


def test_more_callers_than_may_wait_are_told_so_and_the_rest_are_served() -> None:
    book = Book(60.0)
    reader = book.open(lambda: None)
    for number in range(WAITING_CAP):
        call = wire.Call(1, 1, f"{number:032x}", False, None, (1,), b"x")
        threading.Thread(target=lambda call=call: _ask_quietly(book, call), daemon=True).start()
    came = 0
    while came < WAITING_CAP and (events := book.read(reader, WAIT)):
        came += len(events)
    with pytest.raises(Refused, match=r"1,024 calls wait already; use llm_query_batched"):
        book.ask(wire.Call(1, 1, "f" * 32, False, None, (1,), b"x"), object())
    book.release(1, "the kernel is gone")
    assert book.waiting == 0


def _ask_quietly(book: Book, call: wire.Call) -> None:
    with pytest.raises(Refused):
        book.ask(call, object())


@pytest.mark.anyio
async def test_a_caller_that_hangs_up_takes_its_call_along(broker: BrokerProcess) -> None:
    lm = LM(seconds=600)
    lm.open.set()
    async with bridged(broker.url, broker.token, lm):
        hang_up = await asyncio.to_thread(hang_up_after, broker, call_message(["never mind"]))
        await asyncio.wait_for(lm.begun.wait(), WAIT)
        hang_up()
        await asyncio.wait_for(lm.stopped.wait(), WAIT)
    assert (lm.cancelled, lm.under_way) == (1, 0)
    assert broker.health()["waiting"] == 0


@pytest.mark.anyio
async def test_a_kept_connection_asks_again_and_again_and_its_end_is_noticed(broker: BrokerProcess) -> None:
    """Small replies go the short way, large ones do not: both whole, and whatever way the one before went."""
    prompts = [f"{number} " + "é" * (HANDED if number % 3 == 1 else number) for number in range(30)]
    lm, connection = LM(), http.client.HTTPConnection("127.0.0.1", broker.enqueue_port, timeout=WAIT)

    def asks(message: bytes) -> None:
        connection.request("POST", "/enqueue", message, {TOKEN: broker.kernels[1]})

    def replies() -> list[str]:
        got = []
        for prompt in prompts:
            asks(call_message([prompt]))
            response = connection.getresponse()
            assert response.headers[SESSION] == broker.session
            ((_, body),) = Parser().feed(response.read())
            got.append(body.decode())
        return got

    async with bridged(broker.url, broker.token, lm):
        assert await asyncio.wait_for(asyncio.to_thread(replies), WAIT) == [f"re: {prompt}" for prompt in prompts]
        lm.seconds = 600
        lm.begun.clear()
        await asyncio.to_thread(asks, call_message(["never mind"]))
        await asyncio.wait_for(lm.begun.wait(), WAIT)
        connection.close()
        await asyncio.wait_for(lm.stopped.wait(), WAIT)
    assert set(lm.asked.values()) == {1}
    assert broker.health()["waiting"] == 0


class Slow(socket.socket):
    """Its first bytes leave when `go` is set, and then no more do."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.begun, self.go = threading.Event(), threading.Event()

    def send(self, data: Any, flags: int = 0) -> int:
        if self.begun.is_set():
            raise BlockingIOError(errno.EAGAIN, "full")
        self.begun.set()
        assert self.go.wait(WAIT)
        return super().send(data[:4], flags)


def test_a_door_asks_for_what_is_left_and_not_for_what_another_thread_is_sending(apps: Broker) -> None:
    ours, theirs = socket.socketpair()
    slow = Slow(ours.detach())
    channel = Channel(apps.public, slow, ("", 0), apps.public.adj, map={})
    with ThreadPoolExecutor(1) as pool, theirs:
        writing = pool.submit(channel.write_soon, b"12345678")
        assert slow.begun.wait(WAIT)
        assert (channel.total_outbufs_len, channel.writable()) == (8, False)
        slow.go.set()
        assert writing.result(WAIT) == 8
        assert (channel.total_outbufs_len, channel.writable()) == (4, True)
        assert theirs.recv(64) == b"1234"
        channel.handle_close()


def test_a_door_that_looked_away_while_another_thread_sent_is_woken(apps: Broker) -> None:
    ours, theirs = socket.socketpair()
    slow = Slow(ours.detach())
    channel = Channel(apps.public, slow, ("", 0), apps.public.adj, map={})

    def woken() -> bool:
        return bool(select.select([apps.public.trigger.socket.fileno()], [], [], 0)[0])

    with ThreadPoolExecutor(1) as pool, theirs:
        writing = pool.submit(channel.write_soon, b"1234")
        assert slow.begun.wait(WAIT)
        assert not channel.readable(), "what is being sent goes first"
        assert not channel.caught_up
        assert not woken()
        slow.go.set()
        assert writing.result(WAIT) == 4
        assert woken()
        assert (channel.readable(), channel.caught_up) == (True, True)
        channel.handle_close()


def test_a_host_that_is_gone_keeps_nobody_waiting() -> None:
    broker = BrokerProcess(lease=0.5)
    try:
        (reply,) = broker.ask(["anybody?"])
        assert reply.startswith("Error: the host was not heard of for")
        assert broker.health()["waiting"] == 0
    finally:
        broker.close()


def test_a_second_reader_ends_the_first_and_gets_what_was_not_read(broker: BrokerProcess) -> None:
    first = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=WAIT)
    first.request("GET", "/pending", headers={TOKEN: broker.token})
    stream = first.getresponse()
    assert json.loads(stream.readline())["kind"] == "hello"
    call = secrets.token_hex(16)
    hang_up = hang_up_after(broker, call_message(["twice"], call=call))
    while json.loads(stream.readline().strip() or b"{}").get("head", {}).get("call") != call:
        pass
    number = asked(broker, call).number
    with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
        stream.read()  # it ends, one way or the other
    first.close()
    assert events_after(broker, number, 0) == [lines.Hello]
    hang_up()
    assert events_after(broker, number, 10) == [lines.Hello, lines.GivenUp]


def events_after(broker: BrokerProcess, number: int, wait: int) -> list[type]:
    _, data = broker.request("GET", f"/pending?wait={wait}&after={number}")
    return [type(event) for event in lines.Reader(number).feed(data)]


def test_lines_carry_every_byte_and_refuse_what_they_do_not_write() -> None:
    call = wire.Call(3, 9, "a" * 32, True, "m", (2_000_000, 0, 3), bytes(range(256)) * 7812 + b"z" * 131)
    digest = lines.digest_of(call)
    stream = lines.hello_line("b" * 32) + b"\n" + b"".join(lines.call_lines(4, call, digest))
    assert max(map(len, stream.split(b"\n"))) < lines.LINE_CAP // 4
    for size in (100_003, 999_983, len(stream)):
        reader = lines.Reader(3)
        events = [event for at in range(0, len(stream), size) for event in reader.feed(stream[at : at + size])]
        assert events == [lines.Hello("b" * 32), lines.Asked(4, call, digest)]
    dropped = lines.dropped_line(5, wire.Dropped(1, "a" * 32))
    hello = lines.hello_line("b" * 32)
    tampered = stream.replace(b'"cell":9', b'"cell":8')
    for wrong in (
        dropped,
        hello + b"x" * (lines.LINE_CAP + 1),
        hello + hello,
        hello + dropped + dropped,
        hello + b'{"n":5,"kind":"more","data":""}\n',
        hello + b'{"n":true,"kind":"dropped"}\n',
        hello + b'{"n":NaN}\n',
        hello + b"[" * 100_000 + b"\n",
        hello + "\u00e9\n".encode(),
        hello + dropped.replace(b'"kernel":1', b'"kernel":-1'),
        tampered,
    ):
        with pytest.raises(lines.LineError):
            list(lines.Reader(3).feed(wrong))

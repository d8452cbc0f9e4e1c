"""The broker of a sandbox: code in a kernel asks at `/enqueue` and waits, the host pulls the calls and brings the replies.

Two doors, each with threads of its own:

- on loopback, behind a kernel's token: `POST /enqueue`, one message of `frames` (a call as the supervisor's socket takes it,
  and its cell), answered with one message when the host has answered, or with `refused` and a reason;
- on the public port, behind the host's token: `GET /pending?after=N` (endless lines; with `wait=S` those that there are, or
  come within S seconds), `POST /respond?after=N` (replies, none at all to show that the host lives), `GET /health`.

No request without its token has any effect, not even that its body is read. Cells, contexts and values never come here.

It is a process of its own, made by `desk`, which hands it its settings and its two sockets. From then on it reads orders, a
line of JSON each: `kind` `kernel` (`kernel token`: who may ask), `cell` (`kernel cell`: its calls are taken, as that cell's),
`settle` (no more are taken; answered by the same line when none waits), `release` (all are given up, `why`), `gone`. It ends
with whoever orders. Flask and waitress are needed in the sandbox only, never on the host.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, abort, request

from . import codec, processes, wire
from .book import WAITING_CAP, Book, Refused
from .doors import CHANNEL, Answered, Channel, Door
from .fields import WireError
from .frames import HEADER_CAP, FrameError, Parser, pack
from .lines import HELD_MESSAGES, SESSION, TOKEN, Asked, GivenUp, call_lines, dropped_line, hello_line, read_reply

HEARTBEAT_SECONDS = 10.0
WAIT_CAP = 60.0
PUBLIC_THREADS = 16
PUBLIC_CONNECTIONS = 512
_JOINED = 256 * 1024
HANDED = 16 * 1024
"""Bytes of a call, or of its reply, that whoever brings it passes on without waiting for the turn of whoever waits for it."""
OCTETS = "application/octet-stream"

NO_CELL = "no cell is running: calls and answers are taken only while a cell runs"


@dataclass(slots=True)
class Kernels:
    """Which token is whose, and which cell each runs."""

    tokens: dict[int, bytes] = field(default_factory=dict)
    cells: dict[int, int] = field(default_factory=dict)

    def of(self, token: str) -> int | None:
        """Give the kernel with this token. Every token is compared, each in constant time."""
        given = token.encode("utf-8", "replace")
        return next(iter([number for number, known in list(self.tokens.items()) if hmac.compare_digest(given, known)]), None)


def guarded(allowed: Callable[[str], bool], session: str) -> Flask:
    """Make an application that answers nothing without the token, whatever routes it gets."""
    app = Flask("rlm_broker", static_folder=None)

    @app.before_request
    def refuse() -> None:
        if not allowed(request.headers.get(TOKEN, "")):
            abort(401)

    @app.after_request
    def sign(response: Response) -> Response:
        if response.status_code != 401:
            response.headers[SESSION] = session
        return response

    return app


class Broker:
    """The two doors and what they share.

    Parameters
    ----------
    settings
        `token lease caps{message batch prompt}`, and `heartbeat` if that is not 10 seconds.
    public, local
        The sockets of its doors, bound.
    orders
        Where its orders come from, and its answers go.
    """

    def __init__(self, settings: dict[str, Any], public: socket.socket, local: socket.socket, orders: socket.socket) -> None:
        self.book = Book(settings["lease"])
        self.kernels = Kernels()
        self._token = settings["token"].encode()
        self._caps = settings["caps"]
        self._heartbeat = settings.get("heartbeat", HEARTBEAT_SECONDS)
        self._largest = self._caps["message"] + HEADER_CAP
        self._orders = orders
        orders.setblocking(False)
        self._order = bytearray()
        self._reading = threading.Lock()
        self.public_app, self.local_app = self._public(), self._local()
        self.public = Door(
            self.public_app,
            public,
            self.is_host,
            threads=PUBLIC_THREADS,
            connections=PUBLIC_CONNECTIONS,
            largest=self._largest,
            cap=HELD_MESSAGES * self._largest,
            quick=("/respond",),
        )
        self.local = Door(
            self.local_app,
            local,
            lambda token: self._asker(token) is not None,
            threads=WAITING_CAP + 16,
            connections=2 * WAITING_CAP,
            largest=self._largest,
            cap=HELD_MESSAGES * self._largest,
        )

    def run(self) -> None:
        """Serve until whoever orders is gone."""
        for door in (self.public, self.local):
            threading.Thread(target=door.run, daemon=True).start()
        self.tell({"kind": "up", "session": self.book.session})
        waiting = select.poll()
        waiting.register(self._orders, select.POLLIN)
        while self.catch_up():
            waiting.poll()

    def is_host(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self._token)

    # Orders

    def tell(self, fields: dict[str, Any]) -> None:
        """Answer an order: it is small, and whoever orders reads."""
        with contextlib.suppress(OSError):
            self._orders.send(json.dumps(fields).encode("ascii") + b"\n")

    def catch_up(self) -> bool:
        """Carry out what was ordered so far; False when there will be no more.

        Whoever serves a kernel does so first: what was ordered before the kernel could ask must hold by then.
        """
        with self._reading:
            while True:
                try:
                    data = self._orders.recv(65536)
                except BlockingIOError:
                    return True
                except OSError:
                    return False
                if not data:
                    return False
                self._order += data
                *lines, rest = self._order.split(b"\n")
                self._order = bytearray(rest)
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        kind, number = order["kind"], order["kernel"]
        if kind == "kernel":
            self.book.release(number, NO_CELL)
            self.kernels.tokens[number] = order["token"].encode()
        elif kind == "cell":
            self.kernels.cells[number] = order["cell"]
            self.book.admit(number)
        elif kind == "settle":
            self.book.settle(number, NO_CELL, lambda: self.tell(order))
        elif kind == "release":
            self.book.release(number, order["why"])
        elif kind == "gone":
            self.kernels.tokens.pop(number, None)
            self.book.release(number, "the kernel is gone")

    def _asker(self, token: str) -> int | None:
        self.catch_up()
        return self.kernels.of(token)

    # The kernels' door

    def _local(self) -> Flask:
        app = guarded(lambda token: self._asker(token) is not None, self.book.session)

        @app.post("/enqueue")
        def enqueue() -> Response:
            kernel = self._asker(request.headers[TOKEN])
            channel = _channel()
            try:
                call = self._read_call(kernel, request.get_data(cache=False))
                if channel is None:
                    return _message(*_told(self.book.ask(call, object())))
                channel.gone = lambda: self.book.leave(call.kernel, call.call, channel)
                waiter = _Waiter(channel, {SESSION: self.book.session, "Content-Type": OCTETS})
                reply = self.book.ask(call, channel, lambda: not channel.connected, waiter.hand)
            except (FrameError, WireError, Refused) as error:
                return _message({"refused": str(error)}, b"")
            if waiter.answered:
                raise Answered
            return _message(*_told(reply))

        return app

    def _read_call(self, kernel: int | None, data: bytes) -> wire.Call:
        messages = list(Parser(self._largest).feed(data))
        if len(messages) != 1:
            raise FrameError("a request that is not one message")
        header, body = messages[0]
        cell = self.kernels.cells.get(kernel or 0, 0)
        call = codec.decode({**header, "kernel": kernel, "cell": cell}, body, wire.CALL)
        assert isinstance(call, wire.Call)
        if len(call.sizes) > self._caps["batch"]:
            raise Refused(f"a batch of {len(call.sizes):,} prompts; at most {self._caps['batch']:,}")
        if any(size > self._caps["prompt"] for size in call.sizes):
            raise Refused(f"a prompt above {self._caps['prompt']:,} bytes")
        if len(body) > self._caps["message"]:
            raise Refused(f"a batch of {len(body):,} bytes; at most {self._caps['message']:,}: use several batches")
        return call

    # The host's door

    def _public(self) -> Flask:
        app = guarded(self.is_host, self.book.session)

        @app.get("/pending")
        def pending() -> Response:
            after, wait = self._read_up_to(), request.args.get("wait", type=float)
            if request.args.get("session", self.book.session) != self.book.session:
                abort(409)
            channel = _channel()
            if channel is None:
                reader = self.book.open(lambda: None)
            else:
                reader = self.book.open(channel.cut, *(() if wait is not None else (_hand(channel),)))
                channel.gone = lambda: self.book.shut(reader)
            lines = self._lines(reader, after, wait)
            return Response(b"".join(lines) if wait is not None else lines, mimetype="application/x-ndjson")

        @app.post("/respond")
        def respond() -> Response:
            self._read_up_to()
            try:
                parser = Parser(self._largest)
                replies = list(itertools.starmap(read_reply, parser.feed(request.get_data(cache=False))))
            except (FrameError, WireError) as error:
                abort(400, str(error))
            if parser.held:
                abort(400, "half a reply")
            results = [self.book.answer(reply, digest) for reply, digest in replies]
            return Response(json.dumps({"results": results}), mimetype="application/json")

        @app.get("/health")
        def health() -> Response:
            self.book.heard()
            told = {"session": self.book.session, "waiting": self.book.waiting}
            return Response(json.dumps(told), mimetype="application/json")

        return app

    def _read_up_to(self) -> int:
        after = request.args.get("after", 0, type=int)
        if not self.book.heard(after):
            abort(409)
        return after

    def _lines(self, reader: int, after: int, wait: float | None) -> Iterator[bytes]:
        """Write what the host has not read: for ever, or what is there within `wait` seconds."""
        try:
            yield hello_line(self.book.session)
            while True:
                seconds = self._heartbeat if wait is None else min(max(wait, 0.0), WAIT_CAP)
                events = self.book.read(reader, seconds)
                if events is None:
                    return
                yield from _joined(events)
                if wait is not None:
                    return
                if not events:
                    yield b"\n"
        finally:
            self.book.shut(reader)


def _hand(channel: Channel) -> Callable[[Asked], bool]:
    """Give what sends a small call down an endless answer at once, if nothing is in its way."""

    def hand(asked: Asked) -> bool:
        if len(asked.call.data) > HANDED:
            return False
        return channel.say_at_once(b"".join(call_lines(asked.number, asked.call, asked.digest)))

    return hand


def _joined(events: list[Asked | GivenUp]) -> Iterator[bytes]:
    """Write events, small ones together."""
    chunk = bytearray()
    for event in events:
        if isinstance(event, GivenUp):
            chunk += dropped_line(event.number, event.dropped)
            continue
        for line in call_lines(event.number, event.call, event.digest):
            chunk += line
            if len(chunk) >= _JOINED:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)


def _channel() -> Channel | None:
    channel: Channel | None = request.environ.get(CHANNEL)
    return channel


class _Waiter:
    """Who waits for a reply, which a small one reaches at once, by the thread that brings it: `answered` tells."""

    def __init__(self, channel: Channel, fields: dict[str, str]) -> None:
        self._channel, self._fields, self.answered = channel, fields, False

    def hand(self, reply: wire.Reply) -> None:
        if len(reply.data) <= HANDED:
            self.answered = self._channel.answer_at_once(self._fields, b"".join(pack(*_told(reply))))


def _told(reply: wire.Reply) -> tuple[dict[str, Any], bytes]:
    return {"sizes": reply.sizes, "errors": reply.errors, "values": reply.values}, reply.data


def _message(header: dict[str, Any], body: bytes) -> Response:
    return Response(b"".join(pack(header, body)), mimetype=OCTETS)


def main(settings: dict[str, Any], public: socket.socket, local: socket.socket, orders: socket.socket) -> None:
    """Serve until whoever orders is gone. The process is this broker's alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if processes.LINUX:
        processes.hide()
        with contextlib.suppress(OSError):
            # Its threads take turns in any case, and faster on one processor than across several.
            os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 65536 else 65536, hard))
    logging.getLogger("waitress").addHandler(logging.NullHandler())
    logging.getLogger("waitress").propagate = False
    Broker(settings, public, local, orders).run()

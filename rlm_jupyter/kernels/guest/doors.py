"""The broker's listeners: waitress, which reads no byte of a request's body before the request has shown its token.

Each door has threads of its own, as many as are busy and no more than it may have, so that callers who block in one never
keep a reply out of the other. What all requests of a door hold together is bounded by what they announce; bodies without a
length are refused. Whoever connects and shows no token soon is cut off. An application is told when its client hangs up.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Container, Iterator
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

from .frames import MIB
from .lines import TOKEN

CHANNEL = "rlm.channel"
"""Where an application finds its `Channel` in the WSGI environment."""
JOINED = 64 * 1024
STRANGER_SECONDS = 10.0
IDLE_SECONDS = 120
_TOKEN_KEY = TOKEN.upper().replace("-", "_")


class Answered(BaseException):
    """Raised by an application whose answer was sent already, by `Channel.answer_at_once`."""


class _Refusal(Error):  # type: ignore[misc]
    def __init__(self, code: int, reason: str) -> None:
        super().__init__("")
        self.code, self.reason = code, reason


class _Request(HTTPRequestParser):  # type: ignore[misc]
    """A request that ends with its head where it may not go on."""

    error: Error | None

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel.adj)
        self._channel = channel
        self._checked = False

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.headers_finished and not self._checked:
            self._checked = True
            if self.error is None and not self.empty:
                self.error = self._refusal()
            if self.error is not None:
                self.completed, self.expect_continue = True, False
        return consumed

    def _refusal(self) -> Error | None:
        if not self._channel.server.allowed(self.headers.get(_TOKEN_KEY, "")):
            return _Refusal(401, "Unauthorized")
        self._channel.known = True
        if self.chunked:
            return _Refusal(411, "Length Required")
        if not self._channel.hold(self.content_length):
            return _Refusal(503, "Service Unavailable")
        return None


class _Work(WSGITask):  # type: ignore[misc]
    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[CHANNEL] = self.channel
        self.channel.say = self.write
        return environ

    def service(self) -> None:
        try:
            super().service()
        finally:
            self.channel.gone = lambda: None  # before the next request of this connection is served

    def execute(self) -> None:
        try:
            super().execute()
        except Answered:
            self.wrote_header = True

    def write(self, data: bytes) -> None:
        """Send a piece of the answer, the first one together with the head: each packet wakes whoever waits."""
        if self.wrote_header or len(data) > JOINED:
            super().write(data)
        else:
            with self.channel.joined():
                super().write(data)


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. `gone` is called, from the door's own thread, when the client has hung up.

    `say` sends a piece of the answer that is being given, from any thread.
    """

    task_class = _Work
    say: Callable[[bytes], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.known = False
        self.gone: Callable[[], None] = lambda: None
        self._held = 0
        self._flushing = self._missed = False
        self._parts: list[bytes] | None = None
        super().__init__(*args, **options)
        self.parser_class = lambda adj: _Request(self)

    def hold(self, size: int) -> bool:
        """Count what a request announces; whether there is room for it."""
        with self.server.counting:
            if self.server.held + size > self.server.cap:
                return False
            self._held += size
            self.server.held += size
            return True

    @property
    def caught_up(self) -> bool:
        """Whether there is nothing that the door's own thread would have to do here, nor to hear of."""
        return not (self.requests or self._missed or self.writable())

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Send all that is written meanwhile at once."""
        parts: list[bytes] = []
        self._parts = parts
        try:
            yield
        finally:
            self._parts = None
        self.write_soon(b"".join(parts))

    def write_soon(self, data: bytes) -> int:
        if self._parts is None:
            return int(super().write_soon(data))
        self._parts.append(data)
        return len(data)

    def _flush_some(self, do_close: bool = True) -> bool:
        self._flushing = True
        try:
            return bool(super()._flush_some(do_close=do_close))
        finally:
            self._flushing = False
            if self._missed and not self.total_outbufs_len:
                self.server.wake()

    def readable(self) -> bool:
        """Whether more may be read. Who makes it so, once the door's own thread was told that it may not, wakes it."""
        self._missed = False
        if super().readable():
            return True
        self._missed = True
        return bool(super().readable())  # whoever made it so a moment ago did not know that it was missed

    def writable(self) -> bool:
        """Whether there are bytes to send that no thread is sending: the door's own would ask again and again, and take turns.

        Who does not get rid of all of them wakes it.
        """
        return not self._flushing and bool(super().writable())

    def say_at_once(self, data: bytes) -> bool:
        """Send a piece of the answer if nothing is in its way; whether it was sent. It never waits, for a lock neither."""
        return self._at_once(lambda: self.say(data))

    def answer_at_once(self, fields: dict[str, str], body: bytes) -> bool:
        """Give the whole answer to the request that is being served, as `say_at_once` does; the application has to say so."""
        request = self.requests[0]
        if request.version != "1.1" or request.headers.get("CONNECTION") is not None:
            return False
        head = "".join(f"{name}: {value}\r\n" for name, value in {**fields, "Content-Length": str(len(body))}.items())
        return self._at_once(lambda: self.write_soon(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode("latin-1") + body))

    def _at_once(self, write: Callable[[], object]) -> bool:
        if self.total_outbufs_len or not self.outbuf_lock.acquire(blocking=False):
            return False
        try:
            write()
        except ClientDisconnected:
            return False
        finally:
            self.outbuf_lock.release()
        return True

    def service(self) -> None:
        self.server.serving.channel = self
        try:
            super().service()
        finally:
            self.server.serving.channel = None
        with self.requests_lock:
            if not self.requests and self.request is None:
                self._release()

    def handle_read(self) -> None:
        super().handle_read()
        self.server.serve_at_once()

    def cut(self) -> None:
        """End the connection at once, also one that takes no more bytes. From any thread."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server.wake()

    def handle_close(self) -> None:
        super().handle_close()
        self._release()
        self.gone()

    def _release(self) -> None:
        with self.server.counting:
            self.server.held -= self._held
            self._held = 0


class _Pool(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Threads, started when they are needed."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add_task(self, task: Any) -> None:
        super().add_task(task)
        with self.lock:
            count = len(self.threads)
            wanted = min(self._most, self.active_count + len(self.queue))
        if wanted > count:
            self.set_thread_count(wanted)


class Door(TcpWSGIServer):  # type: ignore[misc]
    """A listener.

    Parameters
    ----------
    app
        The WSGI application behind it.
    sock
        Bound to its address already.
    allowed
        Tells whether a token opens this door.
    threads
        How many requests are served at once.
    connections
        How many connections are open at once.
    cap
        How many bytes the requests under way may hold together; `largest` is the cap of one.
    quick
        Paths whose small requests never wait for anything: the door's own thread serves them, which spares them a turn.
    """

    channel_class = Channel

    def __init__(
        self,
        app: Any,
        sock: socket.socket,
        allowed: Callable[[str], bool],
        *,
        threads: int,
        connections: int,
        largest: int,
        cap: int,
        quick: Container[str] = (),
    ) -> None:
        self._quick, self._at_once, self._thread = quick, deque[Channel](), 0
        self.allowed, self.cap, self.held, self.counting = allowed, cap, 0, threading.Lock()
        self.serving = threading.local()
        settings = Adjustments(
            sockets=[sock],
            threads=threads,
            connection_limit=connections,
            channel_timeout=IDLE_SECONDS,
            cleanup_interval=5,
            asyncore_loop_timeout=5,
            asyncore_use_poll=True,
            channel_request_lookahead=1,  # else nobody notices that a caller hangs up
            max_request_header_size=16 * 1024,
            max_request_body_size=largest + 1,
            inbuf_overflow=MIB,
            outbuf_overflow=32 * MIB,
            outbuf_high_watermark=4 * MIB,
            recv_bytes=256 * 1024,
            ident="",
            log_socket_errors=False,
        )
        where = (sock.family, sock.type, sock.proto, sock.getsockname())
        pool = _Pool(threads)
        super().__init__(app, map={}, _sock=sock, dispatcher=pool, adj=settings, sockinfo=where, bind_socket=False)

    @property
    def port(self) -> int:
        return int(self.effective_port)

    def run(self) -> None:
        self._thread = threading.get_ident()
        super().run()

    def add_task(self, task: Channel) -> None:
        request = task.requests[0]
        if request.path in self._quick and request.content_length < JOINED and threading.get_ident() == self._thread:
            self._at_once.append(task)
        else:
            super().add_task(task)

    def serve_at_once(self) -> None:
        """Serve the quick requests that the door's own thread has just read."""
        while self._at_once:
            self._at_once.popleft().service()

    def wake(self) -> None:
        """Have the door's own thread look at all connections again."""
        super().pull_trigger()

    def pull_trigger(self) -> None:
        """Wake the door's own thread, unless the one request that this thread serves leaves it nothing to do."""
        channel: Channel | None = getattr(self.serving, "channel", None)
        if channel is None or not channel.caught_up:
            self.wake()

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            if not channel.known and channel.creation_time < now - STRANGER_SECONDS:
                channel.cut()

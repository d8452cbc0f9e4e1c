"""Test helpers for users of rlm_jupyter, and for itself: a scripted LM server over real HTTP, and builders of events.

`ScriptedServer` speaks OpenAI's chat completions on a port of its own, from a thread of its own, so that the code under test
runs the real client: headers, streams, time-outs, lost connections. What it answers is a script: a list of replies, or a
function of the request. It keeps a log of requests and the most that were under way at once.

It is cheap (some 60 microseconds a request), since it shares the machine with what it tests: its own reading of HTTP/1.1
does what such clients send, and is no server for anything else. It listens on loopback only.

>>> with ScriptedServer(["```repl\\nFINAL_VAR('42')\\n```"]) as server:
...     RLM(backend_kwargs={"model_name": "any", "base_url": server.url}).completion("what?")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from rlm_jupyter import events
from rlm_jupyter.events import Event, Usage
from rlm_jupyter.testing_dialects import PROFILES, Profile

PIECE = 24
"""Characters of a piece of a streamed reply."""
WAIT = 30.0
"""Seconds that a wait for the server takes at most."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server, good or bad.

    Attributes
    ----------
    text, finish_reason, usage
        Of a completion; `usage` is (input, output) or (input, output, cached) tokens, a fourth of the characters if left out.
    delay, pause
        Seconds before the answer begins, and between the pieces of a stream.
    hold
        Do not answer before `server.release()`.
    status, error, headers
        Of a failure: status 400 and above send `error` in OpenAI's shape (`message`, `type`, `code`, `param`).
    fails
        A failure as the server's `dialect` tells it: `key`, `model`, `quota`, `rate` or `context`.
    body
        Sent as it is instead of a completion.
    cut_after
        Close the connection after so many bytes of the answer.
    drop
        Close the connection without an answer.
    empty_choices, null_content, omit_usage, no_end
        A completion without choices, without text, without usage; a stream without a finish reason, usage and `[DONE]`.
    """

    text: str = ""
    finish_reason: str = "stop"
    usage: tuple[int, ...] | None = None
    delay: float = 0.0
    pause: float = 0.0
    hold: bool = False
    status: int = 200
    error: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    fails: str = ""
    body: str | bytes | None = None
    cut_after: int | None = None
    drop: bool = False
    empty_choices: bool = False
    null_content: bool = False
    omit_usage: bool = False
    no_end: bool = False


@dataclass(slots=True)
class Request:
    """A request as the server got it. `ended` is 0 while it is under way; `aborted`: the client went away before the end."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    number: int
    started: float
    ended: float = 0.0
    status: int = 0
    aborted: bool = False
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def messages(self) -> list[dict[str, str]]:
        messages = self.body.get("messages")
        return messages if isinstance(messages, list) else []

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"] if self.messages else ""

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


Script = Sequence["Reply | str"] | Callable[[Request], "Reply | str"]
"""Replies in the order of the requests, or a function that gives one; it runs in the server's thread."""


class ScriptedServer:
    """An OpenAI-compatible server that answers by a script. A context manager; `url` is what `--base-url` takes.

    Parameters
    ----------
    script
        For every model that `models` does not name.
    models
        Scripts by the name of the model: one for the root LM, one for the sub-calls.
    strict
        Behave as the newest models do: refuse `max_tokens` and any `temperature` but 1.
    old
        Behave as older servers do: refuse `max_completion_tokens` and `stream_options`.
    dialect
        Be a provider's server: `openai`, `anthropic`, `ollama`, ..., or a `testing_dialects.Profile`: its path, what it
        refuses and requires, how it tells usage and failures.
    key
        With a `dialect`: refuse requests without this key.
    omit_usage
        Never tell a usage. Otherwise a whole reply has it, and a stream only when it is asked for.
    latency
        Seconds before each answer.

    Attributes
    ----------
    requests, peak
        Every request so far, in order, and the most under way at once.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        models: Mapping[str, Script] | None = None,
        strict: bool = False,
        old: bool = False,
        dialect: str | Profile | None = None,
        key: str | None = None,
        omit_usage: bool = False,
        latency: float = 0.0,
    ) -> None:
        self.profile, self.key = PROFILES[dialect] if isinstance(dialect, str) else dialect, key
        self._scripts = {name: _Player(one) for name, one in (models or {}).items()}
        self._script = _Player(script)
        self.strict, self.old, self.omit_usage, self.latency = strict, old, omit_usage, latency
        self.requests: list[Request] = []
        self.peak = self.under_way = 0
        self.port = 0
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._holds: list[asyncio.Event] = []
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Begin to listen; when it returns, the port is open."""
        ready: list[BaseException | None] = []
        opened = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready, opened), name="scripted LM server", daemon=True)
        self._thread.start()
        if not opened.wait(WAIT):
            raise TimeoutError("the scripted server did not start")
        if ready and ready[0] is not None:
            raise ready[0]

    def close(self) -> None:
        """Close every connection and end the thread."""
        loop, stop, thread = self._loop, self._stop, self._thread
        if loop is None or stop is None or thread is None:
            return
        self._loop = None
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT)

    def release(self) -> None:
        """Let every held reply go, and hold no later one."""
        self._released.set()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        for hold in self._holds:
            hold.set()

    def wait_for(self, count: int, *, ended: bool = False, timeout: float = WAIT) -> list[Request]:
        """Wait until `count` requests have come (or have ended) and give them all; a TimeoutError says how many there are."""

        def enough() -> bool:
            return sum(1 for request in self.requests if not ended or request.ended) >= count

        with self._changed:
            if not self._changed.wait_for(enough, timeout):
                raise TimeoutError(f"{len(self.requests)} requests have come, not {count}")
            return list(self.requests)

    def requests_to(self, model: str) -> list[Request]:
        """Give the requests to one model."""
        return [request for request in self.requests if request.model == model]

    def _run(self, ready: list[BaseException | None], opened: threading.Event) -> None:
        try:
            asyncio.run(self._serve(opened))
        except BaseException as error:
            ready.append(error)
            opened.set()

    async def _serve(self, opened: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[_Connection] = set()
        server = await self._loop.create_server(lambda: _Connection(self, connections), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        opened.set()
        await self._stop.wait()
        server.close()
        for connection in list(connections):
            connection.close()

    def _begin(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self.under_way += 1
            self.peak = max(self.peak, self.under_way)
            self._changed.notify_all()

    def _end(self, request: Request, status: int, *, aborted: bool = False) -> None:
        with self._changed:
            if not request.ended:
                request.ended, request.status, request.aborted = time.monotonic(), status, aborted
                self.under_way -= 1
                self._changed.notify_all()

    def _reply(self, request: Request) -> Reply:
        """Decide on the answer: by the profile, else by the script."""
        if request.method == "GET" and request.path.endswith("/models"):
            names = sorted(self._scripts) or ["scripted"]
            return Reply(body=json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}))
        if self.profile is not None:
            refused = self.profile.refuse(request.path, request.headers, request.body, self.key)
            if refused is not None:
                return Reply(status=refused[0], body=refused[1])
        elif not request.path.endswith("/chat/completions"):
            return Reply(status=404, error={"message": f"no such path: {request.path}", "type": "invalid_request_error"})
        for name, why in self._refused(request.body):
            error = {"message": why, "type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}
            return Reply(status=400, error=error)
        try:
            reply = self._scripts.get(request.model, self._script).next(request)
            if not reply.fails:
                return reply
            status, text = (self.profile or PROFILES["openai"]).failure(reply.fails, request.model)
            return replace(reply, status=status, body=text)
        except Exception as problem:
            return Reply(
                status=400, error={"message": f"the script failed: {type(problem).__name__}: {problem}", "type": "script"}
            )

    def _refused(self, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.strict:
            if "max_tokens" in body:
                text = (
                    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
                )
                yield "max_tokens", text
            if body.get("temperature", 1) != 1:
                yield (
                    "temperature",
                    (
                        f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. "
                        "Only the default (1) value is supported."
                    ),
                )
        if self.old:
            for name in ("max_completion_tokens", "stream_options"):
                if name in body:
                    yield name, f"Unrecognized request argument supplied: {name}"

    async def _held(self) -> None:
        hold = asyncio.Event()
        self._holds.append(hold)
        if not self._released.is_set():
            await hold.wait()


class _Player:
    """Plays a script: each request gets the next reply; a script at its end is a failure that says so."""

    def __init__(self, script: Script) -> None:
        self._next = iter(script) if not callable(script) else None
        self._function = script if callable(script) else None

    def next(self, request: Request) -> Reply:
        if self._function is not None:
            reply = self._function(request)
        else:
            assert self._next is not None
            found = next(self._next, None)
            if found is None:
                return Reply(status=400, error={"message": "the script is at its end", "type": "script", "code": "script_end"})
            reply = found
        return Reply(reply) if isinstance(reply, str) else reply


class _Connection(asyncio.Protocol):
    """One connection of a client: reads requests one after the other, and writes the answers."""

    def __init__(self, server: ScriptedServer, connections: set[_Connection]) -> None:
        self._server, self._connections = server, connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._request is not None:
            self._server._end(self._request, 0, aborted=True)
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._request is None:
            self._read()

    def _read(self) -> None:
        """Take one whole request from the buffer, if there is one, and begin to answer it."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        start = end + 4
        if len(self._buffer) < start + size:
            return
        raw = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        method, path, *_ = first.split(" ")
        number = len(self._server.requests)
        request = self._request = Request(method, path, headers, raw, number, time.monotonic())
        with contextlib.suppress(ValueError):
            body = json.loads(raw) if raw else {}
            request.body = body if isinstance(body, dict) else {}
        self._server._begin(request)
        self._answer(request)

    def _answer(self, request: Request) -> None:
        """Answer now, later by the loop's clock (the cheap way), or by a task where there is more to wait for."""
        reply = self._server._reply(request)
        delay = reply.delay + self._server.latency
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        if reply.hold or (reply.pause and request.stream):
            self._task = loop.create_task(self._slowly(request, reply, delay))
        elif delay:
            loop.call_later(delay, self._at_once, request, reply)
        else:
            self._at_once(request, reply)

    def _at_once(self, request: Request, reply: Reply) -> None:
        self._send(reply, b"".join(self._server_bytes(request, reply)))
        self._done(request, reply)

    async def _slowly(self, request: Request, reply: Reply, delay: float) -> None:
        await asyncio.sleep(delay)
        if reply.hold:
            await self._server._held()
        for number, data in enumerate(self._server_bytes(request, reply)):
            if reply.pause and number:
                await asyncio.sleep(reply.pause)
            self._send(reply, data)
        self._done(request, reply)

    def _send(self, reply: Reply, data: bytes) -> None:
        assert self._transport is not None
        if reply.cut_after is not None:
            data = data[: max(0, reply.cut_after - self._sent)]
        self._sent += len(data)
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _done(self, request: Request, reply: Reply) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._server._end(request, reply.status)
        self._request, self._task, self._sent = None, None, 0
        if reply.drop or reply.cut_after is not None:
            self._transport.close()
        elif self._buffer:
            self._read()

    def _server_bytes(self, request: Request, reply: Reply) -> Iterator[bytes]:
        """Give the bytes of an answer, a stream piece by piece."""
        if reply.drop:
            return
        plain = reply.status != 200 or reply.body is not None or not request.stream
        if plain:
            native = self._server.profile is not None and self._server.profile.usage == "native" and reply.body is None
            body = _native(request, reply)[-1] if native and reply.status == 200 else self._whole(request, reply)
            kind = "application/json" if body[:1] in (b"{", b"[") else "text/html"
            yield _head(reply, kind, f"Content-Length: {len(body)}") + body
            return
        usage = self._server.profile.usage if self._server.profile is not None else "asked"
        kind = "application/x-ndjson" if usage == "native" else "text/event-stream"
        yield _head(reply, kind, "Transfer-Encoding: chunked")
        lines = _native(request, reply) if usage == "native" else _stream(request, reply, self._server.omit_usage, usage)
        for line in lines:
            yield b"%x\r\n%s\r\n" % (len(line), line)
        yield b"0\r\n\r\n"

    def _whole(self, request: Request, reply: Reply) -> bytes:
        if reply.body is not None:
            return reply.body.encode() if isinstance(reply.body, str) else reply.body
        if reply.status != 200:
            error = {"message": "", "type": None, "param": None, "code": None, **reply.error}
            return json.dumps({"error": error}).encode()
        message = {"role": "assistant", "content": None if reply.null_content else reply.text}
        choices = [{"index": 0, "message": message, "finish_reason": reply.finish_reason}]
        data = _completion(request, "chat.completion", [] if reply.empty_choices else choices)
        if not (self._server.omit_usage or reply.omit_usage):
            data["usage"] = _usage(request, reply)
        return json.dumps(data).encode()


_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
}


def _head(reply: Reply, kind: str, length: str) -> bytes:
    headers = {"Content-Type": kind, **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}", length]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _completion(request: Request, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request.number}", "object": kind, "created": 0, "model": request.model, "choices": choices}


def _usage(request: Request, reply: Reply) -> dict[str, Any]:
    counts = reply.usage or (len(request.raw) // 4, len(reply.text) // 4 + 1)
    cached = counts[2] if len(counts) > 2 else 0
    return {
        "prompt_tokens": counts[0],
        "completion_tokens": counts[1],
        "total_tokens": counts[0] + counts[1],
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _native(request: Request, reply: Reply) -> list[bytes]:
    """Give Ollama's answer: the pieces of a stream, one object a line, or the one object of a whole reply."""
    size = PIECE if request.stream else max(1, len(reply.text))
    pieces = [reply.text[start : start + size] for start in range(0, len(reply.text), size)] or [""]
    sent, received = (_usage(request, reply)[name] for name in ("prompt_tokens", "completion_tokens"))
    counts = {"done_reason": reply.finish_reason, "prompt_eval_count": sent, "eval_count": received}

    def line(text: str, done: bool) -> bytes:
        data = {"model": request.model, "message": {"role": "assistant", "content": text}, "done": done}
        return json.dumps(data | (counts if done else {})).encode() + b"\n"

    return [line(piece, False) for piece in pieces] + [line("", True)] if request.stream else [line(pieces[0], True)]


def _stream(request: Request, reply: Reply, omit_usage: bool, usage: str = "asked") -> Iterator[bytes]:
    """Give the events of a streamed reply, each as its bytes."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: %s\n\n" % json.dumps(_completion(request, "chat.completion.chunk", choices) | more).encode()

    def choice(delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    if not reply.empty_choices:
        yield event(choice({"role": "assistant", "content": None if reply.null_content else ""}))
        for start in range(0, 0 if reply.null_content else len(reply.text), PIECE):
            yield event(choice({"content": reply.text[start : start + PIECE]}))
        if not reply.no_end:
            yield event(choice({}, reply.finish_reason))
    options = request.body.get("stream_options")
    asked = usage == "always" or (isinstance(options, dict) and options.get("include_usage"))
    if asked and not (omit_usage or reply.omit_usage or reply.no_end):
        yield event([], usage=_usage(request, reply))
    if not reply.no_end:
        yield b"data: [DONE]\n\n"


class Story:
    """Builds the events of a run, numbered and timed, for tests of whatever shows or reads them.

    >>> story = Story("How many?").iteration("I count.", "len(context)", "3", calls=[("which?", "the first")]).answered("3")
    >>> Trace.from_events(story.events).answer
    '3'
    """

    def __init__(self, question: str = "What is it?", *, run: str = "0" * 32, **settings: Any) -> None:
        self.events: list[Event] = []
        self._run, self._at = run, 1_700_000_000.0
        self._iteration = self._cell = self._calls = 0
        self._usage, self._cost = Usage(), 0.0
        self.add(
            events.RunStarted(
                question=question,
                settings={"model": "demo", "environment": "local", **settings},
                context_type="str",
                context_size=1000,
                context_digest="0" * 64,
                context_description="a str of 1,000 characters",
                isolation="not isolated: the code runs with your own rights on this machine",
            )
        )

    def add(self, event: Event, seconds: float = 0.1) -> Story:
        """Append any event; run, number and time are filled in."""
        self._at += seconds
        stamped = events.from_dict(event.to_dict() | {"run": self._run, "number": len(self.events), "at": self._at})
        self.events.append(stamped)
        return self

    def iteration(
        self,
        reply: str,
        code: str | None = None,
        output: str = "",
        *,
        calls: Sequence[tuple[str, str]] = (),
        error: str = "",
        usage: Usage | None = None,
        cost: float | None = 0.001,
    ) -> Story:
        """One turn: the LM's reply, then (where there is `code`) a cell with its output and sub-calls of (prompt, reply)."""
        self._iteration += 1
        usage = usage or Usage(100, 20)
        self._count(usage, cost)
        self.add(events.IterationStarted(iteration=self._iteration, of=30))
        self.add(
            events.ReplyEnded(
                iteration=self._iteration, text=reply, finish_reason="stop", usage=usage, cost=cost, attempts=1, seconds=0.1
            )
        )
        if code is None:
            return self
        self._cell += 1
        self.add(events.CellStarted(iteration=self._iteration, cell=self._cell, code=code))
        for prompt, answer in calls:
            self.call(prompt, answer)
        if output:
            self.add(events.CellOutput(cell=self._cell, stream="stdout", text=output))
        status = "error" if error else "ok"
        return self.add(events.CellEnded(cell=self._cell, status=status, error=error, omitted=0, seconds=0.1))

    def call(self, prompt: str, reply: str = "", *, error: str = "", batch: str = "") -> Story:
        """A sub-call of the cell that came last."""
        self._calls += 1
        call, usage, cost = f"{self._calls:032x}", Usage(50, 10), 0.0005
        self._count(usage, cost)
        self.add(events.CallStarted(call=call, batch=batch, cell=self._cell, model="demo", prompt=prompt))
        return self.add(
            events.CallEnded(
                call=call, cell=self._cell, reply=reply, error=error, usage=usage, cost=cost, attempts=1, seconds=0.1
            )
        )

    def answered(self, answer: str, answer_type: str = "str") -> Story:
        """The end of a run that went well."""
        return self.ended("answered", answer=answer, answer_type=answer_type)

    def ended(self, status: str, *, answer: str = "", answer_type: str = "", error: str = "", limit: str = "") -> Story:
        """The end of a run, with the totals of what came before."""
        return self.add(
            events.RunEnded(
                status=status,
                limit=limit,
                answer=answer,
                answer_type=answer_type,
                error=error,
                calls=self._iteration + self._calls,
                usage=self._usage,
                cost=self._cost,
                seconds=self._at - 1_700_000_000.0,
            )
        )

    def _count(self, usage: Usage, cost: float | None) -> None:
        self._usage += usage
        self._cost += cost or 0.0

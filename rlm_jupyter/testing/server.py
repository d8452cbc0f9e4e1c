"""An OpenAI-compatible server that answers by a script, on loopback only, from a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from rlm_jupyter.testing.connection import Connection
from rlm_jupyter.testing.dialects import PROFILES, Profile
from rlm_jupyter.testing.messages import Player, Reply, Request, Script

WAIT = 30.0
"""Seconds that a wait for the server takes at most."""


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
        Be a provider's server: `openai`, `anthropic`, `ollama`, ..., or a `Profile`: its path, what it
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
        self._scripts = {name: Player(one) for name, one in (models or {}).items()}
        self._script = Player(script)
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
        connections: set[Connection] = set()
        server = await self._loop.create_server(lambda: Connection(self, connections), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        opened.set()
        await self._stop.wait()
        server.close()
        for connection in list(connections):
            connection.close()

    def begin(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self.under_way += 1
            self.peak = max(self.peak, self.under_way)
            self._changed.notify_all()

    def end(self, request: Request, status: int, *, aborted: bool = False) -> None:
        with self._changed:
            if not request.ended:
                request.ended, request.status, request.aborted = time.monotonic(), status, aborted
                self.under_way -= 1
                self._changed.notify_all()

    def reply(self, request: Request) -> Reply:
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

    async def held(self) -> None:
        hold = asyncio.Event()
        self._holds.append(hold)
        if not self._released.is_set():
            await hold.wait()

"""The scripted language model that every column of the benchmarks talks to, in a process of its own.

A bare HTTP/1.1 server on one asyncio protocol, so that its own cost is small and the same for all. The model `root`
replies with the scripted texts in order; the model `child` by the turn that its request is, after the scripted latency; every
other model replies `ok` after it. When a request
has arrived whole and when its reply is handed to the kernel is stamped here, with the clock that all processes of a Linux
machine share. It refuses nothing and checks no key: it listens on loopback for the minutes of one run.

    POST /v1/chat/completions    as OpenAI's, plain and streamed
    POST /script                 {"replies": [...], "latency": seconds, "root_latency": seconds}: begin anew
    GET  /log                    [{"model", "arrived", "replied"}, ...] since then
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import Any

ROOT, CHILD = "root", "child"
CHILD_TURNS = (
    "One step.\n\n```repl\nseen = [context]\n```",
    "One more.\n\n```repl\nseen.append(len(seen))\n```",
    "```repl\nFINAL_VAR(seen)\n```",
)
"""What a child replies in its turns."""


class Script:
    """What to reply, and what was asked so far."""

    def __init__(self) -> None:
        self.begin([], 0.0, 0.0)

    def begin(self, replies: list[str], latency: float, root_latency: float) -> None:
        self.replies, self.latency, self.root_latency = list(reversed(replies)), latency, root_latency
        self.log: list[dict[str, Any]] = []

    def reply(self, model: str, turn: int) -> tuple[str, float]:
        """Give the text for a request to `model` in its `turn`, and the seconds to wait before it is sent."""
        if model == CHILD:
            return CHILD_TURNS[turn], self.latency
        if model != ROOT:
            return "ok", self.latency
        return (self.replies.pop() if self.replies else "The script is at its end."), self.root_latency


class Connection(asyncio.Protocol):
    """One kept-alive connection of a client."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].decode("latin-1").lower()
            length = 0
            for line in head.split("\r\n")[1:]:
                name, _, value = line.partition(":")
                if name == "content-length":
                    length = int(value)
            if len(self.received) < end + 4 + length:
                return
            arrived = time.monotonic()
            body, self.received = self.received[end + 4 : end + 4 + length], self.received[end + 4 + length :]
            self.answer(head.split(" ", 2)[1], body, arrived)

    def answer(self, path: str, body: bytes, arrived: float) -> None:
        if path.endswith("/chat/completions"):
            request = json.loads(body)
            turn = sum(message["role"] == "assistant" for message in request["messages"])
            text, latency = self.script.reply(request["model"], turn)
            entry = {"model": request["model"], "arrived": arrived, "replied": 0.0}
            self.script.log.append(entry)
            kind, reply = _streamed(request, text) if request.get("stream") else _plain(request, text)
            if latency:
                asyncio.get_running_loop().call_at(arrived + latency, self.send, kind, reply, entry)
            else:
                self.send(kind, reply, entry)
        elif path == "/script":
            request = json.loads(body)
            self.script.begin(request["replies"], request["latency"], request["root_latency"])
            self.send("application/json", b"{}")
        else:
            self.send("application/json", json.dumps(self.script.log).encode())

    def send(self, kind: str, reply: bytes, entry: dict[str, Any] | None = None) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(reply)}\r\n\r\n"
        if entry is not None:
            entry["replied"] = time.monotonic()
        self.transport.write(head.encode() + reply)


def _usage(request: dict[str, Any], text: str) -> dict[str, int]:
    sent = sum(len(message["content"]) for message in request["messages"]) // 4
    return {"prompt_tokens": sent, "completion_tokens": len(text) // 4 + 1, "total_tokens": sent + len(text) // 4 + 1}


def _plain(request: dict[str, Any], text: str) -> tuple[str, bytes]:
    reply = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": _usage(request, text),
    }
    return "application/json", json.dumps(reply).encode()


def _streamed(request: dict[str, Any], text: str) -> tuple[str, bytes]:
    base = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": request["model"]}
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": text}, None), ({}, "stop")]
    chunks: list[dict[str, Any]] = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in deltas
    ]
    if (request.get("stream_options") or {}).get("include_usage"):
        chunks.append({**base, "choices": [], "usage": _usage(request, text)})
    return "text/event-stream", b"".join(
        b"data: %s\n\n" % line for line in [*(json.dumps(c).encode() for c in chunks), b"[DONE]"]
    )


async def main() -> None:
    """Serve on a free port of loopback, print it, and end when stdin does."""
    script = Script()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(script), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())

"""The bytes of a scripted server's answers, whole or streamed, in OpenAI's shape or in Ollama's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rlm_jupyter.testing.dialects import Profile
from rlm_jupyter.testing.messages import Reply, Request

PIECE = 24
"""Characters of a piece of a streamed reply."""


def pieces(request: Request, reply: Reply, profile: Profile | None, omit_usage: bool) -> Iterator[bytes]:
    """Give the bytes of an answer, a stream piece by piece. `omit_usage`: the server never tells a usage."""
    if reply.drop:
        return
    plain = reply.status != 200 or reply.body is not None or not request.stream
    if plain:
        native = profile is not None and profile.usage == "native" and reply.body is None
        body = _native(request, reply)[-1] if native and reply.status == 200 else _whole(request, reply, omit_usage)
        kind = "application/json" if body[:1] in (b"{", b"[") else "text/html"
        yield _head(reply, kind, f"Content-Length: {len(body)}") + body
        return
    usage = profile.usage if profile is not None else "asked"
    kind = "application/x-ndjson" if usage == "native" else "text/event-stream"
    yield _head(reply, kind, "Transfer-Encoding: chunked")
    lines = _native(request, reply) if usage == "native" else _stream(request, reply, omit_usage, usage)
    for line in lines:
        yield b"%x\r\n%s\r\n" % (len(line), line)
    yield b"0\r\n\r\n"


def _whole(request: Request, reply: Reply, omit_usage: bool) -> bytes:
    if reply.body is not None:
        return reply.body.encode() if isinstance(reply.body, str) else reply.body
    if reply.status != 200:
        error = {"message": "", "type": None, "param": None, "code": None, **reply.error}
        return json.dumps({"error": error}).encode()
    message = {"role": "assistant", "content": None if reply.null_content else reply.text}
    choices = [{"index": 0, "message": message, "finish_reason": reply.finish_reason}]
    data = _completion(request, "chat.completion", [] if reply.empty_choices else choices)
    if not (omit_usage or reply.omit_usage):
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

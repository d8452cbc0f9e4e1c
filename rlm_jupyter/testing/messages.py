"""What a scripted server gets and gives: a request as it came, a reply good or bad, and the script that has the replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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


class Player:
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

"""What a server sent as a chat completion, read with suspicion: whole (`WholeReply`) or as events (`StreamedReply`).

A reply needs one choice with text; figures that no provider would send count as not sent; a text that holds the key has it
taken out. A stream that ends without a finish reason or `[DONE]` was cut, and what came of it is no reply.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio

from rlm_jupyter.errors import LMError, LMRefused, LMReplyError
from rlm_jupyter.events import Usage
from rlm_jupyter.lm.failures import Failure, Spent, one_line, word
from rlm_jupyter.redaction import REDACTED
from rlm_jupyter.settings import MIB, PROMPT_CAP

DRAIN_SECONDS = 0.25
_TOKENS_CAP = 10**10
_BAD = object()

Translate = Callable[[dict[str, Any]], dict[str, Any]]
"""Gives an object that a server sent in a form of its own in OpenAI's form."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply. `usage` is None where the provider told none; `finish_reason`: `stop`, `length` or the provider's own word."""

    text: str
    usage: Usage | None
    finish_reason: str
    model: str


def read_usage(data: Any) -> Usage | None:
    """Read the `usage` of a reply; None unless both figures are there and possible."""
    if not isinstance(data, dict):
        return None
    sent, received = _count(data.get("prompt_tokens")), _count(data.get("completion_tokens"))
    if sent is None or received is None:
        return None
    details = data.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(sent, received, min(cached or 0, sent))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _TOKENS_CAP else None


def _text_of(content: Any) -> str | None:
    """Give the text of a message's content, which some servers send in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def _load(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _BAD


class _Reply:
    """What both kinds of reply share."""

    def __init__(self, where: str, key: str | None) -> None:
        self.where, self.key = where, key
        self.text = ""
        self.finish_reason = ""
        self.refusal = ""
        self.usage: Usage | None = None

    def completion(self, model: str) -> Completion:
        if self.finish_reason == "content_filter":
            raise LMRefused(f"{self.where} stopped the reply of {model} by its content filter") from self._spent()
        if self.refusal and not self.text:
            raise LMRefused(one_line(f"{model} refused: {self.refusal}", self.key)) from self._spent()
        return Completion(self.text, self.usage, self.finish_reason or "stop", model)

    def _spent(self) -> Spent:
        return Spent(self.usage, self.text)

    def _no_reply(self, what: str) -> LMError:
        error = LMReplyError(f"{self.where} sent no reply: {what}")
        error.__cause__ = self._spent()
        return error

    def _clean(self, text: str) -> str:
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, which nothing after us could encode
        return text.replace(self.key, REDACTED) if self.key and self.key in text else text

    def _check_error(self, data: dict[str, Any]) -> None:
        """Raise what a body with status 200 tells as its error, as gateways do."""
        if data.get("error"):
            raise Failure.told_by(data["error"])


class WholeReply(_Reply):
    """A reply that came in one piece."""

    def __init__(self, where: str, key: str | None, body: bytes, translate: Translate | None = None) -> None:
        super().__init__(where, key)
        data = _load(body)
        if translate is not None and isinstance(data, dict):
            data = translate(data)
        if data is _BAD:
            page = body.lstrip()[:1] == b"<"
            raise self._no_reply("a web page (is --base-url right?)" if page else "malformed JSON")
        if not isinstance(data, dict):
            raise self._no_reply("JSON of another shape")
        self._check_error(data)
        self.usage = read_usage(data.get("usage"))
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise self._no_reply("no choices")
        message = choice["message"]
        self.finish_reason = word(choice.get("finish_reason")) or "stop"
        refusal, text = message.get("refusal"), _text_of(message.get("content"))
        self.refusal = refusal if isinstance(refusal, str) else ""
        if text is None and not self.refusal and self.finish_reason not in ("length", "content_filter"):
            raise self._no_reply("a message without text")
        if text is not None and len(text) > PROMPT_CAP:
            raise self._no_reply(f"one longer than {PROMPT_CAP // MIB} MiB")
        self.text = self._clean(text or "")


class StreamedReply(_Reply):
    """A reply that comes as server-sent events; each piece of text goes to `on_text` at once."""

    def __init__(self, where: str, key: str | None, on_text: Callable[[str], None], translate: Translate | None = None) -> None:
        super().__init__(where, key)
        self._on_text = on_text
        self._translate = translate  # given where each line is an object, without server-sent events around it
        self._pieces: list[str] = []
        self._size = 0
        self._held = ""
        self._done = False
        self._spoke = False
        self._rest: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def read(self, chunks: AsyncGenerator[bytes]) -> None:
        """Read to the end of the response, so that its connection can be used again; after `[DONE]` only for a moment."""
        try:
            with anyio.CancelScope() as scope:
                async with aclosing(chunks):
                    async for chunk in chunks:
                        self._feed(chunk)
                        if self._done and scope.deadline == math.inf:
                            scope.deadline = anyio.current_time() + DRAIN_SECONDS
            self._feed(b"", last=True)
        except Failure as failure:
            self._end()
            raise failure from (self._spent() if self.text else None)
        except LMError as error:
            if not self.finish_reason and not self._done:  # what is lost after that is only the usage
                self._end()
                raise error from self._spent()
        self._end()
        if not self._done and not self.finish_reason:
            raise LMReplyError(f"{self.where} cut the reply in the middle") from self._spent()
        if not self._spoke and not self.refusal and self.finish_reason not in ("length", "content_filter"):
            raise self._no_reply("a message without text" if self.finish_reason else "no choices")

    def _feed(self, chunk: bytes, last: bool = False) -> None:
        """Take the lines that are whole; a line that grows beyond what a reply may have ends in an error of the reader."""
        *lines, rest = self._decoder.decode(chunk, last).split("\n")
        for line in lines:
            self._line("".join(self._rest) + line)
            self._rest.clear()
        self._rest.append(rest)
        if last:
            self._line("".join(self._rest))

    def _line(self, line: str) -> None:
        if self._done or not (line.strip() if self._translate is not None else line.startswith("data:")):
            return
        line = line if self._translate is not None else line[5:].strip()
        if line == "[DONE]":
            self._done = True
            return
        data = _load(line)
        if data is _BAD:
            raise self._no_reply("malformed JSON in the stream")
        if isinstance(data, dict):
            data = self._translate(data) if self._translate is not None else data
            self._check_error(data)
            self.usage = read_usage(data.get("usage")) or self.usage
            choices = data.get("choices")
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                self._choice(choices[0])

    def _choice(self, choice: dict[str, Any]) -> None:
        self.finish_reason = word(choice.get("finish_reason")) or self.finish_reason
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        if isinstance(delta.get("refusal"), str):
            self.refusal = (self.refusal + delta["refusal"])[:1000]
        text = _text_of(delta.get("content"))
        self._spoke = self._spoke or text is not None
        if text:
            self._size += len(text)
            if self._size > PROMPT_CAP:
                raise self._no_reply(f"one longer than {PROMPT_CAP // MIB} MiB")
            self._give(self._held + text)

    def _give(self, text: str) -> None:
        """Pass text on, but hold back an end that may be the beginning of the key or half a surrogate pair."""
        held = 0
        if self.key:
            text = text.replace(self.key, REDACTED)
            held = next((n for n in range(min(len(self.key) - 1, len(text)), 0, -1) if text.endswith(self.key[:n])), 0)
        if text and "\ud800" <= text[-1] <= "\udbff":
            held = max(held, 1)
        ready, self._held = (text[:-held], text[-held:]) if held else (text, "")
        ready = (
            self._clean(ready.encode("utf-16", "surrogatepass").decode("utf-16", "replace")) if not ready.isascii() else ready
        )
        if ready:
            self._pieces.append(ready)
            self._on_text(ready)

    def _end(self) -> None:
        rest, self._held = self._clean(self._held), ""
        if rest:
            self._pieces.append(rest)
            self._on_text(rest)
        self.text = "".join(self._pieces)

"""Clients of language models: the contract `LM`, and `OpenAILM` for every server that speaks OpenAI's chat completions.

One call of `complete` is one request. Retries, budget and concurrency belong to the handler, which must see each request.
The openai package sends it (on aiohttp: its default transport collapses above 32 connections); the reply is read here,
bounded and checked, since a provider may send anything, and pydantic would cost more than the request (1.0 ms against 0.65).

It refuses to: follow redirects (a key goes to no other host), send headers that the environment names for OpenAI to
another server, read more than `PROMPT_CAP`, or repeat a key in an error or a reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from rlm_jupyter.errors import LMError, LMRefused, LMUnavailable
from rlm_jupyter.lm.completion import Completion, StreamedReply, WholeReply
from rlm_jupyter.lm.dialects import NEW_CAP, OLD_CAP, OPENAI, Dialect, from_ollama
from rlm_jupyter.lm.failures import Failure, ParameterRefused, Spent, Told, one_line

if TYPE_CHECKING:
    from rlm_jupyter.lm.connection import Connection

__all__ = ["LM", "Completion", "ImagePart", "Message", "OpenAILM", "TextPart", "text_of"]

_CAP_NAMES = (NEW_CAP, OLD_CAP)


class ImageURL(TypedDict):
    """Where an image is: here always a `data:` URL."""

    url: str


class TextPart(TypedDict):
    """A text in a message of several parts."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """A picture in a message of several parts."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(TypedDict):
    """One message of a chat: a text, or a text and pictures."""

    role: str
    content: str | list[TextPart | ImagePart]


def text_of(message: Message) -> str:
    """Give the text of a message, without its pictures."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if part["type"] == "text")


class LM(Protocol):
    """A language model. Belongs to the event loop in which it is first used, and is closed there."""

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_output_tokens: int,
        timeout: float,  # noqa: ASYNC109
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Make one request, streamed if `on_text` is given, which then gets the text piece by piece.

        Raises
        ------
        LMRefused
            The provider said no; the same request would fail again.
        LMUnavailable
            Rate limit (`retry_after` as the provider asks), server error, time-out, lost connection.
        LMReplyError
            What came is no reply, or was cut in the middle.
        ParameterRefused
            A parameter will be sent otherwise from now on: send the request again.
        """

    async def aclose(self) -> None:
        """Close connections. Nothing may be called afterwards."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """Which of the adaptable parameters went out with a request: others may be under way when one is refused."""

    cap_name: str
    ask_usage: bool
    pictures: bool


class OpenAILM:
    """A model behind an OpenAI-compatible server, or Ollama in its own form.

    Parameters
    ----------
    model
        Its name, as the server knows it.
    base_url
        Always explicit: `OPENAI_BASE_URL` of the environment must not redirect a key.
    key
        None sends no Authorization header at all.
    sampling
        Further arguments of the request, as they are.
    dialect
        How the server's requests differ from OpenAI's.
    key_name
        The variable that holds the key, for errors.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        dialect: Dialect = OPENAI,
        *,
        key_name: str = "",
    ) -> None:
        self.model, self.base_url, self.key, self.dialect, self.key_name = model, base_url, key or None, dialect, key_name
        self.where = urlsplit(base_url).netloc.rpartition("@")[2] or base_url
        self._sampling = dict(sampling or {})
        self._cap_name = dialect.cap_name
        self._ask_usage = dialect.stream_usage and not dialect.native
        self._cap_switched = False
        self._blind = False
        self._connection: Connection | None = None
        self._opening = anyio.Lock()

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_output_tokens: int,
        timeout: float,  # noqa: ASYNC109
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        above = self.dialect.stream_above
        if on_text is None and above is not None and max_output_tokens > above:
            on_text = _unheard
        pictures = not self._blind and any(not isinstance(message["content"], str) for message in messages)
        sent = _Sent(self._cap_name, on_text is not None and self._ask_usage, pictures)
        body = self._body(messages, max_output_tokens, sent, stream=on_text is not None)
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + timeout):
                connection = self._connection or await self._open()
                return await self._exchange(connection, body, on_text)
        except Failure as failure:
            raise self._adapt(failure, sent) from failure.__cause__
        raise LMUnavailable(f"{self.where} gave no whole reply within {timeout:.3g} s") from Spent(None, None)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _open(self) -> Connection:
        """Import openai in a thread, so that the loop goes on, and make the client."""
        async with self._opening:
            if self._connection is None:
                kind = await anyio.to_thread.run_sync(_import_connection)
                self._connection = kind(self.base_url, self.key, self.dialect)
            return self._connection

    def _body(self, messages: Sequence[Message], max_output_tokens: int, sent: _Sent, *, stream: bool) -> bytes:
        """Write the request. Lone surrogates, which no server accepts, become question marks."""
        cap = (sent.cap_name, max_output_tokens)
        if not sent.pictures:
            messages = [{"role": message["role"], "content": text_of(message)} for message in messages]
        body = self.dialect.body(self.model, messages, cap, self._sampling, stream=stream, ask_usage=sent.ask_usage)
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    async def _exchange(self, connection: Connection, body: bytes, on_text: Callable[[str], None] | None) -> Completion:
        response = await connection.post(body, stream=on_text is not None)
        try:
            translate = from_ollama if self.dialect.native else None
            kind = "application/x-ndjson" if self.dialect.native else "text/event-stream"
            if on_text is not None and response.headers.get("content-type", "").startswith(kind):
                stream = StreamedReply(self.where, self.key, on_text, translate)
                await stream.read(connection.chunks(response))
                return stream.completion(self.model)
            whole = WholeReply(self.where, self.key, await connection.read(response), translate)
            if on_text is not None:
                on_text(whole.text)
            return whole.completion(self.model)
        finally:
            await connection.drop(response)

    def _adapt(self, failure: Failure, sent: _Sent) -> LMError:
        """Turn a refused parameter into another try where there is another way to say it; else tell the failure."""
        if failure.unsupported(sent.cap_name):
            if sent.cap_name == self._cap_name and not self._cap_switched:
                self._cap_name, self._cap_switched = _CAP_NAMES[1 - _CAP_NAMES.index(sent.cap_name)], True
            if sent.cap_name != self._cap_name:
                return ParameterRefused(f"{self.model} takes no {sent.cap_name}: sent again with {self._cap_name}")
        if sent.ask_usage and (failure.names("stream_options") or failure.names("include_usage")):
            self._ask_usage = False
            return ParameterRefused(f"{self.where} takes no stream_options: sent again without")
        if sent.pictures and failure.of_pictures:
            self._blind = True
            return ParameterRefused(f"{self.model} takes no pictures: sent again without")
        for name, value in self._sampling.items():
            if failure.names(name):
                text = f"{self.model} does not take {name}={value!r}: leave it out or change it{failure.told}"
                return LMRefused(one_line(text, self.key))
        dialect = self.dialect
        told = Told(self.model, self.where, self.key, self.key_name, dialect.missing_model.format(model=self.model))
        return failure.to_error(told)


def _unheard(text: str) -> None:
    """Take the pieces of a reply that is streamed only because its server wants it so."""


def _import_connection() -> type[Connection]:
    from rlm_jupyter.lm.connection import Connection

    return Connection

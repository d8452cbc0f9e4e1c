"""How each server's chat completions differ from OpenAI's: names of parameters, headers, the path, Ollama's own form.

What differs is data (`Dialect`), so that the client stays one. The figures come from each provider's own documentation. A
parameter that a server refuses all the same is sent otherwise the next time (`OpenAILM` adapts), so a dialect that went out of
date costs one request, not a run. Nothing here talks to a network or knows a key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NEW_CAP, OLD_CAP = "max_completion_tokens", "max_tokens"
"""The two names that the cap on a reply's tokens goes by."""
OLLAMA_WINDOW = 32_768
"""Tokens that a model of Ollama is loaded for, unless told otherwise: by default it silently drops what is over 4,096."""
_OLLAMA_TOP = frozenset({"think", "format", "keep_alive", "tools"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one kind of server expects.

    Attributes
    ----------
    cap_name
        The name of the cap on a reply's tokens.
    stream_usage
        Whether a stream's usage is asked for by `stream_options`; where not, it comes unasked or not at all.
    stream_above
        Whole replies are given up to this many tokens only; longer ones must be streamed. None: no such rule.
    path
        What follows the base URL, with its query.
    key_header
        `Authorization` (with `Bearer`), or the name of the header that holds the bare key.
    native
        Ollama's own protocol instead of OpenAI's: only there can the context window be set.
    missing_model, not_running
        What to do about a model that is not there (`{model}`), and about nobody listening: ends of the error's line.
    """

    cap_name: str = NEW_CAP
    stream_usage: bool = True
    stream_above: int | None = None
    path: str = "/chat/completions"
    key_header: str = "Authorization"
    native: bool = False
    missing_model: str = ""
    not_running: str = ""

    def body(
        self,
        model: str,
        messages: Sequence[Any],
        cap: tuple[str, int],
        sampling: Mapping[str, Any],
        *,
        stream: bool,
        ask_usage: bool,
    ) -> dict[str, Any]:
        """Give the request's body; `cap` is the name of the cap on the reply's tokens, and the cap."""
        rest = {name: value for name, value in sampling.items() if name not in (NEW_CAP, OLD_CAP)}
        if self.native:
            return _ollama_body(model, messages, cap[1], rest, stream)
        body = {**rest, "model": model, "messages": messages, cap[0]: cap[1]}
        if stream:
            body["stream"] = True
        if ask_usage:
            body["stream_options"] = {"include_usage": True}
        return body


OPENAI = Dialect()
OLD = Dialect(cap_name=OLD_CAP)


def ollama_window() -> int:
    """Give the context window to load models with: as `OLLAMA_CONTEXT_LENGTH` says, which Ollama's server reads too."""
    told = os.environ.get("OLLAMA_CONTEXT_LENGTH", "").strip()
    return int(told) if told.isascii() and told.isdigit() and int(told) > 0 else OLLAMA_WINDOW


def _ollama_body(model: str, messages: Sequence[Any], cap: int, sampling: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    """Write a request in Ollama's own form: the window is always the same, since another one would load the model anew.

    `truncate: false` makes a prompt that does not fit an error; otherwise Ollama drops its beginning without a word.
    """
    top = {name: value for name, value in sampling.items() if name in _OLLAMA_TOP}
    options = {"num_ctx": ollama_window()} | {name: value for name, value in sampling.items() if name not in _OLLAMA_TOP}
    told = [_ollama_message(message) for message in messages]
    body = {"model": model, "messages": told, "stream": stream, "truncate": False, "options": options}
    return top | body | {"options": options | {"num_predict": cap}}


def _ollama_message(message: Any) -> Any:
    """Give a message with its pictures beside the text, as base64 without what a URL says of them."""
    content = message["content"]
    if isinstance(content, str):
        return message
    texts = [part["text"] for part in content if part["type"] == "text"]
    images = [part["image_url"]["url"].partition(",")[2] for part in content if part["type"] == "image_url"]
    return {**message, "content": "\n".join(texts), "images": images}


def from_ollama(data: dict[str, Any]) -> dict[str, Any]:
    """Give what Ollama sent, whole or a piece of a stream, in OpenAI's form; what is missing stays missing."""
    if "error" in data:
        return {"error": data["error"]}
    ended = data.get("done") is True
    message = data.get("message")
    choice = {"message": message, "delta": message, "finish_reason": (data.get("done_reason") or "stop") if ended else None}
    counts = {"prompt_tokens": data.get("prompt_eval_count"), "completion_tokens": data.get("eval_count")}
    return {"choices": [choice] if isinstance(message, dict) else [], "usage": counts if ended else None}

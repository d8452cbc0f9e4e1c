"""Secrets taken out of what is shown and kept: events, and so traces, views and notebooks, and errors.

Secrets are the values of environment variables whose name says so (KEY, TOKEN, SECRET, PASSWORD, CREDENTIAL; 8 characters or
more), a key that Python code gave, and whatever looks like a provider's key. Pieces of a stream are held back while they may be
the beginning of a secret. The answer's live value under `--out` is the user's own data and is not touched; nor is what code in
a kernel sees. This guards against accidents: code that wants to show a secret can always write it in another way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from rlm_jupyter.events import CellOutput, Event, ReplyPart

REDACTED = "[redacted]"
SHORTEST = 8
"""Characters below which the value of a variable is no secret: `true`, `1234`."""
HEAD = 4
"""Characters by which the beginning of a secret is looked for."""

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9_\-*.+/=]{15,}")
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|gsk|xai|hf|pplx|nvapi|csk|ghp|gho|glpat|r8|fw)[-_]|AIza|AKIA|ya29\.|eyJ)"
    r"(?=\S*[0-9*])[A-Za-z0-9_\-*.+/=]{12,}"
)
_BEARER = re.compile(r"(?<=[Bb]earer )\S+")
_USER = re.compile(r"://[^/@\s]+@")
_HEADER = re.compile(r"""(?i)(authorization["']?\s*[:=]\s*["']?[a-z-]+\s+)[^\s"']{8,}""")
_QUERY = re.compile(
    r"""(?i)([?&](?:api[-_]?key|(?:access[-_]?|auth[-_]?)?token|client[-_]?secret|password|subscription[-_]key|sig|x-amz-signature)=)"""
    r"""[^&\s"'#<>]{8,}"""
)


def redact_keys(text: str) -> str:
    """Take out whatever looks like a key: a provider's, of an `Authorization`, or within a URL.

    Only long words can be keys, and finding those is cheap: the patterns of keys on all of a text take ten times as long.
    """
    if any(_KEY.search(word) for word in _WORD.findall(text)):
        text = _KEY.sub(REDACTED, text)
    if "earer " in text:
        text = _BEARER.sub(REDACTED, text)
    if "uthorization" in text:
        text = _HEADER.sub(rf"\1{REDACTED}", text)
    if "?" in text and "=" in text:
        text = _QUERY.sub(rf"\1{REDACTED}", text)
    return _USER.sub(f"://{REDACTED}@", text) if "@" in text else text


def looks_like_a_key(text: str) -> bool:
    return _KEY.search(text) is not None


def secrets_of(environment: Mapping[str, str], given: Iterable[str] = ()) -> list[str]:
    """Give the secrets that an environment holds, each also as it stands within quotes and in a URL, the longest first."""
    values = {value.strip() for name, value in environment.items() if SECRET_NAME.search(name)}
    values |= {value.strip() for value in given}
    values = {value for value in values if len(value) >= SHORTEST and not _is_path(value)}
    quoted = {form[1:-1] for value in values for form in (json.dumps(value), repr(value))}
    in_urls = {write(value, safe="", errors="surrogatepass") for value in values for write in (quote, quote_plus)}
    return sorted(values | quoted | in_urls, key=len, reverse=True)


def _is_path(value: str) -> bool:
    """Tell whether a value only says where a secret lies, as GOOGLE_APPLICATION_CREDENTIALS does."""
    return value.startswith(("/", "~/")) and "\0" not in value and os.path.exists(os.path.expanduser(value))


class Redactor:
    """Takes the secrets of one run out of its events and errors. Not for use from two threads at once."""

    def __init__(self, environment: Mapping[str, str], given: Iterable[str] = ()) -> None:
        self._secrets = secrets_of(environment, given)
        self._pattern = re.compile("|".join(map(re.escape, self._secrets))) if self._secrets else None
        self._heads = frozenset(secret[:size] for secret in self._secrets for size in range(1, HEAD + 1))
        self._longest = max(map(len, self._secrets), default=0)
        self._texts: dict[type[Event], tuple[str, ...]] = {}
        self._held: dict[str, CellOutput | ReplyPart] = {}

    def text(self, text: str) -> str:
        """Give `text` without secrets."""
        if self._pattern is not None and self._found(text):
            text = self._pattern.sub(REDACTED, text)
        return redact_keys(text)

    def _found(self, text: str) -> bool:
        """Tell whether there is a secret in `text`: looking for each in turn is faster than one expression for all."""
        return any(secret in text for secret in self._secrets)

    def error(self, error: BaseException) -> None:
        """Take secrets out of what an error says, and out of what it was caused by."""
        seen: BaseException | None = error
        for _ in range(8):
            if seen is None:
                return
            seen.args = tuple(self.text(arg) if isinstance(arg, str) else arg for arg in seen.args)
            seen = seen.__cause__ or seen.__context__

    def events(self, event: Event) -> Iterator[Event]:
        """Give what to emit for `event`: itself without secrets, after what was held back of an earlier piece of text.

        Each node of the tree has a text of its own that may go on, whatever the others tell meanwhile.
        """
        held = self._held.pop(event.node, None)
        if isinstance(event, CellOutput | ReplyPart):
            if held is not None and _continues(held, event):
                event = dataclasses.replace(event, text=held.text + event.text)
            elif held is not None:
                yield self._clean(held)
            kept = self._kept(event.text)
            if kept:
                self._held[event.node] = dataclasses.replace(event, text=event.text[-kept:])
                event = dataclasses.replace(event, text=event.text[:-kept])
            if event.text:
                yield self._clean(event)
            return
        if isinstance(held, CellOutput):  # a held piece of a reply is in the whole one
            yield self._clean(held)
        yield self._clean(event)

    def _kept(self, text: str) -> int:
        """Give how many characters at the end of a piece may be the beginning of a secret."""
        start = max(0, len(text) - self._longest + 1)
        whole = self._pattern.finditer(text) if self._pattern is not None and self._found(text) else ()
        inside = {place for match in whole for place in range(max(start, match.start() + 1), match.end())}
        for place in range(start, len(text)):
            if text[place : place + HEAD] in self._heads and place not in inside:  # the end of a secret begins no other
                rest = text[place:]
                if any(len(rest) < len(secret) and secret.startswith(rest) for secret in self._secrets):
                    return len(rest)
        return 0

    def _clean(self, event: Event) -> Event:
        changed: dict[str, Any] = {}
        kind = type(event)
        names = self._texts.get(kind)
        if names is None:
            names = self._texts[kind] = _texts_of(kind)
        for name in names:
            value = getattr(event, name)
            clean = self.text(value) if isinstance(value, str) else self._clean_data(value)
            if clean != value:
                changed[name] = clean
        return dataclasses.replace(event, **changed) if changed else event

    def _clean_data(self, data: Any) -> Any:
        if isinstance(data, str):
            return self.text(data)
        if isinstance(data, dict):
            return {name: self._clean_data(value) for name, value in data.items()}
        return [self._clean_data(value) for value in data] if isinstance(data, list) else data


def _texts_of(kind: type[Event]) -> tuple[str, ...]:
    """Name the fields of a kind of event that hold text."""
    names = (field.name for field in dataclasses.fields(kind) if field.type in ("str", "dict[str, Any]"))
    return tuple(name for name in names if name not in ("run", "node", "kind", "call", "batch", "stream", "status", "data"))


def _continues(held: CellOutput | ReplyPart, event: CellOutput | ReplyPart) -> bool:
    if isinstance(held, CellOutput) and isinstance(event, CellOutput):
        return (held.node, held.cell, held.stream) == (event.node, event.cell, event.stream)
    return isinstance(held, ReplyPart) and isinstance(event, ReplyPart) and held.iteration == event.iteration

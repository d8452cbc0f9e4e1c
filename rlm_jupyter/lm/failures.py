"""What goes wrong at a provider, as one short line that says so and never repeats a secret.

Providers tell the same failure in many shapes: a status, an OpenAI-like `error` object, HTML of a proxy, a connection that
ends. Here each becomes one of the three `LMError`s: refused (a retry would not help), unavailable (it may), or no reply.
Everything a provider sends is hostile: it is cut, made one line, stripped of control characters, and secrets are taken out.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from rlm_jupyter.errors import LMError, LMRefused, LMUnavailable
from rlm_jupyter.events import Usage

LINE_CAP = 300
"""Characters of a provider's own words that an error repeats."""
REDACTED = "[redacted]"

_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|gsk|xai|hf|pplx|nvapi|csk|ghp|gho|glpat|r8)[-_]|AIza|AKIA|ya29\.|eyJ)"
    r"(?=\S*[0-9*])[A-Za-z0-9_\-*.+/=]{12,}"
    r"|(?<=[Bb]earer )\S+|(?<=://)[^/@\s]+(?=@)"
)
_TOO_LONG = re.compile(
    r"context[ _]length|context window|maximum context|too many (?:input )?tokens|prompt is too long|too long", re.I
)
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown|unrecogni[sz]ed|unexpected|extra (?:inputs?|fields?)|not (?:permitted|allowed)|instead",
    re.I,
)


class ParameterRefused(LMError):
    """A parameter was refused and will be sent otherwise: the same request is worth sending again, at once."""

    retryable = True


class Spent(Exception):
    """The cause of an `LMError` whose request may have to be paid: its usage if told, its text so far (None: nobody knows)."""

    def __init__(self, usage: Usage | None, text: str | None) -> None:
        super().__init__(usage)
        self.usage, self.text = usage, text


def redact(text: str, secret: str | None = None) -> str:
    """Take out `secret`, long pieces of it (providers mask keys in part), and whatever looks like a key."""
    if secret:
        text = text.replace(secret, REDACTED)
        pieces = {secret[n : n + 8] for n in range(len(secret) - 7)}
        if any(piece in text for piece in pieces):
            words = re.split(r"(\s+)", text)
            text = "".join(REDACTED if any(piece in word for piece in pieces) else word for word in words)
    return _KEYS.sub(REDACTED, text)


def one_line(text: str, secret: str | None = None, cap: int = LINE_CAP) -> str:
    """Make one printable line of at most about `cap` characters of whatever a provider said."""
    text = redact(text[: 16 * cap], secret)
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= cap else text[: cap - 1] + "…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long the provider asks us to wait: `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def word(value: Any) -> str:
    """Give a short word that a provider sent as a str or int; '' for anything else."""
    return str(value)[:100] if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


class Failure(Exception):
    """A provider's answer that is an error: its status and what it says, in OpenAI's shape if it is that.

    `told_by` makes it of what a body with another status holds as its `error`.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers
        self.message = self.code = self.kind = self.param = ""
        text = body.decode("utf-8", "replace")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            self.message = "" if text.lstrip().startswith("<") else text
            return
        data = data[0] if isinstance(data, list) and data else data
        self._read(data.get("error", data) if isinstance(data, dict) else data)

    @classmethod
    def told_by(cls, error: Any) -> Failure:
        """Give the failure that a reply with status 200 tells of."""
        code = error.get("code") if isinstance(error, dict) else None
        failure = cls(code if type(code) is int and 400 <= code < 600 else 502, {}, b"")
        failure._read(error)
        return failure

    def _read(self, error: Any) -> None:
        if not isinstance(error, dict):
            self.message = error if isinstance(error, str) else ""
            return
        message = error.get("message", error.get("detail", ""))
        if not isinstance(message, str):
            try:
                message = json.dumps(message, ensure_ascii=False)
            except RecursionError:
                message = ""
        self.message = message
        self.code, self.kind, self.param = (word(error.get(name)) for name in ("code", "type", "param"))

    @property
    def told(self) -> str:
        return f": {self.message}" if self.message.strip() else ""

    def names(self, parameter: str) -> bool:
        """Tell whether this is a 400 or 422 about `parameter`."""
        if self.status not in (400, 422):
            return False
        word = rf"(?<![A-Za-z0-9_]){re.escape(parameter)}(?![A-Za-z0-9_])"
        return self.param.split(".")[0] == parameter if self.param else re.search(word, self.message) is not None

    def unsupported(self, parameter: str) -> bool:
        """Tell whether `parameter` is refused as such, not only its value."""
        return self.names(parameter) and (
            self.code in ("unsupported_parameter", "unknown_parameter") or _UNSUPPORTED.search(self.message) is not None
        )

    def to_error(self, model: str, where: str, secret: str | None) -> LMError:
        """Give the error to raise; `where` is the provider as the user knows it."""
        wait = retry_after(self.headers)
        text, kind = self._sentence(model, where)
        line = one_line(text, secret)
        return kind(line, retry_after=wait) if kind is LMUnavailable else kind(line)

    def _sentence(self, model: str, where: str) -> tuple[str, type[LMError]]:
        status, told = self.status, self.told
        about = f"{self.code} {self.kind}".lower()
        if status in (401, 403) and "content" not in about:
            return f"{where} refused the key ({status}){told}", LMRefused
        if status == 402 or "insufficient_quota" in about or "billing" in about:
            return f"{where} says that the account has no quota left ({status}){told}", LMRefused
        if status == 429:
            return f"{where} limits the rate of requests (429){told}", LMUnavailable
        if "content_filter" in about or "content_policy" in about or "responsibleai" in about:
            return f"{where} refused the content ({status}){told}", LMRefused
        if status == 413 or (400 <= status < 500 and ("context_length" in about or _TOO_LONG.search(self.message))):
            return f"the prompt is too long for {model} ({status}){told}", LMRefused
        if status == 404 or "model_not_found" in about:
            return f"{where} knows no model {model!r}, or not at this address ({status}){told}", LMRefused
        if 300 <= status < 400:
            return (
                f"{where} redirects elsewhere ({status}), which is not followed; give the final address as --base-url",
                LMRefused,
            )
        if status >= 500 or status in (408, 409, 425):
            return f"{where} failed ({status}){told}", LMUnavailable
        return f"{where} refused the request ({status}){told}", LMRefused

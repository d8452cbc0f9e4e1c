"""What goes wrong at a provider, as one short line that says so and never repeats a secret.

Providers tell the same failure in many shapes: a status, an OpenAI-like `error` object, HTML of a proxy, a connection that
ends. Here each becomes one of the three `LMError`s: refused (a retry would not help), unavailable (it may), or no reply.
Everything a provider sends is hostile: it is cut, made one line, stripped of control characters, and secrets are taken out.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlm_jupyter.errors import LMError, LMRefused, LMUnavailable
from rlm_jupyter.events import Usage
from rlm_jupyter.redaction import REDACTED, redact_keys

LINE_CAP = 300
"""Characters of a provider's own words that an error repeats."""
_TOO_LONG = re.compile(
    r"context[ _](?:length|size)|context window|maximum context|too many (?:input )?tokens|prompt is too long|too long"
    r"|too large for model|input token count|maximum prompt length|reduce the length",
    re.I,
)
_NO_KEY = re.compile(r"(?:incorrect|invalid|missing|no) api[ _-]?key|api key (?:not valid|not found|expired|is invalid)", re.I)
_NO_QUOTA = re.compile(
    r"credit balance|insufficient (?:balance|funds|credits?)|(?:any|no|more|all available) credits|spend(?:ing)? limit|unpaid",
    re.I,
)
_NO_MODEL = re.compile(
    r"model not exist|invalid model|not a valid model|no models? loaded|unknown model"
    r"|model\b.{0,120}(?:does not exist|not found|not available)",
    re.I,
)
_NO_PICTURES = re.compile(r"\bimages?\b|image_url|multi-?modal|\bvision\b|content.{0,40}must be a string", re.I)
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown|unrecogni[sz]ed|unexpected|extra (?:inputs?|fields?)|not (?:permitted|allowed)|instead",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Told:
    """What an error of a provider tells besides its own words: model, server, key and where it is, what to do about a model
    that is not there."""

    model: str
    where: str
    key: str | None = field(default=None, repr=False)
    key_name: str = ""
    missing_model: str = ""


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
    return redact_keys(text)


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
        if isinstance(error, str) and error.lstrip().startswith("{"):  # an error of a server behind, wrapped as a text
            with contextlib.suppress(ValueError, RecursionError):
                inner = json.loads(error)
                error = inner.get("error", inner)
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
        self.kind = self.kind or word(error.get("status"))

    @property
    def of_pictures(self) -> bool:
        """Whether a model that takes text only may have said this of a message with pictures."""
        return self.status in (400, 404, 415, 422, 500, 501) and _NO_PICTURES.search(self.message) is not None

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

    def to_error(self, told: Told) -> LMError:
        """Give the error to raise."""
        wait = retry_after(self.headers)
        text, kind = self._sentence(told)
        line = one_line(text, told.key)
        return kind(line, retry_after=wait) if kind is LMUnavailable else kind(line)

    def _sentence(self, by: Told) -> tuple[str, type[LMError]]:
        status, told, where = self.status, self.told, by.where
        about = f"{self.code} {self.kind}".lower()
        client = 400 <= status < 500
        if status == 402 or "insufficient_quota" in about or "billing" in about or (client and _NO_QUOTA.search(self.message)):
            return f"{where} says that the account has no quota left ({status}){told}", LMRefused
        if (status in (401, 403) and "content" not in about) or (status == 400 and _NO_KEY.search(self.message)):
            name = f" in {by.key_name}" if by.key_name else ""
            missing = "" if by.key else "; none was sent"
            return f"{where} refused the key{name} ({status}{missing}){told}", LMRefused
        if status == 429:
            quota = ", or the account has no quota left" if "quota" in self.message.lower() else ""  # some say but one of it
            return f"{where} limits the rate of requests{quota} (429){told}", LMUnavailable
        if "content_filter" in about or "content_policy" in about or "responsibleai" in about:
            return f"{where} refused the content ({status}){told}", LMRefused
        if status == 413 and "rate_limit" in about:
            return f"the request is more than {where} lets this account send in a minute ({status}){told}", LMRefused
        if status == 413 or (client and ("context_length" in about or _TOO_LONG.search(self.message))):
            return f"the prompt is too long for {by.model} ({status}){told}", LMRefused
        if status == 404 or "model_not_found" in about or "invalid_model" in about or self._no_model():
            hint = f"; {by.missing_model}" if by.missing_model else ""
            return f"{where} knows no model {by.model!r}, or not at this address ({status}){hint}{told}", LMRefused
        if 300 <= status < 400:
            return (
                f"{where} redirects elsewhere ({status}), which is not followed; give the final address as --base-url",
                LMRefused,
            )
        if status >= 500 or status in (408, 409, 425):
            return f"{where} failed ({status}){told}", LMUnavailable
        return f"{where} refused the request ({status}){told}", LMRefused

    def _no_model(self) -> bool:
        return self.status == 400 and _NO_MODEL.search(self.message) is not None

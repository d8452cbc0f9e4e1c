"""The HTTP under `OpenAILM`: one openai client, what it may send, and how much it may read. Imported late: openai is heavy.

What the environment says about proxies and certificates is honoured, and bypassed for loopback. What it says for OpenAI
(organisation, project, custom headers) goes to OpenAI only, and `OPENAI_BASE_URL` is never asked: a key goes to no other host.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient, Omit

from rlm_jupyter import network
from rlm_jupyter.errors import LMError, LMRefused, LMReplyError, LMUnavailable, SettingsError
from rlm_jupyter.lm.dialects import OPENAI, Dialect
from rlm_jupyter.lm.failures import Failure, Spent, one_line
from rlm_jupyter.settings import MIB, PROMPT_CAP

OPENAI_HOST = "api.openai.com"
CONNECT_TIMEOUT = 30.0
BODY_CAP = 2 * PROMPT_CAP
ERROR_CAP = MIB // 4


LOST = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, aiohttp.ClientError, OSError)
"""What a connection fails with: not everything that aiohttp raises is translated by what lies over it."""


class _Bounded(httpx2.AsyncByteStream):
    """A response's bytes, at most `cap`: what is over is an error, or of an error's own body just left out."""

    def __init__(self, inner: httpx2.AsyncByteStream, cap: int, strict: bool) -> None:
        self._inner, self._left, self._strict = inner, cap, strict

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                if self._strict:
                    raise LMReplyError(f"the reply is longer than {BODY_CAP // MIB} MiB")
                return
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Client(DefaultAioHttpClient):
    """The aiohttp client, with every response bounded. Packed responses are not asked for, and refused: 1 MB can hold 1 GB."""

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        response = await super().send(request, stream=True, **options)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise LMReplyError(f"{request.url.host} packs its replies although asked not to")
        good = response.status_code == 200
        response.stream = _Bounded(response.stream, BODY_CAP if good else ERROR_CAP, good)  # type: ignore[arg-type]
        if not stream:
            await response.aread()
        return response


class _OpenAI(AsyncOpenAI):
    """openai's client with the headers that we mean, and no others: cheaper, and what the environment adds for OpenAI
    (`OPENAI_CUSTOM_HEADERS`, organisation, project) goes to OpenAI only, its admin key nowhere."""

    sent: Mapping[str, Any]

    @property
    def default_headers(self) -> dict[str, Any]:
        return dict(self.sent)


def _security() -> ssl.SSLContext | bool:
    """Give the authorities that a firm's own variables name; `SSL_CERT_FILE` and `SSL_CERT_DIR` httpx2 reads itself."""
    try:
        return network.bundle() or True
    except SettingsError as error:
        raise LMRefused(str(error)) from None


class Connection:
    """An openai client of one server, for one event loop."""

    def __init__(self, base_url: str, key: str | None, dialect: Dialect = OPENAI) -> None:
        self.key = key
        self.dialect = dialect
        bearer = key if dialect.key_header == "Authorization" else None
        url = urlsplit(base_url)
        self.where = url.netloc.rpartition("@")[2] or base_url
        local = network.is_loopback(url.hostname or "")
        self._proxy = network.told(network.proxy_for(url.scheme, url.hostname or ""))
        plain = local and url.scheme == "http"
        http = _Client(
            follow_redirects=False,
            trust_env=not local,
            verify=False if plain else _security(),  # no TLS there, and loading certificates takes 50 ms
        )
        self._client = _OpenAI(
            api_key=bearer or "", base_url=base_url, max_retries=0, http_client=http, _enforce_credentials=False
        )
        self._client.admin_api_key = None
        self._client.sent = self._headers(url.hostname == OPENAI_HOST)
        self._http = http
        self._path = base_url.rstrip("/") + dialect.path
        self._url = httpx2.URL(self._path)
        self.headers = self._client.default_headers | self._client.auth_headers
        self._head = list(self.headers.items())
        self._extensions = {"timeout": httpx2.Timeout(None, connect=CONNECT_TIMEOUT).as_dict()}
        # What is not said here openai copies anew for each request, which takes 0.1 ms.
        self._options: Any = {
            "headers": {} if bearer else {"Authorization": Omit()},
            "timeout": httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            "max_retries": 0,
            "params": {},
            "security": {"bearer_auth": True},
        }

    def _headers(self, ours: bool) -> dict[str, Any]:
        """Say what is sent with each request."""
        headers: dict[str, Any] = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"AsyncOpenAI/Python {openai.__version__}",
            "Accept-Encoding": "identity",
        }
        if self.key:
            bearer = self.dialect.key_header == "Authorization"
            headers[self.dialect.key_header] = f"Bearer {self.key}" if bearer else self.key
        if not ours:
            return headers
        theirs: dict[str, Any] = AsyncOpenAI.default_headers.fget(self._client)  # type: ignore[attr-defined]
        taken = {name.lower() for name in headers} | {"authorization"}
        return headers | {
            name: value for name, value in theirs.items() if name.lower() not in taken and not isinstance(value, Omit)
        }

    async def post(self, body: bytes, *, stream: bool) -> httpx2.Response:
        """Send a chat completion; give the response, unread. Raises `Failure` for an error status.

        A stream is openai's own `post`. Of whole replies there are thousands: they go out by the same client, with the head
        that openai gives every request made once, since making it anew costs as much as all the rest (0.66 ms against 0.40).
        """
        try:
            if stream:
                response: Any = await self._client.post(
                    self._path,
                    cast_to=httpx2.Response,
                    content=body,
                    options=self._options,
                    stream=True,
                    stream_cls=AsyncStream[Any],
                )
            else:
                request = httpx2.Request("POST", self._url, headers=self._head, content=body, extensions=self._extensions)
                response = await self._http.send(request, stream=True)
                if response.status_code >= 300:
                    raise Failure(response.status_code, response.headers, await response.aread())
        except openai.APIStatusError as error:
            raise Failure(error.status_code, error.response.headers, error.response.content) from None
        except (openai.OpenAIError, *LOST) as error:
            lost = self._lost(error)
            raise lost from lost.__cause__
        assert isinstance(response, httpx2.Response)
        return response

    async def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes]:
        """Read a response's bytes as they come."""
        try:
            async for chunk in response.aiter_bytes():
                yield chunk
        except LOST as error:
            lost = self._lost(error)
            raise lost from lost.__cause__

    async def read(self, response: httpx2.Response) -> bytes:
        """Read a response whole."""
        try:
            return await response.aread()
        except LOST as error:
            raise self._lost(error) from Spent(None, None)

    async def drop(self, response: httpx2.Response) -> None:
        """Let go of a response; where it is not at its end the connection is closed, so that the server stops too."""
        if not response.is_closed:
            with anyio.move_on_after(1, shield=True):
                await response.aclose()

    async def aclose(self) -> None:
        await self._client.close()

    def _lost(self, error: BaseException) -> LMError:
        """Tell a lost connection by the innermost error: the outer ones call a reset a time-out."""
        if isinstance(error.__cause__, LMError):
            return error.__cause__
        inner, silent = error, False
        while inner.__cause__ is not None:
            silent = silent or isinstance(inner, aiohttp.ConnectionTimeoutError)
            inner = inner.__cause__
        name = type(inner).__name__
        refused = isinstance(inner, ConnectionRefusedError) or "refused" in str(inner)
        if refused or isinstance(inner, socket.gaierror):
            return self._unreached("connection refused" if refused else str(inner.args[-1]), refused=refused)
        if silent:
            return self._unreached(
                f"no connection within {CONNECT_TIMEOUT:.0f} s, as of https to a port for http", refused=False
            )
        if isinstance(inner, ssl.SSLError):
            mend = "set SSL_CERT_FILE to the file with your proxy's certificates, if that is what stands between"
            return LMRefused(one_line(f"the certificate of {self.where} was not accepted ({inner}); {mend}", self.key))
        lost = LMUnavailable(one_line(f"the connection to {self.where} was lost ({name}: {inner})", self.key))
        lost.__cause__ = Spent(None, "")  # the prompt may have been read
        return lost

    def _unreached(self, reason: str, *, refused: bool) -> LMUnavailable:
        """Say that no server was reached, or not even the proxy on the way to it."""
        if self._proxy:
            told = (
                f"the proxy {self._proxy} on the way to {self.where} cannot be reached ({reason}); see the proxy of %rlm doctor"
            )
        elif refused:
            hint = f"; {self.dialect.not_running}" if self.dialect.not_running else ""
            told = f"no server listens at {self.where} ({reason}){hint}"
        else:
            told = f"no server was found at {self.where} ({reason}): check its address"
        error = LMUnavailable(one_line(told, self.key))
        error.unreached = True
        return error

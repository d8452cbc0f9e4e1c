"""The host's side of the broker: pull the calls that code in a sandbox makes, have them answered, bring the replies.

One connection reads the endless `/pending`, a few kept-alive ones bring what is ready to `/respond`, many replies with one
request. A connection that is lost is made again, with back-off and a deadline, and said so; the calls are read again from the
last that was whole, a reply whose receipt is unknown is brought again, and the LM is asked once. Where a proxy holds an
endless answer back, it asks by long polls.

The other end is hostile, and so is the way to it: the exact origin only, its certificate verified, no redirects, no cookies,
no .netrc, nothing packed, every line, answer and wait bounded. What breaks the rules ends the bridge with a ProtocolError.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from rlm_jupyter.errors import KernelError, ProtocolError
from rlm_jupyter.kernels.guest import lines, wire
from rlm_jupyter.kernels.guest.frames import MIB
from rlm_jupyter.kernels.origins import Origin

DEADLINE = 60.0
SILENCE = 25.0
"""Seconds without a byte after which a stream is taken for lost; the broker sends a blank line every 10."""
HELLO_SECONDS = 5.0
WAIT_SECONDS = 15.0
POLL_PAUSE = 0.2
CONNECT_SECONDS = 10.0
HEAD_SECONDS = 25.0
BODY_SECONDS = 10.0
SLOWEST = MIB
"""Bytes a second that a request's body may take at worst."""
ACK_SECONDS = 20.0
"""How often at least the broker is shown that its host lives; oftener where connections are missed sooner, as is the host."""
ACK_EVENTS = 256
KEEP_SECONDS = 110.0
"""How long a connection is kept that brings nothing; the broker ends it after 120."""
RESULT_CAP = 256 * 1024
POST_BYTES = 8 * MIB
POSTERS = 4
BACKOFF, BACKOFF_CAP = 0.05, 5.0
STEADY_SECONDS = 5.0
BLANKS = 60


class _Lost(Exception):
    """A connection that may be made again."""


class _Outage:
    """How long something has failed, and what is done about it."""

    def __init__(self, deadline: float, longest: float, told: Callable[[str], None]) -> None:
        self._deadline, self._longest, self._told = deadline, min(longest, BACKOFF_CAP), told
        self._since: float | None = None
        self._worked = 0.0
        self._failures = 0

    def over(self) -> None:
        """It works again."""
        now = time.monotonic()
        if self._since is not None:
            self._told(f"the tunnel to the sandbox is there again, after {now - self._since:.1f} s")
        self._since, self._worked = None, now

    def progress(self) -> None:
        """Something came through: the next attempt may be made at once."""
        self._failures = 0

    async def failed(self, reason: str) -> None:
        """Say so, and wait for the next attempt. KernelError when it has failed for too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if now - self._worked > STEADY_SECONDS:
                self._failures = 0
            self._told(f"the tunnel to the sandbox is lost ({reason}); trying again for {self._deadline:.0f} s")
        left = self._since + self._deadline - now
        if left <= 0:
            raise KernelError(f"the sandbox could not be reached for {self._deadline:.0f} s ({reason})")
        wait = min(self._longest, BACKOFF * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        self._failures += 1
        await asyncio.sleep(min(wait, left))


class Bridge:
    """Serve one broker.

    Parameters
    ----------
    url
        The broker's origin: https, or plain http on this machine.
    token
        The host's token; it is sent to this origin only.
    take
        Called with each call, and with each that was given up; `reply` gives it its answer.
    told
        Called with one line when the connection is lost and when it is back.
    deadline
        Seconds for which a lost connection is tried again.
    silence
        Seconds without a byte, or without an answer, after which a connection is taken for lost.

    Raises
    ------
    SettingsError
        For an address that is more than an origin, or not safe.
    """

    def __init__(
        self,
        url: str,
        token: str,
        take: Callable[[wire.Call | wire.Dropped], None],
        told: Callable[[str], None],
        *,
        deadline: float = DEADLINE,
        silence: float = SILENCE,
    ) -> None:
        self.origin = Origin.of(url)
        self._security = self.origin.security()
        self._headers = {lines.TOKEN: token, "Accept-Encoding": "identity", "User-Agent": "rlm-jupyter"}
        self._told, self._deadline, self._silence = told, deadline, silence
        self._hand_on = take
        self._digests: dict[tuple[int, str], str] = {}
        self._replies: deque[bytes] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._read = self._acknowledged = 0
        self._session = ""
        self._polls = False
        self._due = True

    async def run(self) -> None:
        """Serve until cancelled.

        Raises
        ------
        KernelError
            When the broker could not be reached for `deadline` seconds.
        ProtocolError
            When the other end does what it may not.
        """
        works: list[Coroutine[Any, Any, None]] = [self._pull(), self._remind(), *(self._post() for _ in range(POSTERS))]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Calls

    async def _pull(self) -> None:
        outage = _Outage(self._deadline, self._silence / 4, self._told)
        session = self._client()
        try:
            while True:
                try:
                    await self._listen(session, outage)
                except _Lost as error:
                    await outage.failed(str(error))
        finally:
            await session.close()

    async def _listen(self, session: aiohttp.ClientSession, outage: _Outage) -> None:
        """Read one answer of `/pending` to its end."""
        polls = self._polls
        parameters = {"after": str(self._read)} | ({"session": self._session} if self._session else {})
        if polls:
            parameters["wait"] = str(min(WAIT_SECONDS, self._silence / 2))
        reader = lines.Reader(self._read)
        read, hello, whole = self._read, False, 0
        try:
            seconds = self._silence if polls else min(HELLO_SECONDS, self._silence)
            opened = begun = time.monotonic()
            async with asyncio.timeout(seconds) as limit, self._request(session, "GET", "pending", parameters) as response:
                while chunk := await response.content.readany():
                    for event in reader.feed(chunk):
                        hello = True
                        self._take(event, outage)
                    now = time.monotonic()
                    if not reader.partial or reader.whole != whole:
                        begun, whole = now, reader.whole
                    elif now - begun > 2 * self._silence:
                        raise _Lost(f"a line was not whole after {2 * self._silence:.0f} s")
                    if reader.blank > BLANKS + (now - opened):
                        raise ProtocolError("the broker sends blank lines without end")
                    if hello:
                        limit.reschedule(asyncio.get_running_loop().time() + self._silence)
        except TimeoutError:
            if not hello and not polls:
                self._polls = True  # a proxy may hold back what has no end
                return
            self._polls = False
            raise _Lost("nothing came in time") from None
        except lines.LineError as error:
            raise ProtocolError(f"the broker sent {error}") from None
        except _Lost:
            self._polls = False
            raise
        if not hello or not polls:
            self._polls = False
            raise _Lost("the stream ended")
        if self._read == read and time.monotonic() - opened < WAIT_SECONDS / 4:
            await asyncio.sleep(POLL_PAUSE)  # a poll that waits for nothing must not become a race

    def _take(self, event: lines.Event, outage: _Outage) -> None:
        if isinstance(event, lines.Hello):
            if self._session not in ("", event.session):
                raise ProtocolError("another broker answers than the one before")
            self._session = event.session
            outage.over()
            return
        self._read = event.number
        outage.progress()
        if isinstance(event, lines.GivenUp):
            self._hand_on(event.dropped)
        else:
            self._digests.setdefault((event.call.kernel, event.call.call), event.digest)
            self._hand_on(event.call)
        if self._read - self._acknowledged >= ACK_EVENTS:
            self._acknowledge()

    # Replies

    def reply(self, message: wire.Reply) -> None:
        """Answer a call; one that is not known has its answer already, or nobody waits for it."""
        digest = self._digests.pop((message.kernel, message.call), None)
        if digest is not None:
            self._replies.append(lines.pack_reply(message, digest))
            self._wake()

    async def _remind(self) -> None:
        """Show the broker that the host lives, also while nothing is asked."""
        while True:
            await asyncio.sleep(min(ACK_SECONDS, self._silence))
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._due = True
        self._wake()

    def _wake(self) -> None:
        """Have it brought by whoever was busy last, with the warmest connection. Each looks again when it is done."""
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return

    async def _ready(self) -> None:
        """Wait until there is something to bring."""
        while not self._replies and not self._due:
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    async def _post(self) -> None:
        """Bring what is ready, again and again; at first nothing, so that the connection is made before it is needed."""
        outage = _Outage(self._deadline, self._silence / 4, lambda text: None)
        session = self._client()
        try:
            while True:
                await self._ready()
                self._due = False
                body = bytearray()
                while self._replies and len(body) < POST_BYTES:
                    body += self._replies.popleft()
                again = False
                while True:
                    try:
                        await self._bring(session, bytes(body))
                        break
                    except _Lost as error:
                        await session.close()
                        session = self._client()
                        if again:
                            await outage.failed(str(error))
                        again = True  # a kept connection may just have ended: at once on a new one
                outage.over()
                outage.progress()
        finally:
            await session.close()

    async def _bring(self, session: aiohttp.ClientSession, body: bytes) -> None:
        after = self._read
        try:
            async with (
                asyncio.timeout(min(HEAD_SECONDS, self._silence) + len(body) / SLOWEST) as limit,
                self._request(session, "POST", "respond", {"after": str(after)}, body) as response,
            ):
                limit.reschedule(asyncio.get_running_loop().time() + BODY_SECONDS)
                data = bytearray()
                while chunk := await response.content.readany():
                    data += chunk
                    if len(data) > RESULT_CAP:
                        raise ProtocolError(f"the broker's answer is above {RESULT_CAP:,} bytes")
        except TimeoutError:
            raise _Lost("no answer in time") from None
        try:
            json.loads(bytes(data))["results"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise _Lost("an answer that is none") from None
        self._acknowledged = max(self._acknowledged, after)

    # HTTP

    def _client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=self._security or True, keepalive_timeout=KEEP_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_SECONDS, self._silence)),
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
        )

    @asynccontextmanager
    async def _request(
        self, session: aiohttp.ClientSession, method: str, path: str, parameters: dict[str, str], body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; give a good answer, unread. The connection is kept only if it is read to its end."""
        response: aiohttp.ClientResponse | None = None
        try:
            response = await session.request(
                method,
                f"{self.origin.url}/{path}",
                params=parameters,
                data=io.BytesIO(body) if body and len(body) > MIB else body,  # of large bytes aiohttp warns
                proxy=self.origin.proxy,
                allow_redirects=False,
            )
            self._check(response)
            yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise ProtocolError(f"the certificate of {self.origin.host} was not accepted ({error.certificate_error})") from None
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                raise
            raise _Lost(f"{type(error).__name__}") from None
        finally:
            if response is not None:
                response.close()

    def _check(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if 300 <= status < 400:
            raise ProtocolError("the broker sends elsewhere, which is not followed")
        if status in (401, 403):
            raise ProtocolError("the broker does not take the host's token")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ProtocolError("the broker packs its answers although asked not to")
        if status in (400, 409) and response.headers.get(lines.SESSION):
            raise ProtocolError(f"the broker refuses what the host sends (HTTP {status})")
        if status != 200:
            raise _Lost(f"HTTP {status}")

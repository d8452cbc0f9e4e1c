"""The shell channel of one kernel: requests out, replies in, as the Jupyter messaging protocol has them.

Forty lines of our own instead of jupyter_client's Session: importing that takes longer than everything else the supervisor
needs, and each message through it costs more than the kernel's own hop. Replies without a valid signature are dropped.

Code in the kernel holds the other end and may send what it likes: what waits here is bounded in number and size, and is read
a few at a time, so that a flood delays nobody else. A reply above `REPLY_CAP` ends the connection; ours are cut in the kernel.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from .loop import Loop

REPLY_CAP = 8 * 1024 * 1024
WAITING_CAP = 16
AT_A_TIME = 8
_DELIMITER = b"<IDS|MSG>"


class ShellChannel:
    """A DEALER socket on a kernel's shell; `replied` is called with the request's id and the reply's content."""

    def __init__(
        self, loop: Loop, context: Any, address: str, key: str, replied: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._loop = loop
        self._key = key.encode()
        self._session = secrets.token_hex(16)
        self._replied = replied
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.reconnect_ivl = 2
        self._socket.reconnect_ivl_max = 20
        self._socket.sndhwm = 0
        self._socket.rcvhwm = WAITING_CAP
        self._socket.maxmsgsize = REPLY_CAP
        self._socket.connect(address)
        self._fd = self._socket.fd
        loop.watch(self._fd, self._read)

    def request(self, kind: str, content: dict[str, Any]) -> str:
        """Send a request; give its id. A ConnectionError tells that there is no way to the kernel any more."""
        name = secrets.token_hex(16)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        header = {"msg_id": name, "session": self._session, "username": "", "date": now, "msg_type": kind, "version": "5.3"}
        parts = [json.dumps(part).encode("ascii") for part in (header, {}, {}, content)]
        try:
            self._socket.send_multipart([_DELIMITER, self._sign(parts), *parts], zmq.NOBLOCK)
        except zmq.Again:  # what code in the kernel sent has made zmq give the connection up
            raise ConnectionError from None
        if self._socket.events & zmq.POLLIN:  # sending may have used up the edge that tells of it
            self._loop.later(0, self._read)
        return name

    def close(self) -> None:
        self._loop.unwatch(self._fd)
        self._socket.close()

    def _sign(self, parts: list[bytes]) -> bytes:
        return hmac.new(self._key, b"".join(parts), hashlib.sha256).hexdigest().encode()

    def _read(self) -> None:
        for parts in self._messages():
            try:
                at = parts.index(_DELIMITER)
                signature, signed = parts[at + 1], parts[at + 2 : at + 6]
                if len(signed) != 4 or not hmac.compare_digest(signature, self._sign(signed)):
                    continue
                parent, content = json.loads(signed[1])["msg_id"], json.loads(signed[3])
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):
                continue  # whatever it is, it is no reply
            if isinstance(parent, str) and isinstance(content, dict):
                self._replied(parent, content)

    def _messages(self) -> Iterator[list[bytes]]:
        for _ in range(AT_A_TIME):
            if self._socket.closed:
                return
            try:
                yield self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return
        self._loop.later(0, self._read)  # there may be more, of which the descriptor does not tell again

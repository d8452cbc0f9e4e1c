"""The way from a kernel to the broker of its sandbox: HTTP to loopback, one kept connection per process and thread."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
from typing import Any

from .channel import frames, message
from .failures import LMError


class Enqueue:
    """Requests to the broker of a sandbox, by HTTP; a kept connection per process and thread."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._local = threading.local()

    def ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Ask, and wait for the answer; once more if a kept connection had ended, which the broker knows by the call's id.

        An interrupted wait gives the connection up, and so the request.
        """
        data = b"".join(frames(header, body))
        try:
            try:
                return self._post(data)
            except OSError:
                self.drop()
                return self._post(data)
        except (OSError, ValueError, LookupError, struct.error) as error:
            self.drop()
            raise LMError(f"the connection to the broker is gone ({type(error).__name__})") from None
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close this thread's connection; the next request opens another."""
        kept, self._local.kept = getattr(self._local, "kept", None), None
        for each in kept or ():
            each.close()

    def _post(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        connection, answers = self._connection()
        head = f"POST /enqueue HTTP/1.1\r\nHost: broker\r\nX-RLM-Token: {self._token}\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode("ascii") + data)
        status, fields = _line(answers), {}
        while line := _line(answers):
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip().lower()
        size = int(fields["content-length"])
        answer = answers.read(size)
        if len(answer) < size:
            raise ConnectionError("closed")
        if fields.get("connection") == "close":
            self.drop()
        if status.split()[1] != "200":
            raise LMError(f"the broker has refused the call ({status[9:50]})")
        return message(answer)

    def _connection(self) -> tuple[socket.socket, io.BufferedReader]:
        kept: tuple[socket.socket, io.BufferedReader] | None = getattr(self._local, "kept", None)
        if kept is None or self._local.pid != os.getpid():
            connection = socket.create_connection(("127.0.0.1", self._port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kept = self._local.kept = connection, connection.makefile("rb")
            self._local.pid = os.getpid()
        return kept


def _line(answers: io.BufferedReader) -> str:
    line = answers.readline(65536)
    if not line.endswith(b"\n"):
        raise ConnectionError("closed")
    return line.decode("latin-1").rstrip()

"""The byte stream to the host: a TCP connection on loopback, or the standard input and output of a container's first process.

Both are descriptors that do not block, so the supervisor reads and writes them alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket

CONNECT_SECONDS = 10.0
PIPE_SIZE = 1024 * 1024
_SET_PIPE_SIZE = 1031


@dataclasses.dataclass(frozen=True, slots=True)
class HostStream:
    """Descriptors to read from and to write to; of a socket they are the same one."""

    reader: int
    writer: int

    @classmethod
    def connect(cls, host: str, port: int) -> HostStream:
        sock = socket.create_connection((host, port), CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = sock.detach()
        os.set_blocking(fd, False)
        return cls(fd, fd)

    @classmethod
    def standard(cls) -> HostStream:
        """Take descriptors 0 and 1 over: what else in this process writes there goes nowhere."""
        reader, writer = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        for fd in (reader, writer):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, _SET_PIPE_SIZE, PIPE_SIZE)
        return cls(reader, writer)

"""The supervisor's end of the broker: its process, its sockets, and what it is told of kernels and their cells.

The sockets are bound here before any code of a kernel runs, and kept: nobody else can have the port, not even when the broker
has ended. The broker is forked, like the kernel parent, from sources in memory; it lives and dies with the supervisor.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from . import processes
from .loop import Loop


class Desk:
    """A broker that runs. `port` is the one on loopback at which kernels ask."""

    def __init__(self, pid: int, port: int, held: list[socket.socket], orders: socket.socket) -> None:
        self.pid, self.port = pid, port
        self._held, self._orders = held, orders
        self._answers = bytearray()
        self._up: Callable[[], None] = lambda: None
        self._settled: Callable[[int, int], None] = lambda kernel, cell: None
        self._lost: Callable[[], None] = lambda: None

    @classmethod
    def open(cls, settings: dict[str, Any]) -> Desk:
        """Bind the sockets and fork the broker; `settings` are its own, with `host` and `port`. OSError: the port is taken."""
        public, local, other = bound(settings["host"], settings["port"]), bound("127.0.0.1", 0), _other_family(settings["port"])
        ours, theirs = socket.socketpair()
        supervisor = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                _be_broker(settings, public, local, theirs, supervisor)
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        return cls(pid, local.getsockname()[1], [public, local, *other], ours)

    def attach(self, loop: Loop, up: Callable[[], None], settled: Callable[[int, int], None], lost: Callable[[], None]) -> None:
        """Call `up` when it serves, `settled` when no call of a kernel's cell waits any more, `lost` when it is gone."""
        self._up, self._settled, self._lost = up, settled, lost
        loop.watch(self._orders.fileno(), lambda: self._read(loop))

    # What it is told

    def admit(self, kernel: int, token: str) -> None:
        self._tell(kind="kernel", kernel=kernel, token=token)

    def begin(self, kernel: int, cell: int) -> None:
        self._tell(kind="cell", kernel=kernel, cell=cell)

    def settle(self, kernel: int, cell: int) -> None:
        self._tell(kind="settle", kernel=kernel, cell=cell)

    def release(self, kernel: int, why: str) -> None:
        self._tell(kind="release", kernel=kernel, why=why)

    def forget(self, kernel: int) -> None:
        self._tell(kind="gone", kernel=kernel)

    def _tell(self, **order: Any) -> None:
        try:
            self._orders.sendall(json.dumps(order).encode("ascii") + b"\n")
        except OSError:  # gone, or so stuck that it reads no orders
            self._lost()

    def _read(self, loop: Loop) -> None:
        try:
            data = self._orders.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            loop.unwatch(self._orders.fileno())
            self._lost()
            return
        self._answers += data
        *lines, rest = self._answers.split(b"\n")
        self._answers = bytearray(rest)
        for line in lines:
            answer = json.loads(line)
            if answer["kind"] == "up":
                self._up()
            else:
                self._settled(answer["kernel"], answer["cell"])


def bound(host: str, port: int) -> socket.socket:
    """Give a socket bound to an address and listening; port 0: any that is free."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


def _other_family(port: int) -> list[socket.socket]:
    """Take the port from whoever would listen for IPv6 on it, where there is any: nobody answers there."""
    try:
        sock = socket.socket(socket.AF_INET6)
    except OSError:
        return []
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::", port))
    except OSError:
        sock.close()
        return []
    return [sock]


def _be_broker(
    settings: dict[str, Any], public: socket.socket, local: socket.socket, orders: socket.socket, supervisor: int
) -> None:
    processes.die_with_parent(supervisor)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    kept = sorted((2, public.fileno(), local.fileno(), orders.fileno()))
    for low, high in zip(kept, [*kept[1:], 4096], strict=True):
        os.closerange(low + 1, high)
    try:
        from . import broker
    except ImportError as error:
        print(f"the broker of LM calls needs flask and waitress, which the image lacks ({error})", file=sys.stderr, flush=True)
        os._exit(1)
    broker.main(settings, public, local, orders)
    os._exit(0)

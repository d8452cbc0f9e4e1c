"""Tunnels: a port of this machine's loopback for a port of a sandbox, with TLS of a throw-away authority if encrypted.

The client's bytes meet the plane's conditions below TLS, where a real network would delay or lose them. The other end is a
socket in the sandbox's own network, to its own address. In the state '502' the edge answers as Modal's would: no connection
to the sandbox is made.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import trustme

from tests.modal_local.boxes import ADDRESS, Box
from tests.modal_local.edges import Buffer, Refusal
from tests.modal_local.lines import BAD_GATEWAY, Conditions, Wire
from tests.modal_local.relays import Relay, Tasks, join

HOST = "127.0.0.1"


class Tunnel:
    """One open tunnel."""

    def __init__(self, box: Box, port: int) -> None:
        self.container_port, self.port, self.busy = port, 0, 0
        self._box = box
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()

    async def open(self, conditions: Conditions, security: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()

        def connected() -> Relay:
            """Make the raw side of a new connection, and behind it TLS and the sandbox."""
            front, back = socket.socketpair()
            raw, ours = Relay(), Relay()
            join(raw, ours)
            self._tasks.spawn(self._connect(ours, front, back, security, conditions))
            return raw

        self._server = await loop.create_server(lambda: Wire(conditions, connected), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connect(
        self, ours: Relay, front: socket.socket, back: socket.socket, security: ssl.SSLContext | None, conditions: Conditions
    ) -> None:
        loop = asyncio.get_running_loop()
        self.busy += 1
        try:
            front.setblocking(False)
            back.setblocking(False)
            await loop.connect_accepted_socket(lambda: ours, front)
            if conditions.state == BAD_GATEWAY:
                await loop.connect_accepted_socket(Refusal, back, ssl=security)
                return
            edge, inside = Relay(), Buffer() if conditions.buffering else Relay()
            join(edge, inside)
            await loop.connect_accepted_socket(lambda: edge, back, ssl=security)
            made = self._box.socket()
            made.setblocking(False)
            try:
                await loop.sock_connect(made, (ADDRESS, self.container_port))
            except OSError:
                made.close()
                edge.close()
                return
            await loop.create_connection(lambda: inside, sock=made)
            await inside.over.wait()
        except (OSError, ssl.SSLError):
            ours.close()
        finally:
            self.busy -= 1

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._tasks.cancel()


class Tunnels:
    """All tunnels of a plane: their authority and their conditions."""

    def __init__(self, authority: Path) -> None:
        self.conditions = Conditions()
        issuer = trustme.CA()
        issuer.cert_pem.write_to_path(authority)
        self._security = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert(HOST).configure_cert(self._security)

    async def open(self, box: Box, port: int, *, encrypted: bool) -> Tunnel:
        tunnel = Tunnel(box, port)
        await tunnel.open(self.conditions, self._security if encrypted else None)
        return tunnel

"""Tunnels: a port of this machine's loopback for a port of a sandbox, with TLS of a throw-away authority if encrypted.

The client's bytes meet the plane's conditions below TLS, where a real network would delay or lose them. The other end is a
socket in the sandbox's own network, to its own address. In the state '502' the edge answers as Modal's would: no connection
to the sandbox is made.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import trustme

from tests.modal_local.boxes import ADDRESS, Box
from tests.modal_local.edges import Buffer, Refusal
from tests.modal_local.lines import BAD_GATEWAY, Conditions, Line, Wire
from tests.modal_local.relays import Relay, Tasks, join

HOST = "127.0.0.1"


class Arrival(asyncio.Protocol):
    """A connection that has just come, and of which nothing is read until somebody else serves it."""

    def __init__(self, serve: Callable[[Line], Coroutine[Any, Any, None]], tasks: Tasks) -> None:
        self._serve, self._tasks = serve, tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Line)
        transport.pause_reading()
        self._tasks.spawn(self._serve(transport))


class Tunnel:
    """One open tunnel."""

    def __init__(self, box: Box, port: int) -> None:
        self.container_port, self.port, self.busy = port, 0, 0
        self._box = box
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()

    async def open(self, conditions: Conditions, security: ssl.SSLContext | None) -> None:
        def connected() -> Arrival:
            return Arrival(lambda line: self._serve(line, security, conditions), self._tasks)

        self._server = await asyncio.get_running_loop().create_server(lambda: Wire(conditions, connected), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, line: Line, security: ssl.SSLContext | None, conditions: Conditions) -> None:
        self.busy += 1
        try:
            if conditions.state == BAD_GATEWAY:
                await _meet(line, Refusal(), security)
                return
            edge, inside = Relay(), Buffer() if conditions.buffering else Relay()
            join(edge, inside)
            await _meet(line, edge, security)
            try:
                made = await self._connect()
            except OSError:
                edge.close()
                return
            await asyncio.get_running_loop().create_connection(lambda: inside, sock=made)
            await inside.over.wait()
        except (OSError, ssl.SSLError):
            line.close()
        finally:
            self.busy -= 1

    async def _connect(self) -> socket.socket:
        """Connect to the port in the sandbox."""
        made = self._box.socket()
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, (ADDRESS, self.container_port))
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._tasks.cancel()


async def _meet(line: Line, server: asyncio.Protocol, security: ssl.SSLContext | None) -> None:
    """Have a connection served, behind TLS if there is any."""
    if security is None:
        line.set_protocol(server)
        line.resume_reading()
        server.connection_made(line)
        return
    if line.is_closing():
        raise ConnectionResetError
    secured = await asyncio.get_running_loop().start_tls(line, server, security, server_side=True)
    if secured is None:  # the client is gone
        raise ConnectionResetError
    server.connection_made(secured)


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

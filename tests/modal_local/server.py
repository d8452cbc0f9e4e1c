"""The process of a local control plane: the gRPC services, the sandboxes, and a line of commands from the tests.

It ends, with everything in it, when the line of commands does: nothing outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpclib.events
import grpclib.server
from grpclib.config import Configuration
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto.api_grpc import ModalClientBase
from modal_proto.task_command_router_grpc import TaskCommandRouterBase

from tests.modal_local.control import Control
from tests.modal_local.credentials import Credentials
from tests.modal_local.failures import Failures
from tests.modal_local.images import Images
from tests.modal_local.lines import Conditions, Wire
from tests.modal_local.objects import Objects
from tests.modal_local.router import Router
from tests.modal_local.routes import Check, Metadata, Routes
from tests.modal_local.sandboxes import Result, Sandbox, Sandboxes
from tests.modal_local.tunnels import HOST, Tunnels

WINDOW = 64 << 20
LINE = 64 << 20


class Plane:
    """Everything of one plane, and the commands that tests may give it."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self.credentials = Credentials()
        self.objects, self.images = Objects(self.credentials), Images(folder)
        self.tunnels = Tunnels(folder / "authority.pem")
        self.sandboxes = Sandboxes(folder, self.tunnels, self.images)
        self.control = Control(self.sandboxes, self.objects, self.credentials)
        self.router = Router(self.sandboxes, self.objects, self.images, self.credentials)
        self.conditions = {"control": Conditions(), "router": Conditions(), "tunnels": self.tunnels.conditions}
        self.failures = Failures()
        self._servers: list[asyncio.Server] = []

    async def start(self) -> dict[str, str]:
        """Open the services. Gives what a client must know."""
        rooms: list[object] = [self.objects, self.images, self.control]
        control = Routes(ModalClientBase, rooms, self.unknown, self._check(self.credentials.control))
        router = Routes(TaskCommandRouterBase, [self.router], self.unknown, self._check(self.credentials.router))
        self.control.router_url = await self._serve(router, self.conditions["router"])
        url = await self._serve(control, self.conditions["control"])
        return {"url": url, "token_id": self.credentials.token_id, "token_secret": self.credentials.token_secret}

    def _check(self, allowed: Check) -> Check:
        def check(name: str, metadata: Metadata) -> None:
            allowed(name, metadata)
            self.failures.meet(name)

        return check

    async def _serve(self, routes: Routes, conditions: Conditions) -> str:
        settings = Configuration(http2_connection_window_size=WINDOW, http2_stream_window_size=WINDOW)
        server = grpclib.server.Server([routes], config=settings, status_details_codec=custom_detail_codec)

        async def count(event: grpclib.events.RecvRequest) -> None:
            self.requests[event.method_name.rsplit("/", 1)[1]] += 1

        grpclib.events.listen(server, grpclib.events.RecvRequest, count)
        # `Server.start` would listen itself; the conditions must sit between its protocol and the transport.
        listening = await asyncio.get_running_loop().create_server(lambda: Wire(conditions, server._protocol_factory), HOST, 0)
        self._servers.append(listening)
        return f"http://{HOST}:{listening.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        await self.sandboxes.close()

    async def command(self, name: str, given: dict[str, Any]) -> Any:
        """Do what the tests ask."""
        if name == "conditions":
            return self._change(**given)
        if name == "told":
            return {
                "requests": dict(self.requests),
                "unknown": sorted(self.unknown),
                "created": [asdict(asked) for asked in self.control.asked],
                "bytes": {kind: conditions.bytes for kind, conditions in self.conditions.items()},
                "connections": {kind: conditions.accepted for kind, conditions in self.conditions.items()},
                "sandboxes": [_state(sandbox) for sandbox in self.sandboxes.by_id.values()],
            }
        if name == "image":
            return self.images.chain(given["image"])
        if name == "host":
            return self.sandboxes.hosts.add(given["name"], {int(port): real for port, real in given["ports"].items()})
        if name == "tidy":
            self.failures.ordered.clear()
            return await self.sandboxes.close(given["kept"])
        if name == "fail":
            return self.failures.order(**given)
        if name == "preempt":
            return self.sandboxes.by_id[given["sandbox"]].preempt(given["silent"])
        raise ValueError(f"there is no command {name!r}")

    def _change(self, kind: str, what: str, **given: Any) -> Any:
        conditions = self.conditions[kind]
        if what == "delay":
            conditions.delay = given["seconds"]
        elif what == "buffer":
            conditions.buffering = given["on"]
        elif what == "cut":
            return conditions.cut()
        elif what == "after":
            conditions.after(given["count"], given["state"], given["seconds"])
        else:
            conditions.enter(what, given.get("seconds"))
        return None


def _state(sandbox: Sandbox) -> dict[str, Any]:
    running = not sandbox.over.is_set()
    status = "" if running else Result.GenericStatus.Name(sandbox.result.status).removeprefix("GENERIC_STATUS_")
    return {
        "id": sandbox.id,
        "running": running,
        "status": status,
        "reason": sandbox.result.exception,
        "tags": sandbox.tags,
        "execs": len(sandbox.execs),
    }


async def serve(line: socket.socket, folder: Path) -> None:
    """Run a plane until the line of commands ends."""
    plane = Plane(folder)
    reader, writer = await asyncio.open_connection(sock=line, limit=LINE)
    try:
        writer.write(json.dumps(await plane.start()).encode() + b"\n")
        while asked := await reader.readline():
            request = json.loads(asked)
            try:
                answer = {"done": await plane.command(request["name"], request["given"])}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
    finally:
        await plane.close()
        writer.close()


def main() -> None:
    """Serve on the socket whose number is the first argument, with the second as folder for files."""
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    folder = Path(sys.argv[2])
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        asyncio.run(serve(socket.socket(fileno=int(sys.argv[1])), folder))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

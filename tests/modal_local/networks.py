"""What a sandbox can reach: its own loopback, and of a make-believe Internet what its network policy allows.

The Internet of a plane is a table of host names that a test fills, each with an address of its own and the real port on this
machine that stands for it. Where the policy allows a host, its address exists inside the sandbox's network and leads there;
where it does not, there is no route. Nothing else can be reached from any sandbox, whatever its policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from dataclasses import dataclass, field

from modal_proto import api_pb2

from tests.modal_local.boxes import Box, BoxError
from tests.modal_local.relays import Relay, Tasks, join

FIRST = ipaddress.IPv4Address("198.18.0.10")
Access = api_pb2.NetworkAccess


@dataclass(frozen=True, slots=True)
class Host:
    """One host: what it is called, its address in every sandbox, and what stands for which port of it on this machine."""

    name: str
    address: str
    ports: dict[int, int]


@dataclass(slots=True)
class Hosts:
    """The Internet of one plane."""

    known: dict[str, Host] = field(default_factory=dict)

    def add(self, name: str, ports: dict[int, int]) -> str:
        """Add a host for the sandboxes that are made from now on. Gives its address."""
        address = str(FIRST + len(self.known))
        self.known[name] = Host(name, address, ports)
        return address


def allows(policy: Access, host: Host) -> bool:
    """Tell whether a policy lets a sandbox reach a host, by name or by address."""
    if policy.network_access_type != Access.ALLOWLIST:
        return policy.network_access_type != Access.BLOCKED
    address = ipaddress.ip_address(host.address)
    if any(address in ipaddress.ip_network(cidr) for cidr in policy.allowed_cidrs):
        return True
    return any(_matches(pattern, host.name) for pattern in policy.allowed_domains)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in ("*", name)


class Network:
    """The policy of one sandbox, put into force."""

    def __init__(self, policy: Access, hosts: Hosts) -> None:
        self._allowed = [host for host in hosts.known.values() if allows(policy, host)]
        self._listeners: list[socket.socket] = []
        self._tasks = Tasks()

    @property
    def names(self) -> str:
        """The /etc/hosts of the sandbox."""
        return "127.0.0.1\tlocalhost\n::1\tlocalhost\n" + "".join(f"{host.address}\t{host.name}\n" for host in self._allowed)

    def open(self, box: Box) -> None:
        """Make the allowed hosts reachable in the box."""
        for host in self._allowed:
            box.add_address(host.address)
            for port, real in host.ports.items():
                self._listen(box, host.address, port, real)

    def _listen(self, box: Box, address: str, port: int, real: int) -> None:
        listener = box.socket()
        listener.setblocking(False)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise BoxError(f"cannot stand for {address}:{port} in the sandbox: {error}") from error
        listener.listen(64)
        self._listeners.append(listener)
        self._tasks.spawn(self._serve(listener, real))

    async def _serve(self, listener: socket.socket, real: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self._tasks.spawn(self._lead(client, real))

    async def _lead(self, client: socket.socket, real: int) -> None:
        loop = asyncio.get_running_loop()
        inside, outside = Relay(), Relay()
        join(inside, outside)
        await loop.connect_accepted_socket(lambda: inside, client)
        try:
            await loop.create_connection(lambda: outside, "127.0.0.1", real)
        except OSError:
            inside.close()

    def close(self) -> None:
        self._tasks.cancel()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.close()

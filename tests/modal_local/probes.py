"""When a sandbox is ready: its port accepts a connection, or a command succeeds in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.modal_local.boxes import ADDRESS, Box
from tests.modal_local.sandboxes import Sandbox

INTERVAL = 0.1


async def ready(sandbox: Sandbox, box: Box) -> None:
    """Wait until the sandbox's readiness probe succeeds, asked as often as it says."""
    probe = sandbox.definition.readiness_probe
    while True:
        if probe.tcp_port and await _listens(box, probe.tcp_port):
            return
        if not probe.tcp_port and await _succeeds(box, probe.exec_command.argv, sandbox):
            return
        await asyncio.sleep(probe.interval_ms / 1000 or INTERVAL)


async def _listens(box: Box, port: int) -> bool:
    with box.socket() as made:
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, (ADDRESS, port))
        except OSError:
            return False
    return True


async def _succeeds(box: Box, argv: Sequence[str], sandbox: Sandbox) -> bool:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *box.entering(argv, sandbox.cwd), stdin=quiet, stdout=quiet, stderr=quiet, env=sandbox.variables
    )
    return await process.wait() == 0

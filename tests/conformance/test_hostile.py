"""Code that means harm to its own cell, its neighbours, the supervisor or the machine: it ends, it is bounded, it is told."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

import pytest

from rlm_jupyter.errors import KernelDied
from tests.conformance.driving import ENVIRONMENTS, NAMES, Session, alive
from tests.conformance.test_ends import started
from tests.deadlines import BACK_WITHIN, TOLD_WITHIN, WAIT

pytestmark = pytest.mark.anyio

KEPT = 256 * 1024
MIB = 1024 * 1024


@pytest.fixture(params=NAMES)
async def own(request: pytest.FixtureRequest) -> AsyncIterator[Session]:
    """A kernel in an environment that the test may ruin."""
    environment = await ENVIRONMENTS[request.param](request)()
    try:
        yield await Session(environment).start()
    finally:
        await environment.close()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_p08_a_gigabyte_of_output_costs_the_host_next_to_nothing(repl: Session) -> None:
    before = peak()
    ran = await repl.ok(
        "import os, subprocess\nblock = 'x' * 2**20\nfor _ in range(256): print(block, end='')\n"
        "for _ in range(256): os.write(2, block.encode())\nsubprocess.run('yes | head -c 536870912 >&2', shell=True)\nNone"
    )
    told = sum(len(output.text) for output in ran.outputs)
    assert ran.result.omitted == 2**30 - KEPT
    assert KEPT < told < KEPT + 200
    assert peak() - before < 32 * MIB


async def test_an_error_that_holds_everything_is_cut_in_the_kernel(repl: Session) -> None:
    ran = await repl.run("raise ValueError('x' * 20_000_000 + 'END')")
    assert ran.result.error.startswith("ValueError: xxx")
    assert len(ran.result.error) <= 2000
    assert "END" in ran.text("error")[-100:]
    assert len(ran.text("error")) < KEPT + 200
    assert await repl.out("print(1)") == "1"


async def test_what_outlives_its_cell_ends_no_cell_and_is_told_apart(repl: Session) -> None:
    code = """
import os, socket, time
def daemon(body):
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        body()
    os.wait()
def later():
    asked = door.accept()[0]
    os.write(1, b"from a daemon\\n")
    asked.close()
    time.sleep(600)
door = socket.create_server(("127.0.0.1", 0))
daemon(later)
print(door.getsockname()[1])
"""
    port = int(await repl.out(code))
    other = await Session(repl.environment).start()
    await other.ok(f"import socket\nwith socket.create_connection(('127.0.0.1', {port})) as asked: asked.recv(1)")
    ran = await repl.ok("print('cell two')")
    assert "".join(output.text for output in ran.outputs) == (
        "[written after the cell before had ended:]\nfrom a daemon\n\n[this cell:]\ncell two\n"
    )
    assert (await repl.ok("print('cell three')")).outputs[0].text == "cell three\n"
    await repl.ok("def flood():\n    while True: os.write(1, b'flood\\n' * 5000)\ndaemon(flood)")
    await asyncio.sleep(1.0)
    ran = await asyncio.wait_for(repl.ok("time.sleep(0.5); os.write(2, b'well\\n')\nNone"), WAIT)
    assert sum(len(output.text) for output in ran.outputs) < KEPT + 500
    assert "bytes of it left out" in ran.text("stderr")


async def test_p10_a_stopped_kernel_is_woken_to_be_interrupted(repl: Session) -> None:
    await repl.ok("kept = 1")
    cell = await started(repl, "import os, signal, time; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)")
    await asyncio.sleep(0.2)
    assert await asyncio.wait_for(repl.kernel.interrupt(), BACK_WITHIN)
    assert (await cell).status == "interrupted"
    assert await repl.out("print(kept)") == "1"


COMETS = """
import ctypes, os, time
ctypes.CDLL(None).prctl(15, b"{name}", 0, 0, 0)
main = os.getpid()
for _ in range({depth}):
    try:
        if not os.fork(): os.setsid()
    except OSError: pass
until = time.monotonic() + 60
while time.monotonic() < until or os.getpid() == main:
    try:
        if os.fork() and os.getpid() != main: os._exit(0)
    except OSError: pass
    if os.getpid() == main: time.sleep(600)
os._exit(0)
"""
"""Processes of a name that double a few times, each leaving its group, and then run from one process id to the next.

They end after a minute by themselves, should a test be broken off: the machine is the user's.
"""

LEFT = """
import pathlib, time
def left():
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text().strip() == {name!r} and ") Z " not in (path / "stat").read_text():
                found.append(path.name)
        except OSError: pass
    return found
until = time.monotonic() + 10
while left() and time.monotonic() < until: time.sleep(0.05)
print(len(left()))
"""


async def test_p10_a_fork_bomb_is_ended_and_nothing_of_it_is_left(own: Session) -> None:
    name = f"bomb-{own.kernel.pid}"
    # Where nothing limits the number of processes, the bomb limits itself: the machine is the user's.
    limited, boxed = own.environment.name == "docker", own.environment.name != "local"
    cell = await started(own, COMETS.format(name=name, depth=12 if limited else 6))
    await asyncio.sleep(0.5)
    kept = await asyncio.wait_for(own.kernel.interrupt(), BACK_WITHIN)
    if kept:
        await cell
        await own.kernel.close()
    else:
        with pytest.raises(KernelDied, match=r"SIGKILL of the process tree after|processors were too busy") as told:
            await cell
        if boxed and "too busy" in str(told.value):
            return  # the last step of the ladder, the box's own end, on a machine that has no processor left
    assert own.environment.alive
    other = await Session(own.environment).start()
    assert await other.out(LEFT.format(name=name)) == "0"


DENIED = "PermissionError: [Errno 1] Operation not permitted"
"""What code meets in a sandbox, where each kernel has a user of its own, when it would signal another process."""


async def test_p11_the_end_of_the_kernel_parent_is_told_and_the_next_kernel_starts(own: Session) -> None:
    if own.environment.name == "modal":
        ran = await own.run("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
        assert ran.result.error == DENIED
        return
    other = await Session(own.environment).start()
    idle = await started(other, "import time; time.sleep(60)")
    cell = own.run("import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    told = "the process that kernels are forked from was killed by signal 9|process that runs the kernels is gone"
    with pytest.raises(KernelDied, match=told):
        await asyncio.wait_for(cell, TOLD_WITHIN)
    with pytest.raises(KernelDied, match=told):
        await asyncio.wait_for(idle, TOLD_WITHIN)
    if own.environment.alive:
        late = await Session(own.environment).start()
        assert (late.kernel.how, await late.out("print(llm_query('well'))")) == ("cold", "WELL")


async def test_p11_a_stopped_kernel_parent_does_not_keep_kernels_from_starting(own: Session) -> None:
    if own.kernel.how == "cold":
        pytest.skip("a cold kernel's parent is the supervisor, of which another test tells")
    ran = await own.run("import os, signal; os.kill(os.getppid(), signal.SIGSTOP)")
    assert ran.result.error == (DENIED if own.environment.name == "modal" else "")
    for _ in range(3):
        later = await asyncio.wait_for(Session(own.environment).start(), WAIT)
        assert await later.out("print('well')") == "well"


async def test_p18_a_flood_of_forged_replies_harms_nobody(repl: Session) -> None:
    other = await Session(repl.environment).start()
    code = """
import time
kernel = get_ipython().kernel
socket, idents = kernel.shell_stream.socket, kernel._parent_ident["shell"]
end = time.monotonic() + 1.5
while time.monotonic() < end:
    socket.send_multipart([*idents, b"x" * 2**20], copy=False)
try:
    socket.send_multipart([*idents, b"<IDS|MSG>", b"x", b"{}", b"{}", b"{}", b"y" * 2**26])
except Exception: pass
"""
    flood = asyncio.ensure_future(repl.run(code))
    for _ in range(20):
        assert await asyncio.wait_for(other.out("print(llm_query('me'))"), WAIT) == "ME"
    await asyncio.wait({flood}, timeout=5)
    await asyncio.wait_for(repl.kernel.interrupt(), BACK_WITHIN)
    await asyncio.wait({flood}, timeout=BACK_WITHIN)
    assert flood.done()
    flood.exception()
    assert await other.out("print('well')") == "well"
    await other.kernel.close()


async def test_p18_a_kernel_leaves_no_key_and_no_door_to_its_neighbours(repl: Session) -> None:
    other = await Session(repl.environment).start()
    await other.ok("1")
    code = """
import os, pathlib, time
run = pathlib.Path.cwd().parents[1]
def there():
    return sorted(path.name for path in run.glob("k*/connection.json")), sorted(path.name for path in run.glob("s/*-[0-9]"))
until = time.monotonic() + 30  # the spare kernel is coming up, and takes its own away
while any(there()) and time.monotonic() < until: time.sleep(0.05)
print(*there())
"""
    assert await repl.out(code) == "[] []"
    if repl.environment.name == "docker":
        probe = f"for what in ('environ', 'mem', 'fd'):\n    print(os.access('/proc/{other.kernel.pid}/' + what, os.R_OK))"
        assert await repl.out(f"import os\n{probe}") == "False\nFalse\nFalse"
    assert await other.out("print('well')") == "well"
    await other.kernel.close()


async def test_p10_what_hides_from_its_kernel_ends_with_it(repl: Session) -> None:
    code = """
import os, time
read, write = os.pipe()
for bare in (True, False):
    if not os.fork():
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(write, b"%d " % pid); os._exit(0)
        os.chdir("/")
        if bare: os.execve("/bin/sleep", ["sleep", "600"], {})
        time.sleep(600)
    os.wait()
print(os.read(read, 50).decode())
"""
    pids = [int(pid) for pid in (await repl.out(code)).split()]
    assert sorted(await alive(repl.environment, pids)) == sorted(pids)
    await repl.kernel.close()
    assert await alive(repl.environment, pids, WAIT) == []

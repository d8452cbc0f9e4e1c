"""Memory that is mapped instead of sent: only what is sealed against every change, and nothing of it stays behind."""

from __future__ import annotations

import fcntl
import os
import sys

import psutil
import pytest

from rlm_jupyter.kernels.borrowing import borrow
from rlm_jupyter.values import decode
from tests.conformance.driving import session

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="only Linux can seal memory")]

SEALS = (fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW)


def memory(data: bytes, *seals: int) -> int:
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    for seal in seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return fd


def test_p18_only_memory_that_nobody_can_change_any_more_is_mapped() -> None:
    pid, data = os.getpid(), b"abc" * 5000
    read, write = os.pipe()
    wrong = {
        "a pipe": read,
        "the other end of it": write,
        "a device": os.open("/dev/zero", os.O_RDONLY),
        "a folder": os.open("/", os.O_RDONLY),
        "a file": os.open(__file__, os.O_RDONLY),
        "loose memory": memory(data),
        **{f"memory without seal {seal}": memory(data, *(other for other in SEALS if other != seal)) for seal in SEALS},
        "shorter": memory(data[:-1], *SEALS),
        "longer": memory(data + b"d", *SEALS),
        "nothing": 10**6,
    }
    good = memory(data, *SEALS)
    before = psutil.Process().num_fds()
    assert {name: borrow(pid, fd, len(data)) for name, fd in wrong.items()} == dict.fromkeys(wrong)
    assert borrow(2**22, good, len(data)) is None, "a process that is not there"
    mapped = borrow(pid, good, len(data))
    assert mapped is not None
    assert bytes(mapped) == data
    assert mapped.readonly
    del mapped
    assert psutil.Process().num_fds() == before
    for fd in {good, *wrong.values()} - {10**6}:
        os.close(fd)


async def test_a_large_answer_of_a_local_kernel_is_mapped_and_outlives_it() -> None:
    async with session() as repl:
        supervisor = psutil.Process(repl.kernel.pid).parents()[1]
        small, large, huge = [
            (await repl.ok(f"FINAL_VAR('ä' * {size} + '\\ud800')")).result.final for size in (10, 5_000_000, 20_000_000)
        ]
        assert small is not None
        assert large is not None
        assert huge is not None
        written = supervisor.io_counters().write_chars
        values = [await repl.kernel.value(final) for final in (small, large)]
        assert supervisor.io_counters().write_chars - written < 100_000, "its bytes were not sent"
        values.append(await repl.kernel.value(huge))  # above what a kernel keeps in memory: a file, and sent
    assert [type(value.data) for value in values] == [bytes, memoryview, bytes]
    assert [decode(value) for value in values] == ["ä" * size + "\ud800" for size in (10, 5_000_000, 20_000_000)]

"""Measure what crosses: large contexts until they are usable, and large answers until the host has them.

    python benchmarks/data.py [--rounds N] [--large]

Each line is measured against a floor by hand, in turns: for a context, a file that is written, mapped in another process that
is there already, and read into a str there, its SHA-256 checked on both sides; for a frame, an Arrow file, which is not
hashed. Both take one turn that does not count, and neither holds what the turn before has made: pages that a machine has to
find anew cost more than what is done with them. A cell that says how much memory the process has used at most gives the peak.
`--large` adds 1 GB of text and a frame of 800 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from rlm_jupyter.contexts import prepare
from rlm_jupyter.kernels.cell import Output
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.local import open_local
from rlm_jupyter.values import decode

PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def worker(connection: Connection) -> None:
    """The floor's other process: maps a file and makes of it what it holds."""
    import mmap

    import pyarrow as pa

    while order := connection.recv():
        kind, path, digest = order
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        held: Any
        if kind == "text":
            assert hashlib.sha256(data).hexdigest() == digest
            held = str(memoryview(data), "utf-8")
        else:
            held = pa.ipc.open_stream(pa.py_buffer(data)).read_all().to_pandas()
        connection.send(len(held))
        del held, data


def floor_of(connection: Connection, value: Any) -> float:
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile() as file:
        if isinstance(value, str):
            data = value.encode()
            file.write(data)
            order = ("text", file.name, hashlib.sha256(data).hexdigest())
        else:
            import pyarrow as pa

            table = pa.Table.from_pandas(value)
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
            order = ("frame", file.name, "")
        file.flush()
        connection.send(order)
        assert connection.recv() == len(value)
    return time.perf_counter() - started


async def out(kernel: Kernel, code: str) -> str:
    outputs: list[Output] = []
    result = await kernel.execute(code, outputs.append)
    assert result.status == "ok", result.error
    return "".join(output.text for output in outputs)


async def ours_in(kernel: Kernel, value: Any) -> float:
    started = time.perf_counter()
    await kernel.load("context", prepare(value).payload)
    assert int(await out(kernel, "print(len(context))")) == len(value)
    seconds = time.perf_counter() - started
    await out(kernel, "del context")
    return seconds


async def ours_out(kernel: Kernel, code: str) -> float:
    await out(kernel, code)
    started = time.perf_counter()
    result = await kernel.execute("FINAL_VAR(made)", lambda output: None)
    assert result.final is not None
    decode(await kernel.value(result.final))
    return time.perf_counter() - started


def frame(rows: int) -> Any:
    import numpy as np
    import pandas as pd

    return pd.DataFrame(np.random.default_rng(0).random((rows, 10)), columns=[f"c{n}" for n in range(10)])


async def in_turns(rounds: int, ours: Callable[[], Awaitable[float]], floor: Callable[[], float]) -> tuple[float, float]:
    mine, theirs = [], []
    for _ in range(rounds):
        theirs.append(floor())
        mine.append(await ours())
    return statistics.median(mine), statistics.median(theirs)


async def nobody(request: Any) -> Any:
    return []


async def measure(connection: Connection, rounds: int, large: bool) -> None:
    environment = await open_local()
    try:
        kinds: list[tuple[str, Callable[[], Any], float]] = [
            ("text of 100 MB", lambda: "0123456789" * 10_000_000, 1.3),
            ("frame of 1e6 x 10", lambda: frame(1_000_000), 2.0),
        ]
        if large:
            kinds += [
                ("text of 1 GB", lambda: "0123456789" * 100_000_000, 1.3),
                ("frame of 1e7 x 10", lambda: frame(10**7), 2.0),
            ]
        for title, make, aim in kinds:
            kernel = await environment.start_kernel(nobody)
            value = make()
            size = len(value) if isinstance(value, str) else int(value.memory_usage().sum())
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            empty = int(await out(kernel, PEAK))
            await ours_in(kernel, value)
            host = max(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before + size)
            peak = (host + int(await out(kernel, PEAK)) - empty) / size
            floor_of(connection, value)
            mine, theirs = await in_turns(rounds, partial(ours_in, kernel, value), partial(floor_of, connection, value))
            print(
                f"{title:<20} ours {mine * 1000:8.0f} ms   floor {theirs * 1000:8.0f} ms   "
                f"ratio {mine / theirs:5.2f} (aim {aim})   peak of host and kernel {peak:.2f} x the data (aim 3.5)"
            )
            await kernel.close()
            del value
        kernel = await environment.start_kernel(nobody)
        for title, code in (
            ("answer of 10 MB text", "made = 'x' * 10_000_000"),
            ("answer of 1e6 x 10", "import numpy as np, pandas as pd; made = pd.DataFrame(np.ones((10**6, 10)))"),
        ):
            seconds = statistics.median([await ours_out(kernel, code) for _ in range(rounds)])
            print(f"{title:<20} ours {seconds * 1000:8.0f} ms")
    finally:
        await environment.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(theirs,), daemon=True)
    process.start()
    print(f"{os.cpu_count()} cores, {options.rounds} rounds, medians")
    try:
        asyncio.run(measure(ours, options.rounds, options.large))
    finally:
        ours.send(None)
        process.join(10)


if __name__ == "__main__":
    main()

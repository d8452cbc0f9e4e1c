"""The floor: what the same work costs by hand, with jupyter_client's blocking client and with bare aiohttp.

No loop, no events, no budget, no trace, no bridge: nothing that does more than this can be faster. The gap's history
grows as that of a real run does.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
from jupyter_client.manager import KernelManager
from measures import (
    CALLS,
    CHILD,
    CHILD_ITERATIONS,
    CHILDREN,
    CONCURRENCY,
    DEADLINE,
    ROOT,
    SUB,
    TRIVIAL,
    WARM_UP,
    Answer,
    Server,
    Task,
    batch_answer,
    checked_gaps,
    gap_script,
    interrupted,
    serve,
)

SYSTEM = "You work in a Python REPL. " * 200
"""As long as the system prompt of a recursive language model."""


class Kernel:
    """A cold IPython kernel by jupyter_client, ready when its first cell has ended."""

    def __init__(self) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=DEADLINE)
        self.execute("pass")

    def execute(self, code: str) -> None:
        """Run a cell; come back when its reply and its `idle` are here. Without history, whose file costs 0.5 ms a cell."""
        self.end(self.client.execute(code, allow_stdin=False, store_history=False))

    def end(self, request: str) -> None:
        while self.client.get_shell_msg(timeout=DEADLINE)["parent_header"].get("msg_id") != request:
            pass
        while True:
            message = self.client.get_iopub_msg(timeout=DEADLINE)
            if message["parent_header"].get("msg_id") == request and message["content"].get("execution_state") == "idle":
                return

    def interrupt_endless(self, code: str) -> None:
        request = self.client.execute(code, allow_stdin=False, store_history=False)
        try:
            self.end(request)
        except KeyboardInterrupt:
            self.manager.interrupt_kernel()
            self.end(request)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


async def post(session: aiohttp.ClientSession, url: str, model: str, messages: list[dict[str, str]]) -> str:
    """Send one chat completion and give the reply's text."""
    async with session.post(url + "/v1/chat/completions", json={"model": model, "messages": messages}) as reply:
        text: str = (await reply.json())["choices"][0]["message"]["content"]
        return text


def in_loop(work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Answer]]) -> Answer:
    async def main() -> Answer:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await work(session)

    return asyncio.run(main())


def cold(task: Task) -> Answer:
    began = time.monotonic()
    kernel = Kernel()
    seconds = time.monotonic() - began
    kernel.close()
    return Answer([seconds])


def gap(task: Task) -> Answer:
    """Ask, cut the code out, run it, ask again with the longer history."""
    server = Server(task.url)
    kernel = Kernel()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def connect() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    session = loop.run_until_complete(connect())
    try:
        server.script(gap_script("pass"))
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "What is the answer?"}]
        while True:
            text = loop.run_until_complete(post(session, task.url, ROOT, messages))
            found = re.search(r"```repl\n(.*?)\n```", text, re.DOTALL)
            if found is None or text != TRIVIAL:
                return checked_gaps(server)
            kernel.execute(found[1])
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "No output."}]
    finally:
        loop.run_until_complete(session.close())
        kernel.close()
        loop.close()
        asyncio.set_event_loop(None)


def calls(task: Task) -> Answer:
    """Time direct calls, one after the other."""
    Server(task.url).script([])

    async def work(session: aiohttp.ClientSession) -> Answer:
        samples = []
        for _ in range(CALLS + WARM_UP):
            began = time.perf_counter()
            await post(session, task.url, SUB, [{"role": "user", "content": "How is the weather in the text?"}])
            samples.append(time.perf_counter() - began)
        return Answer(samples[WARM_UP:])

    return in_loop(work)


def batch(task: Task) -> Answer:
    """Time a batch of direct calls."""
    server = Server(task.url)
    server.script([], task.latency)

    async def work(session: aiohttp.ClientSession) -> Answer:
        limit = asyncio.Semaphore(CONCURRENCY)

        async def one(number: int) -> str:
            async with limit:
                content = f"How is the weather in piece {number}?"
                return await post(session, task.url, SUB, [{"role": "user", "content": content}])

        began = time.perf_counter()
        replies = await asyncio.gather(*(one(number) for number in range(task.size)))
        seconds = time.perf_counter() - began
        return batch_answer(server, [seconds, sum(reply != "ok" for reply in replies)])

    return in_loop(work)


def children(task: Task) -> Answer:
    """Time the requests of a root and its children alone: the root's, three of each child side by side, the root's last."""
    Server(task.url).script(["start them", "done"], task.latency, task.latency)

    async def work(session: aiohttp.ClientSession) -> Answer:
        async def child() -> None:
            messages = [{"role": "user", "content": "Go on."}]
            for _ in range(CHILD_ITERATIONS):
                text = await post(session, task.url, CHILD, messages)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "No output."}]

        began = time.perf_counter()
        await post(session, task.url, ROOT, [{"role": "user", "content": SYSTEM}])
        await asyncio.gather(*(child() for _ in range(CHILDREN)))
        await post(session, task.url, ROOT, [{"role": "user", "content": SYSTEM}])
        return Answer([time.perf_counter() - began])

    return in_loop(work)


def interrupt(task: Task) -> Answer:
    kernel = Kernel()
    try:
        return interrupted(kernel.interrupt_endless)
    finally:
        kernel.close()


if __name__ == "__main__":
    serve({"cold": cold, "gap": gap, "calls": calls, "batch": batch, "children": children, "interrupt": interrupt})

"""What IPython and ipykernel do otherwise in our kernels, by parts of theirs that are private: each has its reason beside it.

There is no port for output of forked children, an error's text is bounded, `exit()` does not end the kernel, an interrupt
wakes an idle event loop, and nothing is told to front ends, which there are none of.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from typing import Any, NoReturn

_ERROR_HALF = 16 * 1024
_ERROR_LINES = 100


def mend(ip: Any) -> None:
    """Make them hold for an InteractiveShell and its kernel, once."""
    ip.kernel._execute_sleep = 0.0
    _close_iopub_port(ip.kernel)
    ip.ask_exit = _refuse_exit
    ip.kernel.do_execute = _with_short_errors(ip.kernel.do_execute)
    # Three messages for each cell, written, signed and sent by two more threads: a third of what a short cell costs.
    ip.kernel._publish_status = ip.kernel._publish_execute_input = _tell_nobody
    ip.kernel.log.setLevel(logging.CRITICAL)  # it would make a record of every request, for nobody


def wake_for_interrupts() -> None:
    """Let an interrupt wake the event loop of this cell."""
    # ipykernel's SIGINT handler for async cells only marks a future: an idle loop has to be woken for it to be seen.
    try:
        waker = asyncio.get_running_loop()._csock.fileno()  # type: ignore[attr-defined]
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    except (RuntimeError, ValueError, AttributeError):
        pass


def _close_iopub_port(kernel: Any) -> None:
    """Close the loopback port on which ipykernel takes output of forked children: theirs goes through our pipes."""
    thread = kernel.iopub_thread
    listening = getattr(thread, "_pipe_in", None)
    if listening is not None:
        thread._pipe_flag = False
        thread.schedule(listening.close)


def _with_short_errors(do_execute: Any) -> Any:
    """Give ipykernel's `do_execute` with the texts of an error cut: it may hold a whole context, and a reply travels whole."""

    @functools.wraps(do_execute)
    async def execute(*args: Any, **kwargs: Any) -> Any:
        content = await do_execute(*args, **kwargs)
        if content.get("status") == "error":
            content["evalue"] = _short(content.get("evalue"))
            content["traceback"] = [_short(line) for line in content.get("traceback", ())[-_ERROR_LINES:]]
        return content

    return execute


def _tell_nobody(*args: Any, **kwargs: Any) -> None:
    """Publish nothing."""


def _short(whole: Any) -> str:
    text = str(whole)
    if len(text) <= 2 * _ERROR_HALF:
        return text
    return f"{text[:_ERROR_HALF]}\n[... {len(text) - 2 * _ERROR_HALF:,} characters left out ...]\n{text[-_ERROR_HALF:]}"


def _refuse_exit() -> NoReturn:
    raise SystemExit("exit() does not end this session")

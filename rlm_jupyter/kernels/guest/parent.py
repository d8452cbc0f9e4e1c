"""The warmed process that kernels are forked from: a cold IPython kernel costs about 400 ms, a forked one about 25.

It has imported what a finished kernel has imported, and holds no thread, no zmq context and no event loop, so that a fork is
clean. It reads orders from the supervisor (over a SEQPACKET socket), forks, reaps and reports, and runs nobody else's code.
Kernels are killed by the operating system when this process ends, and it when the supervisor ends.

Order: {"slot", "connection_file", "environ", "work", "settings", "boxed",
"user", "packages"} with two descriptors, the kernel's 1 and 2.
Reports: {"slot", "pid"} after the fork (pid -1: it failed), {"pid", "status"} (as of waitpid) after the end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import socket
import sys
import types
from typing import Any, NoReturn

from . import processes, users
from .sources import PACKAGE, program

_WARM = (
    "IPython.core.interactiveshell", "IPython.core.magics", "IPython.core.completer", "IPython.core.completerlib",
    "IPython.core.debugger", "IPython.core.historyapp", "IPython.core.logger", "IPython.core.oinspect",
    "IPython.core.profileapp", "IPython.core.pylabtools", "IPython.extensions.storemagic", "IPython.utils.wildcard",
    "ipykernel.kernelapp", "ipykernel.parentpoller", "ipykernel.subshell_manager", "ipykernel.comm.manager",
    "jupyter_client.session", "jupyter_client.localinterfaces", "zmq.eventloop.zmqstream", "tornado.platform.asyncio",
    "stack_data", "pygments.lexers.python", "pygments.formatters.terminal256", "pygments.styles.default",
    "multiprocessing.process", "concurrent.futures.thread", "pdb", "pexpect", "unicodedata", "faulthandler",
)  # fmt: skip


def warm() -> None:
    """Import what a finished kernel has imported, but no debugger: a preloaded pydevd hangs forked kernels."""
    debugger: Any = types.ModuleType("ipykernel.debugger")
    debugger._is_debugpy_available = False
    debugger.Debugger = type("Debugger", (), {})
    sys.modules["ipykernel.debugger"] = debugger
    for name in _WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    exec(compile(program(), "<rlm>", "exec"), {})
    gc.collect()
    gc.freeze()


def main(supervisor: int, orders: socket.socket) -> None:
    """Serve the supervisor, of which this is a fork, taken before it had a thread, a zmq context or a connection."""
    processes.die_with_parent(supervisor)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    sys.argv = ["ipykernel_launcher"]
    warm()
    serve(orders, wake_read)


def serve(orders: socket.socket, wake: int) -> None:
    """Fork on request and report ends until the supervisor hangs up."""
    import select

    poll = select.poll()
    poll.register(orders.fileno(), select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake:
                with contextlib.suppress(BlockingIOError):
                    while os.read(wake, 4096):
                        pass
                _reap(orders)
            else:
                data, fds, _, _ = socket.recv_fds(orders, 1 << 20, 2)
                if not data:
                    return
                _fork(orders, json.loads(data), fds)


def _reap(orders: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        orders.send(json.dumps({"pid": pid, "status": status}).encode())


def _fork(orders: socket.socket, order: dict[str, Any], fds: list[int]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:  # no more processes are allowed, or no memory is left: that is for the kernel that was to be, not for us
        pid = -1
    if not pid:
        _be_kernel(order, fds, parent)
    for fd in fds:
        os.close(fd)
    orders.send(json.dumps({"slot": order["slot"], "pid": pid}).encode())


def _be_kernel(order: dict[str, Any], fds: list[int], parent: int) -> NoReturn:
    status = 1
    try:
        _tidy(order, fds, parent)
        _run_kernel(order)
        status = 0
    except SystemExit:
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _tidy(order: dict[str, Any], fds: list[int], parent: int) -> None:
    """Make the forked child as fresh as a new process."""
    if order["user"] is not None:
        users.become(order["user"])
        sys.path += [order["packages"], users.SOURCES]
    processes.die_with_parent(parent)  # which a change of user would undo
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    processes.adopt_orphans()
    if order["boxed"]:
        processes.stand_back()
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    os.closerange(3, 4096)
    importlib.import_module("atexit")._clear()
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["work"])
    sys.path.insert(0, "")  # its working folder, which `python -P` left out for the supervisor's sake
    random.seed()
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.ORIGINAL_DIR = order["work"]  # type: ignore[attr-defined]
        process.current_process().authkey = os.urandom(32)
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # type: ignore[attr-defined]


def _application() -> Any:
    """Give ipykernel's application without its command line, the reading of which costs a seventh of a start."""
    from ipykernel.kernelapp import IPKernelApp

    class KernelApp(IPKernelApp):
        def parse_command_line(self, argv: Any = None) -> None:
            """Leave the configuration as it was given."""

    return KernelApp


def _run_kernel(order: dict[str, Any]) -> None:
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.IPKernelApp.parent_handle = 0
    config.IPKernelApp.log_level = 50
    config.IPKernelApp.outstream_class = None
    config.IPKernelApp.connection_file = order["connection_file"]
    config.InteractiveShell.colors = "NoColor"
    app: Any = _application().instance(config=config)
    app.initialize([])
    app.shell.run_cell("pass", store_history=False, silent=True)  # the first cell is slow: let it be this one
    sys.modules[PACKAGE].install(app.shell, order["settings"])
    app.start()
    # An interrupt in the few instructions around a cell, where ipykernel does not expect it, falls through its event loop.
    while not app.shell.exit_now:
        with contextlib.suppress(KeyboardInterrupt):
            app.io_loop.start()

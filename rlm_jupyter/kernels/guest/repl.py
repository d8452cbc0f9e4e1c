"""What the code of the LM finds in its kernel: context, llm_query, rlm_query, both of them batched, FINAL_VAR, SHOW_VARS.

It speaks to the supervisor over a unix socket, one connection per process and thread: a token first, then requests, each with
one answer. What a cell displays goes the same way; what it writes to file descriptors 1 and 2 goes through pipes, and Python's
`sys.stdout` and `sys.stderr` are put directly on them, so that prints and subprocesses keep their order and nothing is dropped.

Standard library only (beside the kernel's own IPython), and no import of our other modules: the sources of this one,
`crossing`, `pickles` and `describing` are executed in every kernel, also of another interpreter. Code in the kernel can
change all of this; it only deceives itself.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import difflib
import fcntl
import functools
import hashlib
import io
import json
import mmap
import os
import reprlib
import secrets
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

MODULE = "_rlm_repl"
"""The name in `sys.modules` under which the supervisor finds this module again."""
CROSSING = "_rlm_crossing"
PICKLES = "_rlm_pickles"
DESCRIBING = "_rlm_describing"

FRAME_CAP = 16 * 1024 * 1024
_IN_MEMORY = 32 * 1024 * 1024
"""Bytes of an answer that is handed over in memory; a larger one goes by a file on disk."""
_BESIDE = 1024 * 1024
"""Bytes from which it pays to hash beside the writing."""
_TOLD = 16 * 1024
"""Characters that the host is told of what a child is given, or answers."""
_ERROR_HALF = 16 * 1024
_ERROR_LINES = 100
_FRAME = struct.Struct(">IB")
_LENGTH = struct.Struct(">I")


class LMError(Exception):
    """A sub-LM call failed; the text says why. Another prompt, or a later attempt, may work."""


class FailedReply(str):
    """The place of a failed item in a batch: a str that starts with `Error: `; `error` is the reason alone."""

    error: str

    def __new__(cls, error: str) -> FailedReply:
        self = super().__new__(cls, f"Error: {error}")
        self.error = error
        return self

    def __reduce__(self) -> tuple[type[FailedReply], tuple[str]]:
        return FailedReply, (self.error,)


class Channel:
    """Requests to the supervisor. Safe from threads and in forked children: each has a connection of its own."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token
        self._local = threading.local()

    def ask(self, header: dict[str, Any], body: bytes = b"", fd: int | None = None) -> tuple[dict[str, Any], bytes]:
        """Send one request, with a descriptor if one is given, and wait for its answer.

        An interrupted wait gives the connection up, and so the request.
        """
        try:
            connection = self._connection()
            _send(connection, header, body, fd)
            return _receive(connection)[:2]
        except OSError as error:
            self.drop()
            raise LMError(f"the connection to the host is gone ({error})") from None
        except BaseException:
            self.drop()
            raise

    def take(self, header: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Send one request whose answer brings a descriptor, or says why not."""
        try:
            connection = self._connection()
            _send(connection, header, b"")
            answer, _, fd = _receive(connection)
        except OSError as error:
            self.drop()
            raise LMError(f"the connection to the host is gone ({error})") from None
        except BaseException:
            self.drop()
            raise
        if fd is None:
            raise LMError(answer.get("refused", "nothing was handed over"))
        return answer, fd

    def drop(self) -> None:
        """Close this thread's connection; the next request opens another."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _connection(self) -> socket.socket:
        connection: socket.socket | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid == os.getpid():
            return connection
        connection = socket.socket(socket.AF_UNIX)
        self._local.connection, self._local.pid = connection, os.getpid()
        connection.connect(self._address)
        _send(connection, {"kind": "hello", "token": self._token}, b"")
        return connection


class Enqueue:
    """Requests to the broker of a sandbox, by HTTP; a kept connection per process and thread."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._local = threading.local()

    def ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Ask, and wait for the answer; once more if a kept connection had ended, which the broker knows by the call's id.

        An interrupted wait gives the connection up, and so the request.
        """
        data = b"".join(_frames(header, body))
        try:
            try:
                return self._post(data)
            except OSError:
                self.drop()
                return self._post(data)
        except (OSError, ValueError, LookupError, struct.error) as error:
            self.drop()
            raise LMError(f"the connection to the broker is gone ({type(error).__name__})") from None
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close this thread's connection; the next request opens another."""
        kept, self._local.kept = getattr(self._local, "kept", None), None
        for each in kept or ():
            each.close()

    def _post(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        connection, answers = self._connection()
        head = f"POST /enqueue HTTP/1.1\r\nHost: broker\r\nX-RLM-Token: {self._token}\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode("ascii"))
        connection.sendall(data)
        status, fields = _line(answers), {}
        while line := _line(answers):
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip().lower()
        size = int(fields["content-length"])
        answer = answers.read(size)
        if len(answer) < size:
            raise ConnectionError("closed")
        if fields.get("connection") == "close":
            self.drop()
        if status.split()[1] != "200":
            raise LMError(f"the broker has refused the call ({status[9:50]})")
        return _message(answer)

    def _connection(self) -> tuple[socket.socket, io.BufferedReader]:
        kept: tuple[socket.socket, io.BufferedReader] | None = getattr(self._local, "kept", None)
        if kept is None or self._local.pid != os.getpid():
            connection = socket.create_connection(("127.0.0.1", self._port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kept = self._local.kept = connection, connection.makefile("rb")
            self._local.pid = os.getpid()
        return kept


def _line(answers: io.BufferedReader) -> str:
    line = answers.readline(65536)
    if not line.endswith(b"\n"):
        raise ConnectionError("closed")
    return line.decode("latin-1").rstrip()


def _frames(header: dict[str, Any], body: bytes) -> Iterator[bytes]:
    """Write a message, in frames."""
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    view = memoryview(_LENGTH.pack(len(head)) + head + body)
    while True:
        piece, view = view[:FRAME_CAP], view[FRAME_CAP:]
        yield _FRAME.pack(len(piece), 1 if view else 0) + piece
        if not view:
            return


def _message(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Read a message that is whole."""
    message, at, more = bytearray(), 0, 1
    while more:
        size, more = _FRAME.unpack_from(data, at)
        at += _FRAME.size + size
        message += data[at - size : at]
    (size,) = _LENGTH.unpack_from(message)
    return json.loads(message[4 : 4 + size].decode("ascii")), bytes(message[4 + size :])


def _send(connection: socket.socket, header: dict[str, Any], body: bytes, fd: int | None = None) -> None:
    for frame in _frames(header, body):
        if fd is not None:
            frame, fd = frame[socket.send_fds(connection, [frame], [fd]) :], None
        connection.sendall(frame)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], bytes, int | None]:
    """Read one message, and the descriptor that came with its first byte."""
    message = bytearray()
    first, fds, _, _ = socket.recv_fds(connection, 1, 1)
    head = first + _read(connection, _FRAME.size - len(first)) if first else _read(connection, _FRAME.size)
    while True:
        size, more = _FRAME.unpack(head)
        message += _read(connection, size)
        if not more:
            break
        head = _read(connection, _FRAME.size)
    (size,) = _LENGTH.unpack_from(message)
    return json.loads(message[4 : 4 + size].decode("ascii")), bytes(message[4 + size :]), fds[0] if fds else None


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        count = connection.recv_into(view[at:])
        if not count:
            raise ConnectionError("closed")
        at += count
    return data


class Repl:
    """The helpers in one kernel, and the hooks that put them back before every cell.

    Parameters
    ----------
    ip
        The kernel's InteractiveShell.
    settings
        `address`, `token`, `enqueue` (where there is a broker: its `port` and another `token`), `finals` (a folder),
        `packages` (that the host has), and the caps `prompt`, `batch`, `children`, `context`, `message`, `value`, `output`.
    """

    def __init__(self, ip: Any, settings: dict[str, Any]) -> None:
        self.ip = ip
        self.caps = settings
        self.channel = Channel(settings["address"], settings["token"])
        self.asks: Channel | Enqueue = Enqueue(**settings["enqueue"]) if "enqueue" in settings else self.channel
        self.names: dict[str, Any] = {
            "llm_query": self.llm_query,
            "llm_query_batched": self.llm_query_batched,
            "rlm_query": self.rlm_query,
            "rlm_query_batched": self.rlm_query_batched,
            "FINAL_VAR": self.FINAL_VAR,
            "SHOW_VARS": self.SHOW_VARS,
            "LMError": LMError,
        }
        self.contexts: dict[str, Any] = {}
        self._is_child = False
        self._folder = os.getcwd()
        self._transformer = _NameArguments()
        self._streams: list[Any] = []
        self._spare_fds: list[tuple[int, tuple[int, int]]] = []

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Let children of multiprocessing use the helpers: there, too, they mean the kernel's own."""
        return _installed, ()

    def install(self) -> None:
        """Take over streams and displays, set the globals, and tell the supervisor that the kernel is ready."""
        ip = self.ip
        for fd, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            if type(stream).__module__ == "ipykernel.iostream":
                stream.close()
            copy = os.dup(fd)
            self._spare_fds.append((copy, _identity(copy)))
            self._streams.append(_text_stream(fd))
            setattr(sys, name, self._streams[-1])
            setattr(sys, f"__{name}__", self._streams[-1])
        outlet = _outlet_class()(self.show)
        ip.displayhook.session = ip.display_pub.session = outlet
        ip.kernel._execute_sleep = 0.0
        _close_iopub_port(ip.kernel)
        ip.ask_exit = _refuse_exit
        ip.kernel.do_execute = _with_short_errors(ip.kernel.do_execute)
        for event, hook in (("pre_run_cell", self.before_cell), ("post_run_cell", self.after_cell)):
            ip.events.register(event, hook)
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
            os.environ.pop(name, None)
        self.put_back()
        ip.user_ns_hidden.update(self.names)
        self.channel.ask({"kind": "ready", "pid": os.getpid(), "python": sys.version.split()[0]})

    def put_back(self) -> None:
        """Set every global of ours, whatever a cell made of it."""
        self.ip.user_ns.update(self.names)
        self.ip.user_ns.update(self.contexts)
        if self._transformer not in self.ip.ast_transformers:
            self.ip.ast_transformers.append(self._transformer)

    def before_cell(self, info: object = None) -> None:
        self.put_back()
        self._mend_streams()
        # ipykernel's SIGINT handler for async cells only marks a future: an idle loop has to be woken for it to be seen.
        try:
            waker = asyncio.get_running_loop()._csock.fileno()  # type: ignore[attr-defined]
            signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        except (RuntimeError, ValueError, AttributeError):
            pass

    def after_cell(self, result: object = None) -> None:
        self._mend_streams()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()

    def _mend_streams(self) -> None:
        """Put back streams and descriptors that a cell closed or pointed elsewhere."""
        for number, (fd, name) in enumerate(((1, "stdout"), (2, "stderr"))):
            copy, identity = self._spare_fds[number]
            if _identity(fd) != identity and _identity(copy) == identity:
                os.dup2(copy, fd)
            if self._streams[number].closed:
                self._streams[number] = _text_stream(fd)
            stream = getattr(sys, name, None)
            if not hasattr(stream, "write") or getattr(stream, "closed", False):
                setattr(sys, name, self._streams[number])

    def load(self, line: str) -> None:
        """Set a global from a file of the host's, if its bytes are exactly what the host wrote."""
        order = json.loads(line)
        value = sys.modules[CROSSING].load(order)
        self.contexts[order["name"]] = value
        self.put_back()

    def inherit(self) -> None:
        """Set `context` to what this kernel's parent has left for it: then it is a child, and its answer goes to the parent."""
        self._is_child = True
        self.contexts["context"] = self._taken("", 0)
        self.put_back()

    def _taken(self, call: str, place: int) -> Any:
        """Give the value that lies ready for this kernel at the supervisor."""
        piece, fd = self.channel.take({"kind": "take", "call": call, "place": place})
        return sys.modules[CROSSING].load(piece, fd)

    def show(self, kind: str, content: dict[str, Any]) -> None:
        """Hand on what a cell displays, as text, and wait until all output before it has been read."""
        if kind in ("execute_result", "display_data"):
            self._show_picture(content.get("data", {}))
            text = content.get("data", {}).get("text/plain")
        elif kind == "error":
            text = "\n".join(map(str, content.get("traceback", ())))
        else:
            return
        if type(text) is not str:
            return
        stream = {"execute_result": "result", "display_data": "display", "error": "error"}[kind]
        data, half = text.encode("utf-8", "backslashreplace"), self.caps["output"]
        if not data.endswith(b"\n"):
            data += b"\n"
        head, skipped = len(data), 0
        if len(data) > 2 * half:
            head, skipped = half, len(data) - 2 * half
            data = data[:half] + data[-half:]
        self._flush()
        self.channel.ask({"kind": "show", "stream": stream, "head": head, "skipped": skipped}, data)

    def _show_picture(self, data: dict[str, Any]) -> None:
        """Hand on the PNG or JPEG of what a cell displays; nothing else of its kind leaves the kernel."""
        coded = data.get("image/png") or data.get("image/jpeg")
        with contextlib.suppress(ValueError, TypeError):
            picture = base64.b64decode(coded) if isinstance(coded, str) else bytes(coded or b"")
            if 0 < len(picture) <= self.caps["picture"]:
                self._flush()
                self.channel.ask({"kind": "picture"}, picture)

    def _flush(self) -> None:
        for each in (sys.stdout, sys.stderr):
            if each is not None and not getattr(each, "closed", False):
                each.flush()

    def llm_query(self, prompt: str, model: str | None = None) -> str:
        """Ask a sub-LM one thing and give its reply.

        Raises
        ------
        LMError
            When there is no reply; the text says why.
        """
        __tracebackhide__ = True
        text, failed = self._ask([prompt], model, batch=False)[0]
        if failed:
            raise LMError(text)
        return text

    def llm_query_batched(self, prompts: list[str], model: str | None = None) -> list[str]:
        """Ask a sub-LM many things at once; the replies come in the order of the prompts.

        The place of a failed item holds a `FailedReply`, a str that starts with `Error: ` and has the reason as `.error`.
        """
        __tracebackhide__ = True
        if isinstance(prompts, str):
            raise TypeError("llm_query_batched takes a list of prompts; for one prompt there is llm_query")
        prompts = list(prompts)
        if not prompts:
            return []
        outcomes = self._ask(prompts, model, batch=True)
        _warn_of_failures(outcomes)
        return [FailedReply(text) if failed else text for text, failed in outcomes]

    def rlm_query(self, prompt: str, context: Any = None, model: str | None = None) -> Any:
        """Ask a child RLM, which writes code in turns of its own, in a kernel of its own; give its answer, with its type.

        `context` is what it finds as its own `context`: any value that can be copied to another kernel. Without it the prompt
        itself is. Where no deeper RLM is allowed this is an `llm_query` of the prompt, with the context below it as text.

        Raises
        ------
        LMError
            When there is no answer; the text says why.
        TypeError
            When the context cannot be copied; the text names the part.
        """
        __tracebackhide__ = True
        answer, failed = self._children([prompt], [context], model, batch=False)[0]
        if failed:
            raise LMError(answer)
        return answer

    def rlm_query_batched(self, prompts: list[str], contexts: list[Any] | None = None, model: str | None = None) -> list[Any]:
        """Ask many child RLMs at once; the answers come in the order of the prompts. `contexts`: one for each, or None.

        The place of a failed one holds a `FailedReply`, a str that starts with `Error: ` and has the reason as `.error`.
        """
        __tracebackhide__ = True
        if isinstance(prompts, str):
            raise TypeError("rlm_query_batched takes a list of prompts; for one prompt there is rlm_query")
        if isinstance(contexts, (str, bytes, dict)):
            raise TypeError(f"contexts must be a list with one for each prompt, not a {type(contexts).__name__}")
        prompts = list(prompts)
        given = [None] * len(prompts) if contexts is None else list(contexts)
        if len(given) != len(prompts):
            raise ValueError(f"{len(given):,} contexts for {len(prompts):,} prompts")
        outcomes = self._children(prompts, given, model, batch=True) if prompts else []
        _warn_of_failures(outcomes)
        return [FailedReply(answer) if failed else answer for answer, failed in outcomes]

    def _children(self, prompts: list[str], contexts: list[Any], model: str | None, *, batch: bool) -> list[tuple[Any, bool]]:
        __tracebackhide__ = True
        allowed, _ = self.channel.ask({"kind": "children"})
        if "refused" in allowed:
            raise LMError(allowed["refused"])
        if not allowed["children"]:
            below = [_with_text(prompt, context) for prompt, context in zip(prompts, contexts, strict=True)]
            return list(self._ask(below, model, batch=batch))
        if len(prompts) > self.caps["children"]:
            raise ValueError(f"a batch of {len(prompts):,} children; at most {self.caps['children']:,}")
        datas = self._checked(prompts, model, batch=batch)
        parcel, told = self._leave(prompts, contexts)
        call = secrets.token_hex(16)
        request = {"kind": "call", "call": call, "batch": batch, "model": model, "child": True, "parcel": parcel}
        request |= {"sizes": [len(data) for data in datas], "told": [len(text) for text in told]}
        outcomes, values = self._send_call(request, b"".join([*datas, *told]))
        self.channel.ask({"kind": "forget", "parcel": parcel})
        for place in values:
            try:
                outcomes[place] = self._taken(call, place), False
            except Exception as error:  # a value's own code may raise anything
                outcomes[place] = f"the child's answer could not be read here ({type(error).__name__}: {error})"[:2000], True
        return outcomes

    def _leave(self, prompts: list[str], contexts: list[Any]) -> tuple[int, list[bytes]]:
        """Leave the contexts of children at the supervisor; the number of the parcel, and what the host is told of each."""
        describing = sys.modules[DESCRIBING]
        pieces, chunks, told, end = [], [], [], 0
        for place, (prompt, context) in enumerate(zip(prompts, contexts, strict=True)):
            value = prompt if context is None else context
            form, written = sys.modules[PICKLES].pack(value, f"contexts[{place}]" if len(prompts) > 1 else "context")
            gap = bytes(-end % mmap.ALLOCATIONGRANULARITY)
            digest = _digest_of(written.pieces)
            pieces.append({"form": form, "offset": end + len(gap), "size": written.size, "digest": digest})
            chunks += [gap, *written.pieces]
            end += len(gap) + written.size
            if end > self.caps["context"]:
                raise ValueError(f"contexts of more than {self.caps['context']:,} bytes: give less of them")
            about = {"own": context is not None, "type": describing.type_name(value), "size": describing.size(value)[0]}
            about |= {"text": _shortened(describing.describe(value))}
            told.append(json.dumps(about).encode("ascii"))
        fd = _unnamed(chunks, end, self.caps["finals"])
        try:
            answer, _ = self.channel.ask({"kind": "parcel", "pieces": pieces}, fd=fd)
        finally:
            os.close(fd)
        if "refused" in answer:
            raise LMError(answer["refused"])
        return answer["parcel"], told

    def _ask(self, prompts: list[str], model: str | None, *, batch: bool) -> list[tuple[str, bool]]:
        __tracebackhide__ = True
        datas = self._checked(prompts, model, batch=batch)
        request = {"kind": "call", "call": secrets.token_hex(16), "batch": batch, "model": model}
        return self._send_call({**request, "sizes": [len(data) for data in datas]}, b"".join(datas))[0]

    def _checked(self, prompts: list[str], model: str | None, *, batch: bool) -> list[bytes]:
        """Give the bytes of prompts that can be asked."""
        __tracebackhide__ = True
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model must be a model's name (a str), not {type(model).__name__}")
        if len(prompts) > self.caps["batch"]:
            raise ValueError(f"a batch of {len(prompts):,} prompts; at most {self.caps['batch']:,}")
        datas = []
        for place, prompt in enumerate(prompts):
            which = f"prompts[{place}]" if batch else "prompt"
            if not isinstance(prompt, str):
                raise TypeError(f"{which} must be a str, not {type(prompt).__name__}; make text of it first")
            datas.append(prompt.encode("utf-8", "surrogatepass"))
            if len(datas[-1]) > self.caps["prompt"]:
                raise ValueError(f"{which} has {len(datas[-1]):,} bytes; at most {self.caps['prompt']:,}")
        whole = sum(map(len, datas))
        if whole > self.caps["message"]:
            raise ValueError(f"a batch of {whole:,} bytes; at most {self.caps['message']:,}: use several batches")
        return datas

    def _send_call(self, request: dict[str, Any], data: bytes) -> tuple[list[tuple[Any, bool]], list[int]]:
        """Make a call and wait; its outcomes, and the places where a value of a child is to be fetched."""
        __tracebackhide__ = True
        answer, body = self.asks.ask(request, data)
        if "refused" in answer:
            raise LMError(answer["refused"])
        outcomes: list[tuple[Any, bool]] = []
        at, errors = 0, set(answer["errors"])
        for place, size in enumerate(answer["sizes"]):
            outcomes.append((body[at : at + size].decode("utf-8", "surrogatepass"), place in errors))
            at += size
        return outcomes, list(answer.get("values", ()))

    def FINAL_VAR(self, var: Any, *, _named: bool = False) -> None:
        """Give the answer: `FINAL_VAR("name")` for a variable's name, `FINAL_VAR(expression)` for a value.

        The answer counts when the cell ends without an error; the last one wins.
        """
        __tracebackhide__ = True
        name = ""
        if _named:
            name, var = var, _lookup(var, sys._getframe(1), {*self.names, *self.contexts})
        if _holds_failed_reply(var):
            raise ValueError(
                "this answer holds the place of a failed call (a FailedReply, its text starts with 'Error: '). "
                "Ask again for the failed items or leave them out, then call FINAL_VAR."
            )
        header: dict[str, Any] = {"kind": "final", "name": name[:1000], "preview": ""}
        if self._is_child:
            header["preview"] = _shortened(_look(var))
            form, type_name, pieces = sys.modules[CROSSING].for_sibling(var)
        else:
            form, type_name, data = sys.modules[CROSSING].encode(var, self.caps["packages"])
            pieces = [data]
        size = sum(map(len, pieces))
        if size > self.caps["value"]:
            raise ValueError(f"an answer of {size:,} bytes; at most {self.caps['value']:,}: give a smaller one")
        digest = _Digest(pieces, size)
        try:
            fd = _unnamed(pieces, size, self.caps["finals"])
        finally:
            hexdigest = digest.result()
        try:
            header |= {"type_name": type_name, "form": form, "size": size, "digest": hexdigest}
            answer, _ = self.channel.ask(header, fd=fd)
        finally:
            os.close(fd)
        if "refused" in answer:
            raise RuntimeError(answer["refused"])

    def give_files(self, total: int, count: int) -> None:
        """Hand over the files of the kernel's own folder; the host asks for it, in a cell of its own, at the end."""
        self.FINAL_VAR(sys.modules[CROSSING].written(self._folder, total, count))

    def SHOW_VARS(self) -> None:
        """Print the names, types and sizes of what the REPL holds."""
        hidden = {*self.names, *self.ip.user_ns_hidden} - {*self.contexts}
        rows = [("name", "type", "size")]
        for name, value in sorted(self.ip.user_ns.items()):
            if name not in hidden and not name.startswith("_"):
                rows.append((name, type(value).__name__, _size(value)))
        if len(rows) == 1:
            print("no variables yet")
            return
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for row in rows:
            print(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip())


class _Digest:
    """The SHA-256 of something, made beside other work where it is large."""

    def __init__(self, pieces: list[Any], size: int) -> None:
        self._found: list[str] = []
        self._thread = threading.Thread(target=self._make, args=(pieces,)) if size > _BESIDE else None
        if self._thread is None:
            self._make(pieces)
        else:
            self._thread.start()

    def _make(self, pieces: list[Any]) -> None:
        self._found.append(_digest_of(pieces))

    def result(self) -> str:
        if self._thread is not None:
            self._thread.join()
        return self._found[0]


def _digest_of(pieces: list[Any]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _unnamed(pieces: list[Any], size: int, folder: str) -> int:
    """Give a descriptor of a file without a name that holds `pieces`: in memory, and sealed, where they are not too large.

    Else it is one on disk, which is open for reading only.
    """
    fd = reading = -1
    if size <= _IN_MEMORY and hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            fd = os.memfd_create("final", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    sealed = fd >= 0
    if not sealed:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, secrets.token_hex(16))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.unlink(path)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(pieces)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        if reading >= 0:
            os.close(reading)
        raise
    if sealed:
        return fd
    os.close(fd)
    return reading


def _warn_of_failures(outcomes: list[tuple[Any, bool]]) -> None:
    failures = [place for place, (_, failed) in enumerate(outcomes) if failed]
    if failures:
        places = ", ".join(map(str, failures[:20])) + (", ..." if len(failures) > 20 else "")
        reason = outcomes[failures[0]][0]
        print(f"Warning: {len(failures)} of {len(outcomes)} calls failed, at [{places}]; the first: {reason}", file=sys.stderr)


def _with_text(prompt: str, context: Any) -> str:
    """Give what an LM reads in place of a child: the prompt, and the context as text."""
    if context is None or not isinstance(prompt, str):
        return prompt
    text = context if isinstance(context, str) else sys.modules[CROSSING].text_of(context)
    return f"{prompt}\n\nContext:\n{text}"


def _look(value: Any) -> str:
    """Give the beginning of a value as text, without building the whole of it."""
    if isinstance(value, str):
        return value
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 100
    short.maxstring = short.maxother = short.maxlong = 2000
    try:
        return short.repr(value) if isinstance(value, (list, tuple, dict, set, frozenset)) else repr(value)
    except Exception as error:  # an object's own __repr__ may raise anything
        return f"{type(value).__name__} (its repr fails: {type(error).__name__})"


def _shortened(text: str) -> str:
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}\n[... {len(text) - _TOLD:,} characters left out ...]"


class _NameArguments(ast.NodeTransformer):
    """Mark `FINAL_VAR("name")`: a string literal is a variable's name, any other expression is the value."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "FINAL_VAR":
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "var")]
            if len(given) == 1 and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
                mark = ast.keyword(arg="_named", value=ast.Constant(True))
                node.keywords.append(ast.fix_missing_locations(ast.copy_location(mark, node)))
        return node


def _lookup(name: str, frame: Any, ours: set[str]) -> Any:
    __tracebackhide__ = True
    if name in frame.f_locals:
        return frame.f_locals[name]
    if name in frame.f_globals:
        return frame.f_globals[name]
    known = [each for each in {*frame.f_locals, *frame.f_globals} - ours if not each.startswith("_")]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    shown = name if len(name) <= 60 else name[:60] + "..."
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise NameError(
        f"no variable is named {shown!r}.{hint} FINAL_VAR with a string literal takes the name of a variable; "
        "to give a text itself, assign it first: answer = ...; FINAL_VAR(answer)"
    )


def _holds_failed_reply(value: Any) -> bool:
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, FailedReply):
            return True
        if isinstance(item, (list, tuple, dict, set, frozenset)) and id(item) not in seen:
            seen.add(id(item))
            todo += [*item, *item.values()] if isinstance(item, dict) else item
    return False


def _size(value: Any) -> str:
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            return " x ".join(map(str, shape))
        if isinstance(value, str):
            return f"{len(value):,} characters"
        return f"{len(value):,} items" if hasattr(value, "__len__") and not isinstance(value, type) else ""
    except Exception:
        return ""


def _identity(fd: int) -> tuple[int, int]:
    try:
        status = os.fstat(fd)
    except OSError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


def _text_stream(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(open(fd, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True)


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


def _short(whole: Any) -> str:
    text = str(whole)
    if len(text) <= 2 * _ERROR_HALF:
        return text
    return f"{text[:_ERROR_HALF]}\n[... {len(text) - 2 * _ERROR_HALF:,} characters left out ...]\n{text[-_ERROR_HALF:]}"


def _refuse_exit() -> NoReturn:
    raise SystemExit("exit() does not end this session")


def _outlet_class() -> Any:
    """Give a jupyter_client Session that sends nothing: what displays publish is handed to a function instead."""
    from jupyter_client.session import Session

    class Outlet(Session):
        def __init__(self, show: Any) -> None:
            super().__init__()
            self._show = show

        def send(self, stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **kwargs: Any) -> Any:
            if isinstance(msg_or_type, dict):
                msg_or_type, content = msg_or_type["header"]["msg_type"], msg_or_type["content"]
            self._show(msg_or_type, content or {})
            return msg_or_type

    return Outlet


def _installed() -> Any:
    module: Any = sys.modules[MODULE]
    return module.repl


def install(ip: Any, settings: dict[str, Any]) -> Repl:
    """Put the helpers into a kernel."""
    repl = Repl(ip, settings)
    module: Any = sys.modules[MODULE]
    module.repl = repl
    repl.install()
    return repl

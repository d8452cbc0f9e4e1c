"""Contexts in a kernel: the object in a file that the host, or another kernel, has written, if its bytes are exactly those.

A text is decoded while it is hashed; a pickle is read here and nowhere else, its large buffers mapped and not copied. What
cannot be read says what the kernel lacks for it.
"""

from __future__ import annotations

import hmac
import json
import mmap
import pickle
import struct
import sys
from typing import Any

from .digests import Digest


class NotLoaded(Exception):
    """A context that cannot be had in this kernel; the text says why."""


def load(order: dict[str, Any], path: str | int = "") -> Any:
    """Give the object in the file that the host wrote, if its bytes are exactly those that the host wrote.

    Or the object that another kernel wrote, in the file of the descriptor `path`, which is closed. Large arrays are not read
    but mapped; a page that the code writes to becomes the kernel's own.
    """
    offset, size = order.get("offset", 0), order["size"]
    with open(path or order["path"], "rb") as file:
        whole = file.seek(0, 2)
        if size > whole - offset or (not path and size != whole):
            raise NotLoaded("the context arrived with another size")
        access = mmap.ACCESS_READ if order["form"] == "text" else mmap.ACCESS_COPY
        data = mmap.mmap(file.fileno(), size, access=access, offset=offset) if size else b""
    view = memoryview(data)
    digest = Digest(order["form"], [view])
    if order["form"] != "text":
        _check(digest, order)
        return _unpickle(view)
    try:
        text = str(view, "utf-8", "surrogatepass")
    except BaseException:
        digest.give_up()
        raise
    _check(digest, order)
    return text


def _check(digest: Digest, order: dict[str, Any]) -> None:
    if not hmac.compare_digest(digest.result(), order["digest"]):
        raise NotLoaded("the context arrived with another digest")


def _unpickle(view: memoryview) -> Any:
    (length,) = struct.unpack(">Q", view[-8:])
    index = json.loads(bytes(view[-8 - length : -8]))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if index["by"] == "dill" and index["python"] != python:
        raise NotLoaded(
            f"it holds functions or classes of the notebook, which only Python {index['python']} can read, and the kernel "
            f"runs {python}; pass plain data, such as vars(x) of each object, or use a kernel of Python {index['python']}"
        )
    buffers = [view[at : at + size] for at, size in index["buffers"]]
    try:
        if index["by"] == "dill":
            import dill  # noqa: F401  # some of what it wrote is read with its own functions
        return pickle.loads(view[: index["pickle"]], buffers=buffers)
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        where = "install it there" if name in (*index["packages"], "dill") else "pass plain data instead, such as vars(x)"
        raise NotLoaded(f"the kernel's Python cannot import {name}, which the context needs; {where}") from None
    except Exception as error:
        other = [f"{name} {theirs} and here {ours}" for name, theirs, ours in _versions(index["packages"]) if theirs != ours]
        hint = f"; it was written by {', '.join(other)}" if other else ""
        raise NotLoaded(f"{type(error).__name__}: {error}{hint}") from None


def _versions(packages: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(name, theirs, getattr(sys.modules.get(name), "__version__", "none")) for name, theirs in packages.items()]

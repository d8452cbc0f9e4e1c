"""`FINAL_VAR`: a value is encoded at the moment of the call and handed to the supervisor as a file without a name.

A string literal is the name of a variable, any other expression is the value itself: a transformer of the cell's code marks
which it is, since the call alone cannot tell. What holds the place of a failed call is refused.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from typing import Any

from . import crossing, pickles, workfiles
from .channel import Channel
from .digests import Digest
from .failures import holds_failed_reply
from .helper import Helper
from .looks import look, shortened
from .memfiles import unnamed
from .variables import lookup


class Answer(Helper):
    """The helper, and the files of the kernel's folder, which go the same way.

    Parameters
    ----------
    channel
        To the supervisor.
    caps
        `value` (bytes), `packages` (that the host has), and `finals` (a folder).
    ours
        Gives the names of our own globals, which nobody means by a name.
    """

    part = "answer"

    def __init__(self, channel: Channel, caps: dict[str, Any], ours: Callable[[], set[str]]) -> None:
        self.for_parent = False
        self._channel = channel
        self._caps = caps
        self._ours = ours
        self._folder = os.getcwd()

    def FINAL_VAR(self, var: Any, *, _named: bool = False) -> None:
        """Give the answer: `FINAL_VAR("name")` for a variable's name, `FINAL_VAR(expression)` for a value.

        The answer counts when the cell ends without an error; the last one wins.
        """
        __tracebackhide__ = True
        name = ""
        if _named:
            name, var = var, lookup(var, sys._getframe(1), self._ours())
        if holds_failed_reply(var):
            raise ValueError(
                "this answer holds the place of a failed call (a FailedReply, its text starts with 'Error: '). "
                "Ask again for the failed items or leave them out, then call FINAL_VAR."
            )
        header: dict[str, Any] = {"kind": "final", "name": name[:1000], "preview": ""}
        if self.for_parent:
            header["preview"] = shortened(look(var))
            form, type_name, pieces = _for_parent(var)
        else:
            form, type_name, data = crossing.encode(var, self._caps["packages"])
            pieces = [data]
        size = sum(map(len, pieces))
        if size > self._caps["value"]:
            raise ValueError(f"an answer of {size:,} bytes; at most {self._caps['value']:,}: give a smaller one")
        digest = Digest(form, pieces)
        try:
            fd = unnamed(pieces, size, self._caps["finals"])
        finally:
            hexdigest = digest.result()
        try:
            header |= {"type_name": type_name, "form": form, "size": size, "digest": hexdigest}
            answer, _ = self._channel.ask(header, fd=fd)
        finally:
            os.close(fd)
        if "refused" in answer:
            raise RuntimeError(answer["refused"])

    def give_files(self, total: int, count: int) -> None:
        """Hand over the files of the kernel's own folder; the host asks for it, in a cell of its own, at the end.

        How many were left out is printed.
        """
        found, left_out = workfiles.written(self._folder, total, count)
        self.FINAL_VAR(found)
        if left_out:
            print(left_out)


def _for_parent(value: Any) -> tuple[str, str, list[Any]]:
    """Give form, type name and bytes, in pieces, of a value for another kernel; a TypeError says what cannot be handed over."""
    form, chunks = pickles.pack(value, "this answer")
    return form, crossing.type_name(value), chunks.pieces


class NameArguments(ast.NodeTransformer):
    """Mark `FINAL_VAR("name")`: a string literal is a variable's name, any other expression is the value."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "FINAL_VAR":
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "var")]
            if len(given) == 1 and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
                mark = ast.keyword(arg="_named", value=ast.Constant(True))
                node.keywords.append(ast.fix_missing_locations(ast.copy_location(mark, node)))
        return node

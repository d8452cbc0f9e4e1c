"""What the panel's form holds, and the `%%rlm` cell that says the same.

The form decides nothing: it is written as the text of a cell, and that text is what the magic reads, whether the user runs the
cell or presses Run. Variables of the notebook are described by type and size alone, and without running any code of theirs.
"""

from __future__ import annotations

import _io
import collections
import dataclasses
import shlex
import sys
import types
from collections.abc import Container, Mapping, Sequence
from typing import Any

from rlm_jupyter.widgets.figures import count, duration
from rlm_jupyter.widgets.visible import one_line

NO_CAP = "no cap"
LISTED = 500
"""Variables offered; whoever has more of them types the name in a cell of their own."""
_NO_CONTEXT = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, _io._IOBase)
"""What is never a context, beside iterators: code, and what can be read only once."""
_SIZED: Sequence[tuple[type[Any], str]] = (
    (str, "character"), (bytes, "byte"), (bytearray, "byte"), (list, "item"), (tuple, "item"), (dict, "item"),
    (set, "item"), (frozenset, "item"), (collections.deque, "item"),
)  # fmt: skip
_SHAPED = {
    "numpy": {"ndarray": "shape"},
    "pandas": {"DataFrame": "shape", "Series": "shape"},
    "polars": {"DataFrame": "shape", "Series": "shape"},
    "pyarrow": {"Table": "shape", "RecordBatch": "shape"},
}
_name_of, _bases_of, _space_of = (type.__dict__[name].__get__ for name in ("__name__", "__mro__", "__dict__"))
"""A type's own name, bases and namespace, whatever its metaclass would say."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """A variable that can be a context: its name, and its type and size in words."""

    name: str
    told: str

    @property
    def label(self) -> str:
        return f"{self.name}: {self.told}"


@dataclasses.dataclass(frozen=True, slots=True)
class Cap:
    """A cap that has a slider: its label and the steps of it; `open`: it can be none."""

    label: str
    steps: tuple[float, ...]
    open: bool = False

    def choices(self, default: float | None) -> dict[str, float | None]:
        """Give every value of the slider by its words, the default among them."""
        found: dict[str, float | None] = {}
        for value in sorted({*self.steps, *(() if default is None else (default,))}):
            told = self._told(value)
            found[f"{value:,}" if told in found else told] = value
        return found | ({NO_CAP: None} if self.open or default is None else {})

    def _told(self, value: float) -> str:
        match self.label:
            case "Dollars":
                return f"${value:,.2f}" if round(value, 2) == value else f"${value:,}"
            case "Time":
                return duration(value)
        return f"{value:,}"


CAPS: Mapping[str, Cap] = {
    "max_iterations": Cap("Iterations", (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100)),
    "max_depth": Cap("Depth", (1, 2, 3, 4, 5)),
    "max_calls": Cap("Requests", (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)),
    "max_cost": Cap("Dollars", (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0), open=True),
    "max_tokens": Cap("Tokens", (10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000), open=True),
    "timeout": Cap("Time", (30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0)),
}
"""The caps that the form has a slider for, by the names of their traits; those that the magic does not have are left out."""
TEXTS = ("model", "sub_model", "base_url", "api_key_env")
"""The options that are one word each, by the names of their traits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What the user has filled in.

    Attributes
    ----------
    question
        The body of the cell.
    context, is_path
        A variable's name, or a path, folder or glob; '' for none: the question is the context.
    env, model, sub_model, base_url, api_key_env
        Values of the options of these names; '' for what is not given.
    caps
        By the names of their traits; None: no cap.
    other
        Further options, as one types them.
    out
        The variable that receives the result; '' for none.
    """

    question: str = ""
    context: str = ""
    is_path: bool = False
    env: str = "local"
    model: str = ""
    sub_model: str = ""
    base_url: str = ""
    api_key_env: str = ""
    caps: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    other: str = ""
    out: str = ""

    def cell(self, defaults: Mapping[str, Any], factory: Mapping[str, Any]) -> str:
        """Give the cell that is equal to the form.

        What has a default is written out where it is not the default of the extension itself (`factory`), or where that in
        force (`defaults`) is another one, so that the cell means the same in another session. A cap in dollars is only written
        where it is not the default in force: an explicit one makes a model without a known price an error.
        """
        options: list[tuple[str, str]] = []
        if context := _line(self.context):
            options.append(("--context", f"./{context}" if self.is_path and _needs_dot(context) else context))
        for name in ("env", *TEXTS):
            value = _line(getattr(self, name))
            if value != factory[name] or defaults[name] != factory[name]:
                options.append((_option(name), value))
        for name, cap in self.caps.items():
            explicit = cap != defaults[name]
            if explicit or (name != "max_cost" and cap != factory[name]):
                options.append((_option(name), "none" if cap is None else f"{cap:.12g}"))
        if out := _line(self.out):
            options.append(("--out", out))
        written = ["%%rlm", *(f"{option} {shlex.quote(value)}" for option, value in options)]
        return " ".join([*written, *filter(None, [_line(self.other)])]) + f"\n{self.question.strip()}\n"


def _line(text: str) -> str:
    """Give a text of one line, as a field of one line holds it."""
    return " ".join(text.splitlines()).strip()


def _needs_dot(path: str) -> bool:
    """Tell whether the magic would take a path for the name of a variable, or for an option."""
    return path.isidentifier() or path.startswith("-")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def variables(space: Mapping[str, Any], hidden: Container[str]) -> list[Variable]:
    """Give the variables of a notebook that can be a context, by name. No code of theirs is run, no value is looked at."""
    found = sorted(
        name
        for name, value in list(space.items())
        if name.isidentifier() and not name.startswith("_") and name not in hidden and _can_be_context(type(value))
    )
    return [Variable(name, describe(space[name])) for name in found[:LISTED] if name in space]


def _can_be_context(kind: type[Any]) -> bool:
    return not issubclass(kind, _NO_CONTEXT) and not any("__next__" in _space_of(base) for base in _bases_of(kind))


def describe(value: Any) -> str:
    """Give the type of a value, and its size where it is of a type that tells it at once: `dict, 412 items`."""
    kind = type(value)
    name = one_line(_name_of(kind), 60)
    for base, unit in _SIZED:
        if issubclass(kind, base):
            return f"{name}, {count(base.__len__(value), unit)}"
    for module, kinds in _SHAPED.items():
        for shaped, attribute in kinds.items():
            if kind is getattr(sys.modules.get(module), shaped, None):
                return f"{module}.{name}, {_shape(getattr(value, attribute), kind)}"
    return name


def _shape(shape: Sequence[int], kind: type[Any]) -> str:
    if len(shape) == 1:
        return count(shape[0], "row" if kind.__name__ == "Series" else "value")
    if kind.__name__ != "ndarray":
        return f"{count(shape[0], 'row')}, {count(shape[1], 'column')}"
    return " x ".join(f"{side:,}" for side in shape) or "1 value"

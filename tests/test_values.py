"""Values come back exact, by their form alone, or as a typed error (P1, P16)."""

from __future__ import annotations

import decimal
import io
import json
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import matplotlib.figure
import numpy as np
import PIL.Image
import polars as pl
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_jupyter.contexts import prepare
from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels.guest.crossing import encode
from rlm_jupyter.pictures import Picture
from rlm_jupyter.values import OtherText, Record, Value, as_text, decode
from tests import kinds
from tests.conformance.driving import Session, session

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def kernel() -> AsyncIterator[Session]:
    async with session() as opened:
        yield opened


def there_and_back(value: Any) -> Any:
    return decode(Value(*encode(value)))


def typed(shape: Any, data: Any, *sections: bytes, **header: Any) -> Value:
    told = {"shape": shape, "data": data, "sections": [len(section) for section in sections], **header}
    text = json.dumps(told).encode()
    return Value("typed", "x", struct.pack(">Q", len(text)) + text + b"".join(sections))


@pytest.mark.parametrize("kind", kinds.OUT)
async def test_p16_every_kind_comes_back_equal(kernel: Session, kind: str) -> None:
    value = kinds.OUT[kind]()
    await kernel.kernel.load("given", prepare(value).payload)
    assert kinds.same(await kernel.final("FINAL_VAR(given)"), value)


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, [2]], {"a": {"__type__": "pickle"}}, {"form": "json"}])
def test_what_json_holds_goes_as_json(value: Any) -> None:
    assert encode(value)[0] == ("text" if isinstance(value, str) else "json")
    assert kinds.same(there_and_back(value), value)


_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary(), st.uuids(), st.times(),
    st.complex_numbers(allow_nan=False), st.decimals(allow_nan=False), st.fractions(), st.dates(), st.timedeltas(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.sampled_from(["__type__", "shape", "data", "sections", "tuple", "bytes", "\ud83d\ude00"]),
)  # fmt: skip
_keys = st.text() | st.integers() | st.booleans() | st.none() | st.binary() | st.tuples(st.text(), st.integers())
_trees = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4) | st.lists(inner, max_size=3).map(tuple)
        | st.sets(_keys, max_size=4) | st.frozensets(_keys, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_trees)
def test_p16_any_tree_of_built_in_values_is_exact(value: Any) -> None:
    assert kinds.same(there_and_back(value), value)


_names = ["list", "tuple", "dict", "bytes", "ndarray", "pandas.DataFrame", "record", "text", "<f8", "numpy", "picture"]
_shapes = st.recursive(
    st.just(0) | st.none() | st.integers(-1, 3) | st.text(max_size=3),
    lambda inner: st.lists(st.sampled_from(_names) | inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_trees)
def test_p16_data_that_looks_like_a_typed_value_is_only_data(value: Any) -> None:
    form, _, data = encode(value)
    if form == "typed":
        (length,) = struct.unpack_from(">Q", data)
        header = json.loads(data[8 : 8 + length])
        assert kinds.same(there_and_back(header), header)
        assert kinds.same(there_and_back(data), data)


_FORBIDDEN = (
    "open",
    "import",
    "exec",
    "compile",
    "pickle.find_class",
    "marshal.loads",
    "subprocess.Popen",
    "os.system",
    "socket.connect",
)
_watching: list[list[str]] = []
sys.addaudithook(
    lambda event, args: _watching[-1].append(f"{event} {args!r:.200}") if _watching and event in _FORBIDDEN else None
)


@contextmanager
def nothing_is_run() -> Iterator[None]:
    """Fail when anything is opened, imported, compiled, unpickled or started within."""
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield
    finally:
        _watching.remove(seen)
    assert seen == []


def test_the_audit_hook_sees() -> None:
    with pytest.raises(AssertionError), nothing_is_run():
        compile("1", "x", "eval")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_shapes, _trees.filter(lambda value: encode(value)[0] == "json"), st.lists(st.binary(max_size=64), max_size=3))
def test_p01_a_made_up_value_is_a_value_or_an_error_and_runs_nothing(shape: Any, data: Any, sections: list[bytes]) -> None:
    value = typed(shape, data, *sections)
    with nothing_is_run(), suppress(ProtocolError):
        decode(value)


_SEEDS = [
    encode(make())[2]
    for kind, make in kinds.OUT.items()
    if encode(make())[0] == "typed" and "zoned" not in kind and "odd col" not in kind
]
for _seed in _SEEDS:  # what a package imports at its first use is no reply's doing
    decode(Value("typed", "x", _seed))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_SEEDS), st.data())
def test_p01_a_damaged_value_is_a_value_or_an_error_and_runs_nothing(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1) | st.integers(8, min(400, len(damaged) - 1)))
        damaged[place] = data.draw(st.integers(0, 255))
    with nothing_is_run(), suppress(ProtocolError):
        decode(Value("typed", "x", bytes(damaged)))


def test_p01_utf_16_is_not_guessed() -> None:
    text = json.dumps({"shape": 0, "data": 1, "sections": []}).encode("utf-16-be")
    with nothing_is_run(), pytest.raises(ProtocolError):
        decode(Value("typed", "x", struct.pack(">Q", len(text)) + text))


@pytest.mark.parametrize(
    "value",
    [
        Value("json", "x", b"{"),
        Value("json", "x", b"[" * 100_000),
        Value("text", "x", b"\xff"),
        Value("pickle", "x", b"\x80\x04N."),
        Value("typed", "x", b""),
        Value("typed", "x", struct.pack(">Q", 2**63) + b"{}"),
        typed(["pickle"], "x"),
        typed(["bytes"], 0),
        typed(["bytes"], -1, b"x"),
        typed(["bytes"], True, b"x"),
        typed(["tuple", [0]], [1, 2]),
        typed(["set", 0], [1, 1]),
        typed(["dict", 0, 0], [[1, 1], [2, 3]]),
        typed(["dict", 0, 0], [[[]], [2]]),
        typed(["ndarray", "O", [1]], 0, bytes(8)),
        typed(["ndarray", "<f8", [2]], 0, bytes(8)),
        typed(["ndarray", "<f8", [2**39, 2**39]], 0, bytes(8)),
        typed(["ndarray", "f8,__import__('os')", [1]], 0, bytes(8)),
        typed(["ndarray", [[["a", "O", 0]], 8], [1]], 0, bytes(8)),
        typed(["ndarray", [[["a", "<i8", 4]], 8], [1]], 0, bytes(8)),
        typed(["datetime"], ["2026-01-01", 0, "../../etc/passwd"]),
        typed(["pyarrow.Table"], 0, b"not arrow"),
        typed(["polars.DataFrame"], 0, b"not arrow"),
        typed(["picture"], 0, b"<svg onload=alert(1)>"),
        typed(["record", "x", ["a", "a"], 0], [1, 2]),
        typed(0, 1, extra=1),
        typed(0, 1, sections=[5]),
    ],
)
def test_anything_else_is_a_protocol_error(value: Value) -> None:
    with pytest.raises(ProtocolError):
        decode(value)


def test_a_deep_shape_is_an_error() -> None:
    shape, data = b'["tuple",[' * 3000 + b"0" + b"]]" * 3000, b"[" * 3000 + b"1" + b"]" * 3000
    text = b'{"shape":' + shape + b',"data":' + data + b',"sections":[]}'
    with pytest.raises(ProtocolError):
        decode(Value("typed", "x", struct.pack(">Q", len(text)) + text))


# What does not cross as it is


def test_dataclasses_and_named_tuples_come_back_as_records() -> None:
    back = there_and_back([kinds.Point(1, 2), kinds.Pair(3, "four")])
    assert [type(item) for item in back] == [Record, Record]
    assert (back[0].x, back[0].fields, back[1].right) == (1, {"x": 1, "y": 2}, "four")
    assert back[0].type_name.endswith(".Point")
    assert repr(back[1]) == "Pair(left=3, right='four')"


def test_keys_that_are_records_or_nan_stay_different_keys() -> None:
    back = there_and_back({kinds.Pair(1, "x"): 5, kinds.Pair(2, "x"): 6})
    assert {(key.left, key.right): value for key, value in back.items()} == {(1, "x"): 5, (2, "x"): 6}
    assert back[Record(next(iter(back)).type_name, {"left": 2, "right": "x"})] == 6
    nans = {float("nan"), float("nan"), 1.0}
    assert len(there_and_back(nans)) == len(there_and_back(dict.fromkeys(nans))) == 3


def test_a_look_at_a_dict_comes_back_as_the_list_that_it_shows() -> None:
    value = {"a": b"x", "b": 2}
    assert there_and_back([value.keys(), value.values(), value.items()]) == [["a", "b"], [b"x", 2], [("a", b"x"), ("b", 2)]]


def test_other_things_come_back_as_text_with_their_type_named() -> None:
    form, name, data = encode(decimal.Context(prec=3))
    assert (form, name) == ("text", "decimal.Context")
    assert data.startswith(b"Context(prec=3")
    back = there_and_back({"a": [sys, 1]})
    assert isinstance(back["a"][0], OtherText)
    assert back["a"][0].type_name == "module"
    assert encode(np.matrix([[1]]))[0] == "text"


def test_models_of_pydantic_come_back_as_records() -> None:
    class Clause(pydantic.BaseModel):
        name: str
        pages: list[int] = []

    found = there_and_back([Clause(name="x", pages=[1, 2])])
    assert found[0].type_name.endswith("Clause")
    assert found[0].fields == {"name": "x", "pages": [1, 2]}


class NoText:
    """An object that cannot even be told."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr here")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: (n for n in range(3)), "is a generator, which has no value yet; .*list"),
        (lambda: map(str, [1]), "is a map, which has no value yet"),
        (lambda: io.StringIO("x"), "StringIO, which has no value yet"),
        (lambda: pl.DataFrame({"a": [1]}).lazy(), r"LazyFrame, which has no value yet; .*\.collect\(\)"),
        (lambda: {"a": [(n for n in range(3))]}, "the answer holds a generator, which has no value yet"),
        (lambda: (pl.DataFrame({"a": [1]}).lazy(),), "the answer holds a polars.lazyframe"),
        (NoText, "NoText has no text to give as an answer .RuntimeError: no repr here.; give what it holds"),
        (lambda: {"a": [NoText()]}, "NoText has no text to give as an answer .RuntimeError: no repr here."),
    ],
)
def test_what_has_no_value_is_refused_as_an_answer(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        encode(make())


@pytest.mark.parametrize(
    ("make", "begins"),
    [
        (lambda: 10**6000, hex(10**6000)[:1000]),
        (lambda: {"a": [-(10**6000)]}, "<a dict that cannot be shown as text: Exceeds the limit"),
        (lambda: (10**6000,), "<a tuple that cannot be shown as text: Exceeds the limit"),
    ],
    ids=["int", "dict", "tuple"],
)
def test_a_number_too_long_for_python_to_write_out_has_a_text(make: Callable[[], Any], begins: str) -> None:
    back = there_and_back(make())
    assert kinds.same(back, make())
    assert as_text(back).startswith(begins)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        (["pandas.Period"], ["0x1", "__import__('os')"]),
        (["pandas.Period"], ["0x" + "f" * 40, "D"]),
        (["pandas.Index", ["steps", 0, [["objects", 0]], "D; 1"]], [[["a"]], [None]]),
        (["pandas.Interval", 0], [[1, 2], "up"]),
        (["pandas gap"], "nan"),
        (["masked array", 0, 0, 0], [[1], [2], 3]),
    ],
)
def test_p16_parts_of_frames_that_no_kernel_of_ours_sent_are_errors(shape: Any, data: Any) -> None:
    with pytest.raises(ProtocolError, match="not valid"):
        decode(typed(shape, data))


def test_what_holds_itself_is_text() -> None:
    value: list[Any] = [1]
    value.append(value)
    assert encode(value) == ("text", "list", b"[1, [...]]")


def test_a_table_that_the_host_could_not_read_is_text() -> None:
    assert encode(kinds.frame(), ("numpy",))[0] == "text"
    back = decode(Value(*encode({"t": kinds.frame()}, ("numpy",))))
    assert back["t"].type_name.endswith("DataFrame")


# Pictures


def test_a_figure_comes_back_as_a_picture() -> None:
    figure = matplotlib.figure.Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 3, 2])
    back = there_and_back({"plot": figure})["plot"]
    assert isinstance(back, Picture)
    assert (back.width, back.height, back.media_type) == (100, 50, "image/png")
    assert repr(back).startswith("<a picture of 100x50, image/png, ")


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "RGBA", "L", "1", "P", "I;16"])
def test_an_image_of_any_colours_comes_back_as_a_picture(mode: str) -> None:
    back = there_and_back(PIL.Image.new(mode, (3, 2)))
    assert (type(back), back.width, back.height) == (Picture, 3, 2)


@pytest.mark.parametrize(("mode", "size"), [("F", (3, 2)), ("L", (0, 0))])
def test_an_image_that_is_no_picture_comes_back_as_text(mode: str, size: tuple[int, int]) -> None:
    assert there_and_back(PIL.Image.new(mode, size)).startswith("<PIL.Image.Image image mode=")


async def test_a_picture_made_in_the_kernel(kernel: Session) -> None:
    back = await kernel.final("import matplotlib.pyplot as p; f, a = p.subplots(); a.plot([1, 2]); FINAL_VAR(f)")
    assert isinstance(back, Picture)
    assert back.width > 100


# As text


def test_an_answer_as_text() -> None:
    assert as_text("plain") == "plain"
    assert json.loads(as_text({"a": [1, "ü"]})) == {"a": [1, "ü"]}
    assert as_text({"a": (1,), "b": {2}}) == "{'a': (1,), 'b': {2}}"
    assert "name" in as_text(kinds.frame())
    assert len(as_text(np.zeros(10**6))) < 30_000

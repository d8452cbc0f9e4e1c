"""A context arrives with its type, exact to the byte, or is refused with its place (P17)."""

from __future__ import annotations

import array
import asyncio
import hashlib
import io
import os
import socket
import sqlite3
import tempfile
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset
import pytest

from rlm_jupyter.contexts import TEXT_PIECE, Named, Payload, prepare, read_path, read_text_file
from rlm_jupyter.contexts.payload import PIECE, SMALL, Writer
from rlm_jupyter.errors import KernelError, SettingsError
from rlm_jupyter.kernels.guest.digests import STRIPE
from tests import kinds
from tests.conformance.driving import Session, session

pytestmark = pytest.mark.anyio

FINGERPRINT = '''
import hashlib, io
def fingerprint(value):
    """Content and types, as one text: the same function runs on both sides."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    root = kind.partition(".")[0]
    if root == "pandas":
        series = type(value).__name__ == "Series"
        names = [value.name] if series else [repr(value.columns), value.columns.names]
        parts = [value] if series else [value.iloc[:, n] for n in range(value.shape[1])]
        body = [names, repr(value.index), value.index.names, [(str(p.dtype), repr(list(p))) for p in parts]]
    elif root == "numpy":
        body = [str(value.dtype), value.shape, value.tobytes()]
    elif root == "pyarrow":
        body = [str(value.schema), value.to_pylist()]
    elif root == "polars":
        one = hasattr(value, "dtype")
        body = [str(value.dtype if one else value.schema), repr(value.to_list() if one else value.rows())]
    elif isinstance(value, dict):
        body = [(repr(key), fingerprint(item)) for key, item in value.items()]
    elif isinstance(value, (set, frozenset)):
        body = sorted(map(fingerprint, value))
    elif isinstance(value, (list, tuple)):
        body = [fingerprint(item) for item in value]
    elif hasattr(value, "__dataclass_fields__"):
        kind, body = type(value).__name__, vars(value)
    else:
        body = value
    return hashlib.sha256((kind + repr(body)).encode("utf-8", "surrogatepass")).hexdigest()
'''
_here: dict[str, Any] = {}
exec(FINGERPRINT, _here)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def kernel() -> AsyncIterator[Session]:
    async with session() as opened:
        await opened.ok(FINGERPRINT)
        yield opened


def digest(form: str, data: bytes) -> str:
    """The digest by its definition: of a pickle, the even and the odd stripes each have one."""
    if form == "text":
        return hashlib.sha256(data).hexdigest()
    lanes = (b"".join(data[at : at + STRIPE] for at in range(lane * STRIPE, len(data), 2 * STRIPE)) for lane in (0, 1))
    return hashlib.sha256(b"".join(hashlib.sha256(lane).digest() for lane in lanes)).hexdigest()


@pytest.mark.parametrize("kind", kinds.IN)
async def test_p17_every_kind_arrives_with_its_type_and_digest(kernel: Session, kind: str) -> None:
    value = kinds.IN[kind]()
    context = prepare(value)
    assert context.payload.digest == digest(context.payload.form, context.payload.read())
    await kernel.kernel.load("context", context.payload)
    assert await kernel.out("print(fingerprint(context))") == _here["fingerprint"](value)


async def test_an_array_is_mapped_and_can_be_changed_without_harm(kernel: Session) -> None:
    array = np.arange(5_000_000)
    await kernel.load(array)
    code = "base = context\nwhile getattr(base, 'base', None) is not None: base = base.base\n"
    code += "print(type(getattr(base, 'obj', base)))"
    assert "mmap" in await kernel.out(code)
    assert await kernel.out("context[0] = 99; print(context[:2])") == "[99  1]"
    await kernel.load(array, "again")
    assert await kernel.out("print(again[0], context[0])") == "0 99"


async def test_what_is_done_to_the_object_later_does_not_change_the_context(kernel: Session) -> None:
    array = np.zeros(1_000_000)
    payload = prepare(array).payload
    array[:] = 7
    await kernel.kernel.load("context", payload)
    assert await kernel.out("print(context.sum())") == "0.0"


async def test_functions_and_classes_of_the_notebook_go_by_value(kernel: Session) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import math\nk = 3\ndef area(r): return math.floor(k * r * r)\nclass Box:\n    def open(self): return area(2)", space)
    await kernel.load({"f": space["area"], "box": space["Box"]()})
    assert await kernel.out("print(context['f'](2), context['box'].open())") == "12 12"


OF_A_SESSION = """
import dataclasses, enum, functools, typing
class Kind(enum.Enum):
    "what it is"
    NOTE = "n"
    LEASE = ("l", 2)
    MEMO = "n"
    @property
    def short(self): return self.name[:1]
    @classmethod
    def usual(cls): return Kind.LEASE
class Right(enum.IntFlag):
    READ = enum.auto()
    WRITE = enum.auto()
    ALL = READ | WRITE
class Word(str, enum.Enum):
    YES = "yes"
    def __str__(self): return "!" + self.value
class Body(enum.Enum):
    EARTH = (6, 2)
    def __init__(self, mass, radius): self.mass, self.radius = mass, radius
T = typing.TypeVar("T")
class Shelf(typing.Generic[T]):
    def __init__(self, of: T): self.of = of
@dataclasses.dataclass
class Doc:
    kind: Kind = Kind.NOTE
    rights: list = dataclasses.field(default_factory=lambda: [Right.READ])
    @functools.cached_property
    def said(self): return f"{self.kind.value}!"
given = {"docs": [Doc(), Doc(Kind.LEASE)], Kind.MEMO: Right.READ | Right.WRITE, "word": Word.YES, "body": Body.EARTH}
given["shelf"] = Shelf(3)
"""


async def test_enumerations_and_generic_classes_of_the_notebook_arrive_whole(kernel: Session) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(OF_A_SESSION, space)
    await kernel.load(space["given"])
    code = """
docs, word, body = context["docs"], context["word"], context["body"]
Kind, Right = type(docs[0].kind), type(context[docs[0].kind])
print(list(Kind), Kind.MEMO is Kind.NOTE, Kind.__doc__, docs[1].kind is Kind.LEASE, docs[1].kind.short)
print(Kind.usual(), Kind(("l", 2)))
print(context[Kind.MEMO] is Right.ALL, docs[0].rights, str(word), word == "yes", body.mass / body.radius, context["shelf"].of)
print(docs[0].said, docs[0])
"""
    assert (await kernel.out(code)).splitlines() == [
        "[<Kind.NOTE: 'n'>, <Kind.LEASE: ('l', 2)>] True what it is True L",
        "Kind.LEASE Kind.LEASE",
        "True [<Right.READ: 1>] !yes True 3.0 3",
        "n! Doc(kind=<Kind.NOTE: 'n'>, rights=[<Right.READ: 1>])",
    ]


async def test_another_python_refuses_code_objects_in_one_line(kernel: Session) -> None:
    payload = prepare({"f": lambda: 1}).payload
    data = payload.read().replace(b'"by": "dill", "python": "3.', b'"by": "dill", "python": "2.')
    other = Payload(payload.form, data, digest(payload.form, data))
    with pytest.raises(KernelError, match=r"which only Python 2\.\d+ can read, and the kernel runs 3\.\d+") as error:
        await kernel.kernel.load("context", other)
    assert "\n" not in str(error.value)


async def test_a_class_that_the_kernel_cannot_import_is_told(kernel: Session, tmp_path: Path) -> None:
    module = types.ModuleType("my_own_module")
    exec("class Thing: pass", module.__dict__)
    import sys

    sys.modules["my_own_module"] = module
    try:
        with pytest.raises(KernelError, match="the kernel's Python cannot import my_own_module") as error:
            await kernel.load([module.Thing()])
    finally:
        del sys.modules["my_own_module"]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("at", [0, STRIPE, 2 * STRIPE + 1, -1])
@pytest.mark.parametrize(
    "value", ["x" * 5_000_000, list(range(10)), np.zeros(5 * STRIPE, np.uint8)], ids=lambda value: type(value).__name__
)
async def test_p17_a_changed_byte_is_noticed(kernel: Session, value: object, at: int) -> None:
    payload = prepare(value).payload
    data = bytearray(payload.read())
    data[at % len(data)] ^= 1
    with pytest.raises(KernelError, match="another digest"):
        await kernel.kernel.load("context", Payload(payload.form, bytes(data), payload.digest))


@pytest.mark.parametrize("form", ["text", "pickle"])
@pytest.mark.parametrize("first", [0, 1, SMALL - 1, SMALL, SMALL + 1, PIECE + 1])
def test_what_is_written_in_pieces_of_any_size_is_there_whole_and_in_order(first: int, form: str) -> None:
    whole = np.random.default_rng(first).bytes(4 * PIECE)
    writer, at = Writer(form), 0
    for size in (first, 3, SMALL, 70_000, 2 * SMALL + 7, 0, SMALL - 3, PIECE, 5):
        piece = bytearray(whole[at : at + size])
        assert writer.write(piece) == size
        piece[:] = bytes(size)  # as a pickler uses its memory again
        at += size
    payload = writer.payload()
    assert (payload.size, payload.digest) == (at, digest(form, whole[:at]))
    assert payload.read() == whole[:at]
    assert b"".join(payload.pieces(100_000)) == whole[:at]


@pytest.mark.parametrize("places", [2 * TEXT_PIECE, SMALL, 5 * SMALL])
def test_a_text_is_encoded_alike_in_one_piece_and_in_many(places: int) -> None:
    text = ("\ud83d\ude00é漢😀\x00a\r\n" * (places // 8 + 1))[:places]
    data = text.encode("utf-8", "surrogatepass")
    payload = prepare(text).payload
    assert (payload.read(), payload.digest) == (data, hashlib.sha256(data).hexdigest())


def test_a_large_context_is_in_an_unnamed_file_and_linked_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    text = "0123456789" * (SMALL // 5)
    payload = prepare(text).payload
    assert list(tmp_path.iterdir()) == []
    payload.place(str(tmp_path / "one"))
    payload.place(str(tmp_path / "two"))
    assert (tmp_path / "one").read_text() == text
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "one").stat().st_ino == (tmp_path / "two").stat().st_ino


def test_the_file_of_a_large_context_is_opened_anew_by_whoever_holds_it() -> None:
    text = "0123456789" * (SMALL // 5)
    large = prepare(text).payload.file()
    assert large is not None
    with open(large, "rb") as one, open(large, "rb") as other:
        assert one.read(7) == b"0123456"
        assert other.read() == text.encode(), "each reads from the beginning"
    assert prepare("small").payload.file() is None


def test_no_room_for_the_context_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="TMPDIR"):
        _fill(Writer("text"))


def _fill(writer: Writer) -> None:
    import resource
    import signal

    old, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * SMALL, old[1]))
    try:
        for _ in range(8):
            writer.write(bytes(SMALL))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)


def test_a_long_preparation_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    writer = Writer("text", told.append)
    writer._told -= 10  # as if it had begun long ago
    writer.write(bytes(3 * SMALL))
    assert told == [3 * SMALL]


def test_a_slice_of_an_arrow_table_takes_along_only_itself() -> None:
    table = pa.table({"a": np.arange(1_000_000)})
    assert prepare(table).payload.size > 8_000_000
    assert prepare(table.slice(10, 5)).payload.size < 10_000
    assert prepare([table["a"].slice(10, 5)]).payload.size < 10_000


class Held:
    def __init__(self, part: Any) -> None:
        self.part = part


class Closed:
    """Nobody can name its parts from outside."""

    __slots__ = ("_part",)

    def __init__(self, part: Any) -> None:
        self._part = part

    def __reduce__(self) -> Any:
        return Closed, (self._part,)


class Failing:
    def __reduce__(self) -> Any:
        raise ValueError("not me\nnever")


async def _nothing() -> None: ...


def _model() -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import pydantic\nclass Clause(pydantic.BaseModel):\n    name: str\nmade = Clause(name='x')", space)
    return space["made"]


def _archive() -> Any:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    file.seek(0)
    return np.load(file)


def _ring() -> Any:
    """Give an object that leads back to itself before it leads to what cannot be sent."""
    inner = Held(None)
    outer = Held(inner)
    inner.__dict__ = {"above": outer, "part": socket.socket()}
    return outer


def _odd_class() -> Any:
    """Give an object whose class dill can write only by its name: it holds one of its own kind."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Odd:\n    pass\nOdd.first = Odd()\nmade = Odd()", space)
    return space["made"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: (n for n in range(3)), "docs is a generator, which can be read only once; make a list of it"),
        (lambda: iter([1]), "docs is a list_iterator, which can be read only once"),
        (lambda: [1, map(str, [2])], "docs[1] is a map, which"),
        (lambda: {"a": {"b": [zip([1], [2], strict=True)]}}, "docs['a']['b'][0] is a zip"),
        (lambda: open(os.devnull), "docs is an open file"),  # noqa: SIM115
        (lambda: {"a": Held(sqlite3.connect(":memory:"))}, "docs['a'].part, a Connection, cannot be sent"),
        (lambda: [socket.socket()], "docs[0], a socket, cannot be sent"),
        (lambda: Held([Failing()]), "docs.part[0], a Failing, cannot be sent (ValueError: not me never)"),
        (
            lambda: polars.LazyFrame({"a": [1]}),
            "docs is a polars LazyFrame, which is not data yet; docs = docs.collect()",
        ),
        (lambda: pd.DataFrame({"a": [1]}).groupby("a"), "docs is a pandas DataFrameGroupBy"),
        (lambda: [enumerate("ab")], "docs[0] is an enumerate, which can be read only once; make a list of it: list(docs[0])"),
        (lambda: memoryview(b"abc"), "docs is a memoryview of another object; pass a copy of it: bytes(docs)"),
        (lambda: {"m": io.StringIO("x")}, "docs['m'] is an open file; pass what it holds, as in text = docs['m'].read()"),
        (
            lambda: pa.RecordBatchReader.from_batches(pa.schema([]), []),
            "docs is a pyarrow RecordBatchReader, which is not data yet; docs = docs.read_all()",
        ),
        (
            lambda: pyarrow.dataset.dataset(pa.table({"a": [1]})),
            "InMemoryDataset, which is not data yet; docs = docs.to_table()",
        ),
        (
            lambda: pd.read_csv(io.StringIO("a\n1\n"), chunksize=1),
            "docs is a pandas TextFileReader, which is not data yet; docs = pandas.concat(docs)",
        ),
        (_archive, "docs is a numpy NpzFile, which is not data yet; docs = dict(docs)"),
        (_ring, "docs.part.part, a socket, cannot be sent"),
        (lambda: [Closed(map(str, [1]))], "docs[0] holds something that is a map, which can be read only once"),
        (lambda: [_model()], "docs[0] is a pydantic model of a class that only this session has; pass docs[0].model_dump()"),
        (lambda: {"t": _odd_class()}, "docs['t'], an Odd, cannot be sent (PicklingWarning: Cannot "),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_sent_is_refused_with_the_part_that_fails(make: Any, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        prepare(Named({"docs": make()}))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refused_generator_is_not_used_up() -> None:
    lines = (n for n in range(3))
    with pytest.raises(SettingsError):
        prepare({"a": lines})
    assert list(lines) == [0, 1, 2]


def test_a_coroutine_and_a_deep_nest_are_refused() -> None:
    coroutine = _nothing()
    with pytest.raises(SettingsError, match="coroutine"):
        prepare([coroutine])
    asyncio.run(coroutine)
    nest: list[Any] = []
    for _ in range(200_000):
        nest = [nest]
    with pytest.raises(SettingsError, match="nested too deeply"):
        prepare(nest)


def test_p17_a_context_above_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:

    writer = Writer("text")
    writer.size = 8 * 2**30 - 5
    with pytest.raises(SettingsError, match=r"more than 8,589,934,592 bytes, which is the cap"):
        writer.write(b"123456")


# Descriptions


def test_a_description_tells_type_and_size_and_never_the_whole() -> None:
    secret = "the vault opens at midnight with 4711"
    for value in (secret, [secret], {"note": secret}, [secret] * 3, secret.encode(), (secret,), {secret}, Held(secret)):
        context = prepare(value)
        assert type(value).__name__ in context.description
        assert secret not in context.description
        assert "4711" not in context.description
    long = prepare("line one\n" * 10_000)
    assert "90,000 characters in 10,001 lines" in long.description
    assert len(long.description) < 1_000
    assert "4711" not in prepare(4711).description


def test_a_table_is_told_by_shape_columns_types_and_at_most_a_quarter_of_its_rows() -> None:
    table = pd.DataFrame({"city": [f"town-{n}" for n in range(12)], "n": range(12)})
    for value in (table, pa.table(table), polars.DataFrame({"city": list(table["city"]), "n": list(table["n"])})):
        told = prepare(value).description
        assert "of 12 rows x 2 columns" in told
        assert "city (" in told
        assert "n (" in told
        assert "int64" in told.lower()
        assert "town-2" in told
        assert "town-3" not in told
    assert "town" not in prepare(table[:3]).description
    told = prepare(Towns(table)).description
    assert "a Towns of 12 rows x 2 columns" in told.replace("tests.", "")
    assert "town-2" in told
    assert "shape 2 x 50, dtype float64, 800 bytes" in prepare(np.zeros((2, 50))).description


class Towns(pd.DataFrame):
    """A kind of DataFrame, as packages for maps have theirs."""


def test_what_has_a_shape_or_a_length_is_told_by_it() -> None:
    assert "of shape 2, dtype Int64" in prepare(pd.array([1, None], dtype="Int64")).description
    assert "an array.array of 3 items" in prepare(array.array("d", [1, 2, 3])).description
    assert "of 1 item" in prepare(pa.array(["a"])).description


def test_a_description_stays_small_whatever_it_describes() -> None:
    wide = pd.DataFrame({f"column {n} " + "x" * 1000: ["long " * 1000] * 40 for n in range(500)})
    for value in ({"k" * 10_000 + str(n): n for n in range(50)}, wide, {"a": wide}, [10**100_000] * 9, [wide] * 3):
        assert len(prepare(value).description) < 10_000


def test_several_contexts_are_a_dict_by_name_each_described() -> None:
    context = prepare(Named({"sales": kinds.frame(), "notes": "text " * 100}))
    assert "a dict of 2 inputs, by name" in context.description
    assert "context['sales']: a pandas.DataFrame of 4 rows x 7 columns" in context.description
    assert "context['notes']: a str of 500 characters" in context.description
    assert (context.type_name, context.size) == ("dict", 2)


# Paths


def test_a_file_is_read_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("ü\r\nend\n".encode())
    assert read_text_file(str(file)) == "ü\r\nend\n"
    assert prepare(read_path(str(file))).type_name == "str"


def test_a_folder_and_a_glob_are_dicts_of_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / ".git").mkdir()
    for name, data in {
        "a.txt": b"one",
        "sub/b.md": b"two\r\n",
        "c.png": b"\x89PNG\r\n\x1a\n\x00",
        ".hidden": b"no",
        ".git/x": b"no",
    }.items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "outside.txt")
    os.mkfifo(tmp_path / "in" / "pipe")
    read = read_path(str(tmp_path / "in"))
    assert read.value == {"a.txt": "one", "sub/b.md": "two\r\n"}
    assert "1 file that holds no text was not read: c.png (9 bytes)" in prepare(read).description
    assert "texts of 2 files" in prepare(read).description
    (tmp_path / "in" / "sub" / "loop").symlink_to("..")
    assert read_path(str(tmp_path / "in" / "**" / "*.md")).value == {"sub/b.md": "two\r\n"}
    (tmp_path / "notes [old]").mkdir()
    (tmp_path / "notes [old]" / "[1].txt").write_text("first")
    assert read_path(str(tmp_path / "notes [old]" / "*.txt")).value == {"[1].txt": "first"}


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.bin", b"\xffa", "not UTF-8 text"),
        ("a.bin", b"ELF\x00\x01", "binary"),
        ("a.pdf", b"%PDF-1.7 \x00", "a PDF, not text; type from pypdf import PdfReader"),
        ("a.xlsx", b"PK\x03\x04\x00", "an Excel file, not text; type import pandas; text = pandas.read_excel("),
        ("a.parquet", b"PAR1\x00", "a Parquet file, not text; type import pandas; text = pandas.read_parquet("),
        ("a.dat", b"PAR1\x00", "a Parquet file"),
        ("a.docx", b"PK\x03\x04\x00", "a Word file"),
        ("a.gz", b"\x1f\x8b\x08", "gzip.open"),
        ("a.tar.gz", b"\x1f\x8b\x08", "an archive, not text; unpack it"),
        ("a.tgz", b"\x1f\x8b\x08", "an archive, not text; unpack it"),
        ("a.npz", b"PK\x03\x04\x00", "an archive of NumPy's, not text; type import numpy; text = dict(numpy.load("),
        ("a.ods", b"PK\x03\x04\x00", "an Excel file, not text; type import pandas; text = pandas.read_excel("),
        ("a.pdf", b"\n%PDF-1.7 \x00", "a PDF, not text; type from pypdf import PdfReader"),
        ("a.zip", b"PK\x05\x06\x00", "an archive, not text; unpack it, and name the folder"),
        ("a.xz", b"\xfd7zXZ\x00\x00", "lzma.open("),
        ("a.db", b"SQLite format 3\x00", "an SQLite database, not text; type import pandas, sqlite3; text = pandas.read_sql("),
        ("a.pkl", b"\x80\x05\x95\x00", "a pickle, not text; type import pandas; text = pandas.read_pickle("),
        ("a.jpeg", b"\xff\xd8\xff\xe0\x00", "a picture, not text; type from PIL import Image; text = Image.open("),
        ("a.txt", "hi".encode("utf-16"), "encoding='utf-16').read()"),
        ("a.txt", "hi".encode("utf-32"), "encoding='utf-32').read()"),
        ("a.txt", "h\u00e9".encode("latin-1"), "encoding='latin-1').read()"),
    ],
)
def test_a_file_that_is_no_text_is_refused_with_what_to_type(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(SettingsError) as error:
        read_path(str(file))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_text_and_missing_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no readable text in it \(no files\)"):
        read_path(str(tmp_path))
    (tmp_path / "x.bin").write_bytes(b"\x00")
    with pytest.raises(SettingsError, match=r"no readable text in it \(1 file, none of them text\)"):
        read_path(str(tmp_path))
    with pytest.raises(SettingsError, match="no such file"):
        read_path(str(tmp_path / "none.txt"))
    with pytest.raises(SettingsError, match="no file matches"):
        read_path(str(tmp_path / "*.md"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="not a file with text"):
        read_path(str(tmp_path / "pipe"))


def test_what_is_not_there_is_told_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "astray").symlink_to("nowhere")
    with pytest.raises(SettingsError, match=r"no such file; did you mean .*notes\.txt\?"):
        read_path(str(tmp_path / "notes.tx"))
    with pytest.raises(SettingsError, match="a link to nowhere, where nothing is"):
        read_path(str(tmp_path / "astray"))
    with pytest.raises(SettingsError, match="nobody of that name has a home folder here"):
        read_path("~nobody-of-that-name/notes.txt")
    with pytest.raises(SettingsError, match="File name too long"):
        read_text_file("x" * 5000)


def test_a_path_is_not_taken_for_what_it_leads_to() -> None:
    with pytest.raises(SettingsError, match=r"page is a path, .*; type --context \./notes, or pass page\.read_text\(\)"):
        prepare(Named({"page": Path("notes")}))


class Shy(list[int]):
    """A list that does not tell how long it is."""

    def __len__(self) -> int:
        raise RuntimeError("no length")


def test_an_object_that_cannot_be_looked_at_is_a_context_too() -> None:
    context = prepare(Named({"shy": Shy([1])}))
    assert (context.size, context.unit) == (1, "value")
    assert context.description == "`context` is a tests.Shy, which cannot be looked at from outside (RuntimeError)."

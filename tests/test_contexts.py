"""A context arrives with its type and digest, or is refused with its place."""

from __future__ import annotations

import collections
import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest

from rlm_jupyter.contexts import prepare, read_text_file
from rlm_jupyter.errors import SettingsError


@pytest.mark.parametrize("text", ["", "plain", "ü€😀", "nul \x00 and \ud800 surrogate", "a\r\nb\n", '"""', "x" * 100_000])
def test_text_is_exact(text: str) -> None:
    context = prepare(text)
    assert context.payload.data.decode("utf-8", "surrogatepass") == text
    assert context.payload.digest == hashlib.sha256(context.payload.data).hexdigest()
    assert (context.type_name, context.size, context.payload.form) == ("str", len(text), "text")


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        ["a", 1, 2.5, None, True, b"bytes", ("t", "u")],
        {"a": {"b": [1, {2, 3}]}, 4: "four", (1, 2): "pair", None: 0},
        [collections.OrderedDict(a=1), collections.Counter("aab"), collections.defaultdict(list, x=[1])],
        {"big": 10**400, "inf": float("inf"), "surrogate": "\udfff"},
    ],
)
def test_lists_and_dicts_are_exact(value: Any) -> None:
    context = prepare(value)
    assert pickle.loads(context.payload.data) == value
    assert context.type_name == type(value).__name__


def test_a_context_that_holds_itself_is_sent_as_it_is() -> None:
    value: list[Any] = [1]
    value.append(value)
    back = pickle.loads(prepare(value).payload.data)
    assert back[1] is back


class Custom:
    pass


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (42, "docs is a int"),
        (None, "docs is a NoneType"),
        (b"raw", "docs is a bytes"),
        ({1, 2}, "docs is a set"),
        (Custom(), "Custom"),
        (iter([1]), "list_iterator"),
        ([1, Custom()], "docs[1] is a"),
        ({"a": {"b": [print]}}, "docs['a']['b'][0] is a"),
        ({Custom: 1}, "a key of docs"),
    ],
)
def test_other_types_are_refused_with_their_place(value: Any, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        prepare(value, "docs")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_frame_is_refused_with_what_to_type() -> None:
    frame = type("DataFrame", (), {"__module__": "pandas.core.frame"})()
    with pytest.raises(SettingsError, match=r"text = sales\.to_csv\(\), and use --context text"):
        prepare(frame, "sales")


def test_a_description_tells_type_and_size_and_never_the_whole() -> None:
    secret = "the vault opens at midnight with 4711"
    for value in (secret, [secret], {"note": secret}, [secret] * 3):
        context = prepare(value)
        assert type(value).__name__ in context.description
        assert secret not in context.description
        assert "4711" not in context.description
    long = prepare("line one\n" * 10_000)
    assert "90,000 characters in 10,001 lines" in long.description
    assert len(long.description) < 1_000


def test_a_description_stays_small_whatever_the_keys() -> None:
    assert len(prepare({"k" * 10_000 + str(n): n for n in range(50)}).description) < 2_000


def test_a_file_is_read_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("ü\r\nend\n".encode())
    assert read_text_file(str(file)) == "ü\r\nend\n"


@pytest.mark.parametrize(("data", "told"), [(b"\xff\xfe\x00a", "not UTF-8 text"), (b"ELF\x00\x01", "binary")])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(data)
    with pytest.raises(SettingsError, match=told):
        read_text_file(str(file))


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a folder"):
        read_text_file(str(tmp_path))
    with pytest.raises(SettingsError, match="no such file"):
        read_text_file(str(tmp_path / "none.txt"))

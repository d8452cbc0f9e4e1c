"""Values come back by their form alone."""

from __future__ import annotations

import json

import pytest

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.values import Value, as_text, decode


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, [2]], {"a": {"__type__": "pickle"}}, {"form": "json"}])
def test_json_values_are_equal(value: object) -> None:
    back = decode(Value("json", "anything", json.dumps(value).encode()))
    assert back == value
    assert type(back) is type(value)


def test_text_keeps_surrogates() -> None:
    assert decode(Value("text", "str", "a\ud800b".encode("utf-8", "surrogatepass"))) == "a\ud800b"


@pytest.mark.parametrize(
    "value",
    [
        Value("json", "x", b"{"),
        Value("json", "x", b"[" * 100_000),
        Value("text", "x", b"\xff"),
        Value("pickle", "x", b"\x80\x04N."),
    ],
)
def test_anything_else_is_a_protocol_error(value: Value) -> None:
    with pytest.raises(ProtocolError):
        decode(value)


def test_an_answer_as_text() -> None:
    assert as_text("plain") == "plain"
    assert json.loads(as_text({"a": [1, "ü"]})) == {"a": [1, "ü"]}

"""Events keep their shape: what is written can be read back as it was, and nothing else can."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_jupyter import events
from rlm_jupyter.events import Event, Usage, clip, from_dict
from tests.payloads import PAYLOADS, run_of

KINDS = sorted({type(event) for event in run_of("x")}, key=lambda kind: kind.__name__)
TEXT = st.text(alphabet=st.characters(categories=None), max_size=50)
NUMBER = st.integers(0, 10**12)
SECONDS = st.floats(0, 1e9)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: NUMBER,
    bool: st.booleans(),
    float: SECONDS,
    float | None: st.none() | SECONDS,
    Usage: st.builds(Usage, NUMBER, NUMBER, NUMBER, st.booleans()),
    dict[str, Any]: st.dictionaries(TEXT, st.none() | st.booleans() | NUMBER | TEXT | st.lists(TEXT)),
}


def any_event() -> st.SearchStrategy[Event]:
    kinds = [
        st.builds(kind, **{field.name: FIELDS[get_type_hints(kind)[field.name]] for field in dataclasses.fields(kind)})
        for kind in KINDS
    ]
    return st.one_of(kinds)


@given(any_event())
def test_every_event_comes_back_from_json_as_it_was(event: Event) -> None:
    line = event.to_json()
    assert "\n" not in line
    line.encode("ascii")
    back = from_dict(json.loads(line))
    assert type(back) is type(event)
    assert back == event


def test_no_kind_of_event_is_left_out_here() -> None:
    assert {kind.__name__ for kind in KINDS} == {kind.__name__ for kind in Event.__subclasses__()}


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_come_back_as_they_were(name: str) -> None:
    for event in run_of(PAYLOADS[name]):
        assert from_dict(json.loads(event.to_json())) == event


def test_events_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        events.Notice(text="x").text = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"kind": "Nonsense"}, "'Nonsense'"),
        ({"kind": ["Notice"]}, "unknown kind"),
        ({"kind": "Event"}, "'Event'"),
        ({"colour": "red"}, "unknown fields: colour"),
    ],
)
def test_what_is_not_an_event_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    data = events.Notice(text="x").to_dict() | change
    with pytest.raises(ValueError, match=told):
        from_dict(data)


@pytest.mark.parametrize("event", run_of("x"), ids=lambda event: type(event).__name__)
def test_a_missing_field_is_named(event: Event) -> None:
    for field in dataclasses.fields(event):
        data = event.to_dict()
        del data[field.name]
        with pytest.raises(ValueError, match=f"lacks fields: {field.name}"):
            from_dict(data)


@given(TEXT, st.integers(2, 20))
def test_a_short_text_is_not_clipped(text: str, more: int) -> None:
    assert clip(text, len(text) + more) == text


@given(st.text(min_size=101, max_size=400), st.integers(10, 100))
def test_a_long_text_keeps_its_ends_and_says_what_is_left_out(text: str, cap: int) -> None:
    clipped = clip(text, cap)
    half = cap // 2
    assert clipped.startswith(text[:half] + "\n[... ")
    assert clipped.endswith(" characters left out ...]\n" + text[-half:])
    left = int(clipped[half + 6 :].split(" ")[0].replace(",", ""))
    assert left + 2 * half == len(text)


def test_usage_adds_up_and_an_estimate_stays_one() -> None:
    total = Usage(1, 2, 3) + Usage(10, 20, 30, estimated=True) + Usage()
    assert total == Usage(11, 22, 33, estimated=True)
    assert total.total_tokens == 33


@pytest.mark.parametrize("line", ["5", "null", '"text"', "[]", '{"kind": "Notice", "version": 1}'])
def test_what_is_no_event_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"event|Notice"):
        from_dict(json.loads(line))


def test_a_field_of_another_type_is_a_value_error() -> None:
    data = events.Notice(text="x").to_dict()
    with pytest.raises(ValueError, match="text cannot be 5"):
        from_dict(data | {"text": 5})
    ended = events.RunEnded(
        status="s", limit="", answer="", answer_type="", error="", calls=1, usage=events.Usage(), cost=None, seconds=1.0
    ).to_dict()
    with pytest.raises(ValueError, match="Usage lacks fields"):
        from_dict(ended | {"usage": {}})

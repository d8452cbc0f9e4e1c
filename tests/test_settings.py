"""Settings are checked once, and round-trip through JSON."""

from __future__ import annotations

from typing import Any

import pytest

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.names import check_variable_name
from rlm_jupyter.settings import RunSettings, did_you_mean


def test_settings_round_trip_through_json() -> None:
    settings = RunSettings(
        model="m",
        sub_model="s",
        max_cost=None,
        max_tokens=5,
        allowed_models=("a", "b"),
        prices={"m": (1.0, 2.0)},
        sampling={"temperature": 0.2, "stop": ["x"]},
        setup_code="import os",
    )
    assert RunSettings.from_json(settings.to_json()) == settings
    sandbox = RunSettings(
        model="m", environment="modal", image="<mine>", objects={"<mine>": object()}, cpu=(0.5, 2.0), memory=(128, 4096),
        network=("pypi.org",), secrets=("one", "<secret>"), volumes={"/data": "data"}, region=("us", "eu"), sandbox_timeout=60,
    )  # fmt: skip
    assert RunSettings.from_json(sandbox.to_json()) == sandbox
    assert RunSettings.from_dict(sandbox.to_dict(), sandbox.objects).objects == sandbox.objects
    assert "object" not in sandbox.to_json()


def test_an_unknown_setting_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError, match="did you mean max_calls"):
        RunSettings.from_dict({"model": "m", "max_call": 3})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": ""}, "--model demo"),
        ({"environment": "lokal"}, "did you mean local"),
        ({"environment": "dokcer"}, "no environment is named 'dokcer'; did you mean docker"),
        ({"max_calls": 0}, "--max-calls must be a whole number above 0"),
        ({"max_calls": 1.5}, "--max-calls"),
        ({"max_iterations": -1}, "--max-iterations"),
        ({"max_iterations": True}, "--max-iterations"),
        ({"max_cost": 0.0}, "--max-cost must be a number above 0"),
        ({"max_cost": float("nan")}, "--max-cost"),
        ({"timeout": float("inf")}, "--timeout"),
        ({"timeout": -3}, "--timeout"),
        ({"max_concurrency": 0}, "--max-concurrency"),
        ({"max_output_tokens": 0}, "--max-output-tokens"),
        ({"max_tokens": 0}, "--max-tokens"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_consecutive_errors": 0}, "--max-consecutive-errors must be a whole number above 0"),
        ({"max_consecutive_errors": 1.5}, "--max-consecutive-errors"),
        ({"max_depth": 17}, "--max-depth 17 makes no sense: at most 16"),
        ({"max_concurrency": 10**6}, "--max-concurrency 1,000,000 makes no sense"),
        ({"timeout": 1e9}, "--timeout"),
        ({"max_cost": 1e12}, "--max-cost"),
        ({"timeout": None}, "--timeout must be a number above 0, not None"),
        ({"max_cost": 10**400}, "--max-cost of so many digits makes no sense: at most 1,000,000"),
        ({"max_tokens": 10**5000}, "--max-tokens of so many digits"),
        ({"max_calls": -(10**5000)}, "--max-calls must be a whole number above 0, not a number of so many digits"),
        ({"prices": "m=1,2"}, "prices must be a dict, not 'm=1,2'; give them as"),
        ({"prices": {1: (1.0, 2.0)}}, "prices: 1 is no model's name"),
        ({"prices": {"m": (10**400, 2.0)}}, "prices: that of m"),
        ({"prices": {"m": (-1.0, 2.0)}}, "prices: that of m must be two numbers, dollars per million tokens in and out"),
        ({"prices": {"m": (float("nan"), 2.0)}}, "prices: that of m"),
        ({"prices": {"m": (1.0, float("inf"))}}, "prices: that of m"),
        ({"prices": {"m": 3.0}}, "prices: that of m"),
        ({"prices": {"m": ("1", "2")}}, "prices: that of m"),
        ({"prices": {"m": (1.0, 2e6)}}, "prices: that of m"),
        ({"base_url": "localhost:8000"}, "--base-url must begin with http"),
        ({"model": 5}, "model must be a text, not 5"),
        ({"sub_model": ["m"]}, "sub_model must be a text, not ['m']"),
        ({"setup_code": b"import json"}, "setup_code must be a text, not b'import json'"),
        ({"kernel": 3}, "kernel must be a text, not 3"),
        ({"allowed_models": ("m", 3)}, 'allowed_models must be names of models, such as ["gpt-5-mini"], not 3'),
        ({"max_retries": 101}, "max_retries must be a whole number from 0 to 100, not 101"),
        ({"max_retries": True}, "max_retries must be a whole number from 0 to 100, not True"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_option(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as error:
        RunSettings(**{"model": "m", **fields})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["answer", "_mine", "résumé", "x1", "_i_am_mine"])
def test_plain_names_may_be_written(name: str) -> None:
    assert check_variable_name(name, {"In", "Out"}) == name


@pytest.mark.parametrize(
    "name", ["1x", "a.b", "a b", "", "class", "In", "_", "__", "___", "_i", "_ii3", "_12", "_oh", "__name__", "a-b"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="--out"):
        check_variable_name(name, {"In", "Out", "_oh"})


def test_a_name_is_taken_as_python_reads_it() -> None:
    assert check_variable_name("re\u0301sume\u0301") == "r\xe9sum\xe9"
    assert check_variable_name("\ufb01t") == "fit"
    with pytest.raises(SettingsError, match="not a variable name"):
        check_variable_name("\uff43lass")  # reads as `class`


def test_the_owner_of_a_name_is_told() -> None:
    with pytest.raises(SettingsError, match="--out print: this name belongs to Python; choose another"):
        check_variable_name("print", {"print", "In"})
    with pytest.raises(SettingsError, match="--out In: this name belongs to IPython"):
        check_variable_name("In", {"print", "In"})


def test_suggestions_list_what_is_known_where_nothing_is_close() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"

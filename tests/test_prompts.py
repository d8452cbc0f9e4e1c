"""What the LM is told: frozen, bounded, exact about what was left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlm_jupyter import prompts
from rlm_jupyter.kernels.cell import Output
from rlm_jupyter.prompts import Left, Ran, first_message, outputs_message, shorten, turn_line

LEFT = Left(iteration=2, iterations=30, calls=990, seconds=1700.4, dollars=1.5)
FROZEN = "7f17ff7ddbbf2580b99d48c98b86b820ab4b33bcf5d8bacfb8e466a742397941"


def test_the_system_prompt_is_frozen() -> None:
    """A change of the prompt is a decision: look at what it does to runs, then freeze the new digest here."""
    assert hashlib.sha256(prompts.SYSTEM.encode()).hexdigest() == FROZEN


def test_the_system_prompt_names_every_helper() -> None:
    for name in ("context", "llm_query(", "llm_query_batched(", "FINAL_VAR(", "SHOW_VARS("):
        assert name in prompts.SYSTEM
    assert "rlm_query" not in prompts.SYSTEM


def test_the_system_prompt_tells_which_answers_keep_their_type() -> None:
    finish = prompts.SYSTEM.partition("\nHow to finish")[2].partition("\nLimits")[0]
    for kind in ("numbers", "dates", "bytes", "nested lists and dicts", "arrays", "DataFrames", "pictures"):
        assert kind in finish
    assert "Anything else arrives as text" in finish


def test_the_system_prompt_teaches_in_this_order() -> None:
    """What `context` is, the helpers, how to finish, the limits, truncation, how to size sub-calls (docs/prompts.md)."""
    marks = ("`context`: the input", "Helpers", "How to finish", "Limits", "Truncation", "How to size sub-calls", "How to work")
    places = [prompts.SYSTEM.index(f"\n{mark}") for mark in marks]
    assert places == sorted(places)


def test_the_prompts_page_tells_each_part_and_the_frozen_digest() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "prompts.md").read_text(encoding="utf-8")
    assert FROZEN[:12] in page
    for text in (prompts.NO_NEXT_TURN, prompts.NUDGES[0].split(".")[0]):
        assert text in " ".join(page.split())


def test_the_first_message_holds_question_description_and_caps() -> None:
    text = first_message("Who?", "`context` is a str", LEFT)
    assert "Who?" in text
    assert "`context` is a str" in text
    assert "Turn 2 of 30. Left: 990 LM requests, 1,700 s, $1.50." in text


def test_without_a_question_the_context_is_the_task() -> None:
    assert "in `context` itself" in first_message(None, "d", LEFT)


def test_the_last_turn_is_told() -> None:
    last = Left(iteration=30, iterations=30, calls=1, seconds=1, tokens=7)
    assert turn_line(last).endswith(prompts.NO_NEXT_TURN)
    assert "7 tokens" in turn_line(last)


def test_results_and_tracebacks_stand_on_lines_of_their_own() -> None:
    ran = Ran((Output("stdout", "a"), Output("stdout", "b\n"), Output("result", "42"), Output("error", "Traceback")), "error")
    text = outputs_message([ran], 2, LEFT)
    assert "ab\n42\nTraceback" in text
    assert "Output of block 1 (ended with an error):" in text
    assert "2 more block(s)" in text


def test_nothing_printed_is_told() -> None:
    assert "nothing was printed" in outputs_message([Ran((), "ok")], 0, LEFT)


def test_long_output_keeps_head_and_tail_and_says_how_much_was_left_out() -> None:
    text = "H" * 50_000 + "M" * 50_000 + "T" * 50_000
    short = shorten(text, 20_000)
    assert short == "H" * 10_000 + "\n[... left out here: 130,000 characters ...]\n" + "T" * 10_000
    assert "130,000 characters and 7 bytes that were not kept" in shorten(text, 20_000, 7)
    assert shorten("short", 20_000) == "short"


def test_a_turn_is_bounded_however_many_blocks_ran() -> None:
    cells = [Ran((Output("stdout", "x" * 100_000),), "ok")] * 20
    assert len(outputs_message(cells, 0, LEFT)) < prompts.OUTPUT_FOR_LM + 20 * 200 + 500


def test_what_limits_the_code_is_told_where_something_does() -> None:
    told = first_message("Who?", "`context` is a str", LEFT, "in a container with no network")
    assert "\n\nYour code runs in a container with no network.\n\nTurn 2 of 30." in told
    assert "Your code runs" not in first_message("Who?", "`context` is a str", LEFT)

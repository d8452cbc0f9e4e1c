"""Replies of an LM are read as DESIGN 4.8 says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_jupyter.replies import read


def test_repl_and_python_fences_both_run_in_order() -> None:
    reply = read("First\n```repl\na = 1\n```\nthen\n```python\nb = 2\n```\n")
    assert reply.blocks == ("a = 1", "b = 2")
    assert reply.prose == "First\nthen"


@pytest.mark.parametrize("language", ["", "json", "text", "bash", "output", "pythonic"])
def test_other_fences_do_not_run(language: str) -> None:
    assert read(f"```{language}\nprint(1)\n```").blocks == ()


def test_an_invented_output_after_the_code_is_only_prose() -> None:
    reply = read("```repl\nprint(1)\n```\nOutput:\n```\n1\n```\nFINAL(1)")
    assert reply.blocks == ("print(1)",)
    assert reply.final_text is None


def test_an_unclosed_fence_runs_when_the_reply_is_complete() -> None:
    assert read("```repl\nprint(1)").blocks == ("print(1)",)


def test_an_unclosed_fence_is_refused_when_the_reply_was_cut() -> None:
    reply = read("```repl\na = 1\n```\n```repl\nprint(", truncated=True)
    assert reply.blocks == ("a = 1",)
    assert reply.cut


def test_backticks_within_a_string_close_nothing() -> None:
    code = 'prompt = """Answer as\n```\n{}\n```\n"""\nprint(prompt)'
    assert read(f"```repl\n{code}\n```\nDone.").blocks == (code,)


def test_a_longer_fence_may_hold_a_shorter_one() -> None:
    assert read("````python\nx = '''\n```\n'''\n````").blocks == ("x = '''\n```\n'''",)


def test_an_indented_fence_is_dedented() -> None:
    assert read("1. Look:\n   ```repl\n   if 1:\n       print(2)\n   ```").blocks == ("if 1:\n    print(2)",)


def test_code_that_is_no_python_still_runs_and_fails_there() -> None:
    assert read("```repl\n!ls\n%time 1\n```").blocks == ("!ls\n%time 1",)
    assert read("```repl\nprint(\n```\nmore").blocks == ("print(",)


def test_an_empty_fence_is_no_code() -> None:
    assert read("```repl\n\n```").blocks == ()


def test_code_within_a_thinking_tag_does_not_run() -> None:
    assert read("<think>\n```repl\n1/0\n```\n</think>\n```repl\nok = 1\n```").blocks == ("ok = 1",)


@pytest.mark.parametrize(
    "text", ["FINAL_VAR(answer)", 'FINAL_VAR("answer")', "I am done.\n`FINAL_VAR(answer)`", "**FINAL_VAR('answer')**"]
)
def test_final_var_as_plain_text(text: str) -> None:
    assert read(text).final_name == "answer"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("FINAL(42)", "42"),
        ("So:\nFINAL(a (b) c\nd)", "a (b) c\nd"),
        ('FINAL("it is")', "it is"),
        ("FINAL('a', 'b')", "'a', 'b'"),
    ],
)
def test_final_as_plain_text(text: str, answer: str) -> None:
    assert read(text).final_text == answer


def test_final_in_a_reply_with_code_does_not_count() -> None:
    reply = read("FINAL_VAR(x)\n```repl\nx = 1\n```\nFINAL(2)")
    assert (reply.final_name, reply.final_text) == (None, None)


@pytest.mark.parametrize("text", ["You could call FINAL_VAR(x) then.", "FINAL_VAR(x + 1)", "The FINAL(1) step"])
def test_mentions_within_prose_do_not_count(text: str) -> None:
    reply = read(text)
    assert (reply.final_name, reply.final_text) == (None, None)
    assert reply.prose == text


@given(st.text(alphabet="`~ \nreplpython()\"'=1FINAL_VAR\r\t<think>/", max_size=300), st.booleans())
def test_any_text_can_be_read(text: str, truncated: bool) -> None:
    reply = read(text, truncated=truncated)
    assert all(block.strip() for block in reply.blocks)
    assert not (reply.blocks and (reply.final_name or reply.final_text))


@given(st.lists(st.sampled_from(["x = 1", "if x:\n    y = '''\n```\n'''", "print('a')", "f(\n1)"]), min_size=1, max_size=5))
def test_what_is_fenced_comes_back(blocks: list[str]) -> None:
    text = "\n".join(f"Some words\n```repl\n{block}\n```" for block in blocks)
    assert read(text).blocks == tuple(blocks)

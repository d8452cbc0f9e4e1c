"""The demo stand-in: it answers unseen questions by code that runs in a real kernel, and pretends nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from rlm_jupyter import RLM
from rlm_jupyter.lm.client import Completion, Message
from rlm_jupyter.lm.demo import DemoLM, extract
from scripts.demo import read_sources
from tests.demo_questions import KINDS, Sampler

ROOT = Path(__file__).resolve().parent.parent

LETTERS = {
    "2021/lease.txt": "Lease of a flat\n\nThe rent is 4,200 euros a month.\nEither side may give notice of six months.\n",
    "2022/loan.txt": "Loan agreement\n\nInterest: 3.5 percent a year.\nIt ends when the borrower moves to Lisbon.\n",
}


@pytest.fixture(scope="module")
def rlm() -> Iterator[RLM]:
    with RLM(backend="demo", keep_trace=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return read_sources()


def complete(messages: list[Message], **arguments: Any) -> Completion:
    async def ask() -> Completion:
        return await DemoLM().complete(messages, **({"max_output_tokens": 8192, "timeout": 60.0} | arguments))

    return anyio.run(ask)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, time.time_ns()], ids=["fixed", "new"])
def test_unseen_questions_are_answered_with_the_right_file_and_line(rlm: RLM, sources: dict[str, str], seed: int) -> None:
    assert sum(map(len, sources.values())) > 5_000_000
    sampler = Sampler(sources, seed, [path for path in sources if "test" not in path])
    questions = [question for kind in KINDS for question in sampler.sample(kind, 8)]
    missed = []
    for question in questions:
        response = rlm.completion(sources, root_prompt=question.text).response
        if not question.is_right(response):
            missed.append(f"{question.text} -> {response[:200]!r}, not {question.path}:{sorted(question.lines)}")
    assert len(missed) <= len(questions) // 10, f"seed {seed}:\n" + "\n".join(missed)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which file defines alpha?", "b/two.py:3: def alpha(x):"),
        ("Which file contains the text 'a \"quoted\" it's'?", 'one.py:2: # a "quoted" it\'s'),
        ('Which file contains # a "quoted" it\'s?', 'one.py:2: # a "quoted" it\'s'),
        ("What is the value of LIMITS in module b.two?", "b/two.py:5: LIMITS = (\n    1,\n    2,\n)"),
        ("What is LIMITS set to in one.py?", "one.py:3: LIMITS = 3"),
        ("Where is Beta.run defined?", "one.py:7:     def run(self):"),
        ("Which file contains the class Gamma?", "one.py:9: class Gamma(Beta):"),
    ],
)
def test_the_answer_follows_the_context(rlm: RLM, question: str, answer: str) -> None:
    context = {
        "one.py": 'from b.two import alpha\n# a "quoted" it\'s\nLIMITS = 3\n\nclass Beta:\n    size = 1\n    def run(self):\n'
        "        return alpha(LIMITS)\nclass Gamma(Beta):\n    def run(self):\n        pass\n",
        "b/two.py": '"""alpha and beta"""\n\ndef alpha(x):\n    return x\nLIMITS = (\n    1,\n    2,\n)\n',
        "b/test_two.py": "def alpha(x):\n    LIMITS = 4\n",
    }
    response = rlm.completion(context, root_prompt=question).response
    assert response.partition("\n(also")[0] == answer


def test_other_places_that_qualify_are_named_after_the_best_one(rlm: RLM) -> None:
    context = {"test_a.py": "class Alpha:\n", "deep/er/a.py": "    class Alpha:\n", "a.py": "import Alpha\n\nclass Alpha:\n"}
    response = rlm.completion(context, root_prompt="Which file defines Alpha?").response
    assert response.startswith("a.py:3: class Alpha:\n(also: ")
    assert "deep/er/a.py:1" in response
    assert "test_a.py:1" in response


@pytest.mark.parametrize(
    ("context", "question", "answer"),
    [
        (LETTERS, "What is the rent a month?", "2021/lease.txt:3: The rent is 4,200 euros a month."),
        (list(LETTERS.values()), "Which one mentions Lisbon?", "[1]:4: It ends when the borrower moves to Lisbon."),
        (LETTERS["2022/loan.txt"], "How much interest is to be paid?", "context:3: Interest: 3.5 percent a year."),
    ],
    ids=["dict", "list", "str"],
)
def test_it_reads_texts_of_any_kind(rlm: RLM, context: Any, question: str, answer: str) -> None:
    assert rlm.completion(context, root_prompt=question).response.partition("\n(also")[0] == answer


def test_without_a_question_it_takes_the_task_from_the_context(rlm: RLM) -> None:
    result = rlm.completion(LETTERS["2021/lease.txt"] + "\nHow many euros is the rent?")
    assert result.response == "context:3: The rent is 4,200 euros a month."


def test_a_search_without_hits_is_followed_by_a_looser_one(rlm: RLM) -> None:
    result = rlm.completion({"a.py": "x = 1\nclass ParseError: pass\n"}, root_prompt="Which file defines parseerror?")
    assert result.response == "a.py:2: class ParseError: pass"
    outputs = ["".join(output.text for output in cell.outputs) for turn in result.trace.iterations for cell in turn.cells]
    assert sum(text.startswith("0 hits") for text in outputs) >= 1


def test_what_is_not_there_is_said_not_to_be_found(rlm: RLM) -> None:
    result = rlm.completion(LETTERS, root_prompt="Which file defines zyxwv_nothing?")
    assert result.status == "answered"
    assert result.response.startswith("Not found: nothing in the 2 texts")
    assert "zyxwv_nothing" in result.response
    result = rlm.completion(LETTERS, root_prompt="Which file contains 'the tenant may keep a dog and a month of rent'?")
    assert result.response.startswith("Not found")


def test_it_says_once_that_it_is_no_language_model(rlm: RLM) -> None:
    trace = rlm.completion(LETTERS, root_prompt="What is the rent a month?").trace
    said = [turn.iteration for turn in trace.iterations if "not a language model" in turn.reply]
    assert said == [1]
    assert len(trace.calls) > 0


def test_it_streams_its_reply_and_estimates_its_usage() -> None:
    messages: list[Message] = [
        {"role": "system", "content": "s" * 400},
        {"role": "user", "content": "Question:\nWhere?\n\nContext:\n`context` is a str"},
    ]
    pieces: list[str] = []
    streamed, plain = complete(messages, on_text=pieces.append), complete(messages)
    assert "".join(pieces) == streamed.text == plain.text
    assert len(pieces) > 3
    assert streamed.usage is not None
    assert streamed.usage.estimated
    assert streamed.usage.input_tokens == sum(len(message["content"]) for message in messages) // 4 + 1
    assert complete(messages, max_output_tokens=5).finish_reason == "length"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "What is the capital of France?",
        "Question: " * 100_000,
        "Question: x\n\nExcerpt of " + "(" * 3_000_000,
        "Question: which file defines X?\n\nExcerpt of a:\n" + "      1| X, X, X,\n" * 200_000 + "\n\n",
        "Question: what is the value of X in a?\n\nExcerpt of a:\n      1> X = " + "(" * 3_000_000 + "\n\n",
        "Question: " + "where is does can find " * 50_000 + "\n\nCandidates:\n" + "a:1: " * 100_000 + "\n\n",
    ],
    ids=["empty", "other", "no end", "header", "rows", "brackets", "words"],
)
@pytest.mark.timeout(30)
def test_a_prompt_that_a_kernel_made_up_is_answered_all_the_same(prompt: str) -> None:
    assert isinstance(extract(prompt), str)


@pytest.mark.parametrize(
    ("question", "code", "said"),
    [
        ("Which file contains \"raise ValueError('{{text}} $HOME %s')\"?", 1, "Not found"),
        ("What is the value of HTTP_PORT in module http.client?", 0, "HTTP_PORT = 80"),
    ],
)
def test_make_demo_exits_with_0_only_if_it_found_the_place(question: str, code: int, said: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), question]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert ran.returncode == code, ran.stderr
    assert said in ran.stdout
    assert "sub-calls" in ran.stdout

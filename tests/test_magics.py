"""What one types in a notebook: bad input is one line, completion is exact, the help has what it needs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from IPython.core.error import UsageError

from rlm_jupyter import RLMResult
from rlm_jupyter.lm.prices import price_of
from tests.shells import Shell, open_shell


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with open_shell() as shell:
        shell.run("docs = ['one', 'two']; report = 'text ' * 100; number = 42; setup = 'import json'")
        shell.run("lines = (line for line in docs); opened = open('/dev/null'); import sqlite3, types")
        shell.run("held = {'b': 1, 'a': types.SimpleNamespace(db=sqlite3.connect(':memory:'))}")
        yield shell


BAD = [
    ("%%rlm --context docs\nWho?", "no model chosen: add --model"),
    ("%%rlm --model gpt-5-mini --context docs\nWho?", "OPENAI_API_KEY"),
    ("%%rlm --model openai/gpt-5-mini --context docs\nWho?", "OPENAI_API_KEY"),
    ("%%rlm --model opanai/gpt-5 --context docs\nWho?", "did you mean openai"),
    ("%%rlm --model demo --env lokal --context docs\nWho?", "did you mean local"),
    ("%%rlm --model demo --env dokcer --context docs\nWho?", "no environment is named 'dokcer'; did you mean docker?"),
    ("%%rlm --modle demo --context docs\nWho?", "no option --modle; did you mean --model?"),
    ("%%rlm --mod demo --context docs\nWho?", "no option --mod"),
    ("%%rlm --model demo --frobnicate --context docs\nWho?", "no option --frobnicate"),
    ("%%rlm --model demo --context dosc\nWho?", "did you mean docs"),
    ("%%rlm --model demo --context nothing_like_it\nWho?", "no variable is named nothing_like_it"),
    ("%%rlm --model demo --context ./none.txt\nWho?", "no such file"),
    ("%%rlm --model demo --context docs --context dosc\nWho?", "did you mean docs"),
    ("%%rlm --model demo --context './*.none'\nWho?", "no file matches"),
    ("%%rlm --model demo --context docs\n", "cell body is empty"),  # IPython's own line
    ("%%rlm --model demo --context docs\n   \n\t", "the cell is empty"),
    ("%%rlm --model demo --context docs\nWho is {{nobody}}?", "no variable is named nobody"),
    ("%%rlm --model demo --context docs --max-calls 0\nWho?", "--max-calls must be a whole number above 0"),
    ("%%rlm --model demo --context docs --max-calls -5\nWho?", "--max-calls"),
    ("%%rlm --model demo --context docs --max-calls many\nWho?", "--max-calls"),
    ("%%rlm --model demo --context docs --max-iterations 0\nWho?", "--max-iterations"),
    ("%%rlm --model demo --context docs --max-cost 0\nWho?", "--max-cost"),
    ("%%rlm --model demo --context docs --max-cost nan\nWho?", "--max-cost"),
    ("%%rlm --model demo --context docs --timeout 0\nWho?", "--timeout"),
    ("%%rlm --model demo --context docs --timeout -1\nWho?", "--timeout"),
    ("%%rlm --model demo --context docs --max-concurrency 0\nWho?", "--max-concurrency"),
    ("%%rlm --model demo --context docs --out 1st\nWho?", "--out 1st"),
    ("%%rlm --model demo --context docs --out a.b\nWho?", "--out a.b"),
    ("%%rlm --model demo --context docs --out In\nWho?", "belongs to IPython"),
    ("%%rlm --model demo --context docs --out get_ipython\nWho?", "belongs to IPython"),
    ("%%rlm --model demo --context docs --out _\nWho?", "belongs to IPython"),
    ("%%rlm --model demo --context docs --out print\nWho?", "--out print"),
    ("%%rlm --model demo --context docs --out class\nWho?", "--out class"),
    ("%%rlm --model demo --context docs --kernel nope\nWho?", "nope"),
    ("%%rlm --model demo --context lines\nWho?", "lines is a generator, which can be read only once; make a list of it"),
    ("%%rlm --model demo --context docs --context lines\nWho?", "context['lines'] is a generator"),
    ("%%rlm --model demo --context opened\nWho?", "opened is an open file"),
    ("%%rlm --model demo --context held\nWho?", "held['a'].db, a Connection, cannot be sent"),
    ("%%rlm --model demo --context docs --show-pictures-to-model\nWho?", "demo sees no pictures"),
    ("%%rlm --model demo --context docs --view picture\nWho?", "--view"),
    ("%%rlm --model demo --context docs --base-url localhost:80\nWho?", "--base-url must begin with http"),
    ("%%rlm --model m --base-url http://localhost:1/v1 --api-key-env NO_SUCH_KEY --context docs\nWho?", "NO_SUCH_KEY"),
    ("%%rlm --model m --base-url http://localhost:1/v1 --max-cost 1 --context docs\nWho?", "no price is known for m"),
    ("%%rlm --model demo --context docs 'unclosed\nWho?", "cannot read the options"),
    ("%%rlm docs --model demo\nWho?", "what is 'docs'?"),
    ("%%rlm --model demo --context\nWho?", "--context"),
    ("%rlm frob", "no command 'frob'"),
    ("%rlm lst", "did you mean list"),
    ("%rlm doctor --jsn", "there is --json"),
    ("%%rlm --model azure/x --context docs\nWho?", "AZURE_OPENAI_ENDPOINT is not set"),
    ("%%rlm --model groq/x --context docs\nWho?", "GROQ_API_KEY is not set"),
    ("%%rlm --model groq/ --context docs\nWho?", "the name of the model is missing after groq/"),
    ("%%rlm --model demo --price-as nobody --context docs\nWho?", "--price-as nobody: no price is known"),
    ("%%rlm --model demo --context docs --max-calls ten\nWho?", "--max-calls must be a whole number, such as 100, not 'ten'"),
    ("%%rlm --model demo --context docs --max-calls none\nWho?", "--max-calls must be a whole number, such as 100, not 'none'"),
    ("%%rlm --model demo --context docs --timeout 5m\nWho?", "--timeout must be a number, such as 2.5, not '5m'"),
    ("%%rlm --model demo --context docs --max-cost $2\nWho?", "--max-cost must be a number, such as 2.5, not '$2'"),
    ("%%rlm --model demo --context docs --view lve\nWho?", "--view lve: there is no such view; did you mean live?"),
    ("%%rlm --model demo --context docs --format html\nWho?", "--format html: there is no such format; known: markdown, text"),
    ("%%rlm --model demo --context docs --out\nWho?", "--out needs a value: type --out NAME"),
    ("%%rlm --model demo --context --out a\nWho?", "--context needs a value: type --context NAME"),
    ("%%rlm --model demo --view\nWho?", "--view needs a value: type --view auto or live or html or text or none"),
    ("%%rlm --model demo --no-trace=1\nWho?", "--no-trace takes no value"),
    ("%%rlm --model demo --out a --out b\nWho?", "--out is there 2 times: type it once"),
    ("%%rlm --model demo -o a --out=b\nWho?", "--out is there 2 times: type it once"),
    ("%%rlm --model demo --help\nWho?", "%%rlm? in a cell of its own lists every option"),
    ("%%rlm -h\nWho?", "%%rlm? in a cell of its own lists every option"),
    ("%%rlm --model demo --context ./it's.txt\nWho?", "No closing quotation; close the quote, or write a backslash"),
    ("%%rlm --model demo --context docs --save-files /dev/null\nWho?", "--save-files /dev/null: that is a file; name a folder"),
    ("%%rlm --model demo --context docs --save-files ''\nWho?", "--save-files needs the name of a folder, such as ./made"),
    (
        "%%rlm --model demo --context docs --save-files /dev/null/made\nWho?",
        "nothing can be made in /dev/null; name another folder",
    ),
    ("%%rlm --model demo --context docs --save-files ~nobody-so-named/a\nWho?", "nobody of that name has a home folder here"),
    ("%%rlm --model demo --context https://example.org/x.txt\nWho?", "no such file; an address is not read: download what is"),
    ("%%rlm --model m --base-url http://me:word@localhost:1/v1 --context docs\nWho?", "--base-url holds a user or a password"),
    ("%%rlm --model m --base-url http://localhost:1 --api-key-env sk-abcdefgh --context docs\nWho?", "not the key itself"),
    ("%rlm doctor --json all", "%rlm doctor has no option all"),
    ("%rlm doctor --json --json", "there is --json, once"),
    ("%rlm purge 20250101-120000-abcdef", "what is '20250101-120000-abcdef'? %rlm purge takes no more words: delete"),
    ("%rlm list all", "what is 'all'? %rlm list takes no more words"),
    ("%rlm status now", "what is 'now'?"),
    ("%rlm show a b", "what is 'b'? %rlm show takes no more than one word, [id]"),
    ("%rlm stop a b", "what is 'b'? %rlm stop takes no more than one word, [id]"),
    ("%rlm attach a b", "what is 'b'? %rlm attach takes no more than one word, [id]"),
    ("%rlm show ''", "no run has the id ''"),
    ("%rlm show ../../etc/passwd", "no run has the id ../../etc/passwd"),
    ("%%rlm --model demo --context docs[0]\nWho?", "--context docs[0]: no file matches; neither a variable nor a path; to ask"),
    ("%%rlm --model demo --context docs+docs\nWho?", "--context docs+docs: no such file; neither a variable nor a path"),
    ("%%rlm --model demo --context ''\nWho?", "--context is empty: name a variable of the notebook, a text file"),
    ("%%rlm --model demo --context ' '\nWho?", "--context is empty"),
    (
        f"%%rlm --model demo --context '{'a long text ' * 100}'\nWho?",
        "...: neither a variable nor a path; to ask about a value",
    ),
    ("%%rlm --model demo --context 'a\0b'\nWho?", "--context 'a\\x00b': neither a variable nor a path"),
    ("%%rlm --model demo --context docs --out ''\nWho?", "--out '': not a variable name"),
    ("%rlm show", "no run in this session yet"),
    ("%rlm show nope", "no run has the id nope"),
    ("%rlm stop", "no run is running"),
    ("%rlm stop nope", "no run has the id nope; %rlm list shows those of this session"),
    ("%%rlm --model demo --context docs --max-tokens 0\nWho?", "--max-tokens must be a whole number above 0"),
    ("%%rlm --model demo --context docs --max-cost inf\nWho?", "--max-cost"),
    ("%%rlm --model demo --context docs --timeout nan\nWho?", "--timeout"),
    ("%%rlm --model demo --context docs --max-consecutive-errors 0\nWho?", "--max-consecutive-errors must be a whole number"),
    ("%%rlm --model demo --context docs --max-output-tokens -1\nWho?", "--max-output-tokens"),
]


@pytest.mark.parametrize(("cell", "told"), BAD)
def test_bad_input_is_one_clear_line_before_anything_is_started(shell: Shell, cell: str, told: str, own_traces: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    names = set(shell.namespace)
    ran = shell.run(cell)
    assert isinstance(ran.error, UsageError)
    assert told in str(ran.error)
    assert ran.output.strip().count("\n") == 0
    assert not re.search("sk-abcdefgh|me:word", ran.output)
    assert ran.output.startswith("UsageError: ")
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    assert set(shell.namespace) == names
    assert not list(own_traces.iterdir())


def test_a_key_with_a_line_end_is_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2026")
    ran = shell.run("%%rlm --model gpt-5-mini --context docs\nWho?")
    assert "copy it again" in str(ran.error)


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        (
            "%%rlm --max-c",
            ["--max-calls", "--max-concurrency", "--max-concurrent-children", "--max-consecutive-errors", "--max-cost"],
        ),
        ("%%rlm --context ", ["docs", "held", "number", "report", "setup"]),
        ("%%rlm --context d", ["docs"]),
        ("%%rlm --setup-code ", ["report", "setup"]),
        ("%%rlm --env ", ["docker", "local", "modal"]),
        ("%%rlm --view h", ["html"]),
        ("%%rlm --model de", ["deepseek/", "demo"]),
        ("%%rlm --model ollam", ["ollama/"]),
        ("%%rlm --price-as gpt-5-m", ["gpt-5-mini"]),
        ("%rlm ", ["attach", "doctor", "export", "list", "panel", "purge", "sandboxes", "show", "status", "stop"]),
        ("%%rlm --env=d", ["docker"]),
        ("%%rlm --context=", ["docs", "held", "number", "report", "setup"]),
        ("%%rlm --context docs --con", ["--context"]),
        ("%%rlm -o kept --forma", ["--format"]),
        ("%rlm doctor ", ["--json"]),
        ("%rlm export 20250101-120000-abcdef page.html --f", ["--force"]),
        ("%rlm s", ["sandboxes", "show", "status", "stop"]),
    ],
)
def test_completion_is_exact(shell: Shell, text: str, offered: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert shell.complete(text) == offered


@pytest.mark.needs("docker")
def test_completion_of_images_offers_what_the_engine_has(
    shell: Shell, docker_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):  # on a busy machine an engine may be too late for a Tab
            if offered := shell.complete(f"%%rlm --env docker --image {docker_image[:6]}"):
                break
        assert docker_image in offered
        assert not any(name.startswith("rlm-jupyter:") or "<none>" in name for name in offered)
        for address in (f"unix://{tmp_path}/none", "ssh://nobody@127.0.0.1:1"):
            monkeypatch.setenv("DOCKER_HOST", address)
            assert docker_image not in shell.complete(f"%%rlm --env docker --image {docker_image[:6]}")


def test_completion_of_a_providers_models_is_what_the_table_of_prices_knows(shell: Shell) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        offered = shell.complete("%%rlm --model anthropic/claude")
    assert len(offered) > 5
    assert all(price_of(name, {}) is not None for name in offered)


def test_completion_of_paths_offers_what_the_folder_holds(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name in ("one.txt", "other.txt", ".hidden"):
        (tmp_path / "texts" / name).touch()
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert shell.complete("%%rlm --context texts/") == ["texts/deep/", "texts/one.txt", "texts/other.txt"]
        assert shell.complete("%%rlm --context=./texts/on") == ["./texts/one.txt"]
        assert shell.complete("%%rlm --save-files te") == ["texts/"]
        assert shell.complete("%%rlm --save-files texts/") == ["texts/deep/"]


def test_completion_offers_an_option_once_and_leaves_other_cells_alone(shell: Shell) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "--model" not in shell.complete("%%rlm --model demo --")
        assert "--out" not in shell.complete("%%rlm -o kept --")
        assert "docs" in shell.complete("doc")


def test_the_help_tells_the_options_and_three_examples(shell: Shell) -> None:
    shown = shell.shell.inspector.info(shell.shell.find_cell_magic("rlm"))["docstring"] or ""
    assert shown.count("%%rlm --context") == 3
    assert "--max-cost DOLLARS" in shown
    assert "%rlm show [id]" in (shell.shell.find_line_magic("rlm").__doc__ or "")


def test_defaults_come_from_traits_and_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_JUPYTER_MODEL", "demo")
    monkeypatch.setenv("RLM_JUPYTER_MAX_CALLS", "77")
    monkeypatch.setenv("RLM_JUPYTER_MAX_COST", "none")
    with open_shell() as shell:
        status = shell.run("%rlm status").output
        assert "demo" in status
        assert "77" in status
        shell.run("%config RLMMagics.max_calls = 5")
        assert " 5" in shell.run("%rlm status").output


def test_a_question_is_taken_as_it_is_but_for_names_in_two_braces(shell: Shell) -> None:
    shell.run("größe, Äpfel, x = 5, 'three', 'no'")
    body = "{x} $x ${x} {1/0} %s \\n {{x.y}} {{ 1 }} {} {{}} `x` !ls ?x %x @x 😀\u200b\t"
    ran = shell.run(
        f"%%rlm --model demo --context docs --out r\u0301 --view none\n{body}|{{{{größe}}}}|{{{{ A\u0308pfel }}}}|{{{{{{x}}}}}}"
    )
    assert ran.error is None
    assert shell.namespace["\u0155"].trace.question == f"{body}|5|three|{{no}}"  # names are those that Python reads


def test_none_takes_a_cap_away(shell: Shell) -> None:
    ran = shell.run("%%rlm --context docs --model demo --max-cost none --max-tokens 9_000 --out r --view none\nWhich is 'one'?")
    assert ran.error is None
    settings = shell.namespace["r"].trace.settings
    assert (settings["max_cost"], settings["max_tokens"]) == (None, 9000)


def test_a_variable_that_is_no_value_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLM_JUPYTER_TIMEOUT", "soon")
    with open_shell() as shell:
        assert "1800" in shell.run("%rlm status").output


def test_unloading_takes_the_magics_away(shell: Shell) -> None:
    shell.run("%unload_ext rlm_jupyter")
    assert shell.shell.find_cell_magic("rlm") is None
    assert shell.run("%load_ext rlm_jupyter").error is None
    assert shell.shell.find_cell_magic("rlm") is not None


def test_a_run_from_cell_to_variable(shell: Shell) -> None:
    shell.run("word = 'needle'; hay = {'a.txt': 'straw\\n' * 50, 'b.txt': 'straw\\nthe needle is here\\n'}")
    names = set(shell.namespace)
    ran = shell.run('%%rlm --context hay --model demo --out found --view text\nWhich file contains "{{word}} is here"?')
    assert ran.error is None
    result = shell.namespace["found"]
    assert isinstance(result, RLMResult)
    assert result.status == "answered"
    assert "b.txt" in str(result)
    assert set(shell.namespace) - names == {"found"}
    assert "answered" in shell.run("%rlm list").output
    assert "b.txt" in shell.run("%rlm show").output
    assert "b.txt" in shell.run(f"%rlm show {result.trace.run}").output
    assert "1 trace files deleted" in shell.run("%rlm purge").output

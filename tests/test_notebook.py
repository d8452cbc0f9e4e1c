"""What a user of a notebook lives through: a real kernel as the notebook, interrupts, death of the host, saved outputs."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pexpect
import pytest

from rlm_jupyter.pictures import check
from rlm_jupyter.run import STOP_WITHIN
from rlm_jupyter.settings import ENVIRONMENTS
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from tests.models import answer, code
from tests.notebooks import SECONDS, Notebook, gone, notebook, run_folders

CANARY = "sk-canary-7f3a9c51e2d84b60"
PASSWORD = "correct horse battery"
BACK_WITHIN = STOP_WITHIN + 15
"""Seconds in which a cell that was interrupted must end: what the product allows itself, and a slow machine's time."""
ENDED = "list(get_ipython().magics_manager.registry['RLMMagics'].runs.values())[-1].wait(60).trace.status"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which the notebook finds kernelspecs."""
    return tmp_path_factory.mktemp("jupyter") / "kernels"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, specs: Path) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("book")
    variables = {
        "RLM_JUPYTER_TRACES": str(tmp_path_factory.mktemp("traces")),
        "JUPYTER_PATH": str(specs.parent),
        "OPENAI_API_KEY": CANARY,
        "DB_PASSWORD": PASSWORD,
    }
    with notebook(folder, **variables) as opened:
        opened.run("docs = ['alpha', 'beta']")
        yield opened


def cell(server: ScriptedServer, options: str = "") -> str:
    return f"%%rlm --context docs --base-url {server.url} --model root --sub-model sub --out result {options}\nWhich is first?"


def test_a_run_is_shown_live_and_ends_as_one_static_result(book: Notebook) -> None:
    with ScriptedServer(models={"root": [code("print(context)"), code("llm_query_batched(['a', 'b'])"), answer("context[0]")],
                                "sub": lambda request: "ok"}) as server:  # fmt: skip
        ran = book.run(cell(server))
    assert ran.status == "ok", ran.traceback
    assert len(ran.displays) == 2
    assert "Answered" in ran.html
    assert "alpha" in ran.html
    assert "<script" not in ran.html
    assert not any("application/vnd.jupyter.widget-view+json" in display["data"] for display in ran.displays)
    assert book.value("[result.status, result.value, result.response]") == ["answered", "alpha", "alpha"]
    status = [update for update in ran.updates if len(str(update["data"])) <= 2048]
    assert status


SWALLOWS = """
while True:
    try:
        n = 0
        while True:
            try:
                n = 0
                while True: llm_query('here')
            except BaseException: pass
    except BaseException: pass"""
"""Two interrupts are sent before the kill: code may be in an `except` when one comes.

A loop that is the first statement of its `try` is not safe in it:
CPython 3.11 raises an interrupt at its jump back outside.
"""

STAGES: dict[str, tuple[list[Reply | str], Callable[[Request], Reply | str], int]] = {  # root, sub, requests to wait for
    "the first root request": ([Reply(hold=True)], lambda request: "", 1),
    "a reply that streams": ([Reply("word " * 5_000, pause=0.2)], lambda request: "", 1),
    "a later root request": ([code("kept = 1"), Reply(hold=True)], lambda request: "", 2),
    "a retry's wait": ([Reply(status=429, headers={"Retry-After": "600"})], lambda request: "", 1),
    "a sub-call": ([code("llm_query('p')")], lambda request: Reply(hold=True), 2),
    "a batch of 300": ([code("llm_query_batched(['p'] * 300)")], lambda request: Reply(hold=True), 33),
    "an endless cell": ([code("llm_query('here')\nwhile True: pass")], lambda request: "", 2),
    "an idle await": ([code("import asyncio\nllm_query('here')\nawait asyncio.sleep(600)")], lambda request: "", 2),
    "a cell that swallows the interrupt": ([code(SWALLOWS)], lambda request: "", 2),
    "a C call that never returns": (
        [code("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntry: llm_query('here')\nfinally: signal.pause()")],
        lambda request: "",
        2,
    ),
}


KILLED = ("a cell that swallows the interrupt", "a C call that never returns")


@pytest.mark.parametrize("stage", STAGES)
def test_p09_an_interrupt_gives_the_prompt_back_and_keeps_what_there_is(book: Notebook, stage: str) -> None:
    assert STOP_WITHIN <= 5.0
    root, sub, requests = STAGES[stage]
    with ScriptedServer(models={"root": root, "sub": sub}) as server:
        message = book.send(cell(server))
        server.wait_for(requests)
        book.interrupt()
        ran = book.finish(message, BACK_WITHIN)
        assert ran.ename == "RunStopped"
        assert ran.traceback.count("\n") < 4
        assert book.value(f"[result.status, {ENDED}]") == ["stopped", "stopped"]
        assert "Stopped" in ran.html
        server.wait_for(requests, ended=True)
    kept = book.descendants()
    assert len(kept) <= (0 if stage in KILLED else 3), "what is kept warm for the next run, where the kernel came back"
    book.run("%unload_ext rlm_jupyter\n%load_ext rlm_jupyter")
    assert gone(kept)


HERE = "import socket; here = socket.create_connection(('127.0.0.1', {port})); here.recv(1)"
"""Code that tells where it is by connecting, and then stands there until it is ended."""
STARTING = {  # what runs before the magic, and its options
    "a kernel that is never ready": ("", "--kernel never"),
    "a context that is being loaded": ("class Slow:\n def __setstate__(self, state): {here}\ndocs = Slow(); docs.x = 1", ""),
    "set-up code": ("", '--setup-code "{here}"'),
}


@pytest.mark.parametrize("stage", STARTING)
def test_p09_an_interrupt_while_the_kernel_starts(book: Notebook, specs: Path, stage: str) -> None:
    with ScriptedServer(models={"root": [answer()]}) as server, socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(SECONDS)
        here = HERE.format(port=door.getsockname()[1])
        (specs / "never").mkdir(parents=True, exist_ok=True)
        spec = {"display_name": "never ready", "language": "python", "argv": [sys.executable, "-c", here, "{connection_file}"]}
        (specs / "never" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        before, options = (text.format(here=here) for text in STARTING[stage])
        book.run(before)
        message = book.send(cell(server, options))
        with door.accept()[0] as connected:
            book.interrupt()
            ran = book.finish(message, BACK_WITHIN)
            connected.settimeout(SECONDS)
            assert connected.recv(1) == b"", "what stood there has ended"
        assert ran.ename == "RunStopped"
        assert book.value(f"[result.status, {ENDED}]") == ["stopped", "stopped"]
        assert server.requests == []
    book.run("docs = ['alpha', 'beta']")
    kept = book.descendants()
    book.run("%unload_ext rlm_jupyter\n%load_ext rlm_jupyter")
    assert gone(kept)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_p12_nothing_is_left_after_the_death_of_the_host(tmp_path: Path, end: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as temporary, notebook(tmp_path, TMPDIR=temporary) as book:
        book.run("docs = 'x'")
        with ScriptedServer(models={"root": [code("while True: pass")]}) as server:
            book.send(cell(server))
            server.wait_for(1, ended=True)
            started = book.descendants()
            assert started
            assert run_folders(temporary)
            book.process.send_signal(end)
            assert gone([*started, book.process])
        assert not run_folders(temporary)


def test_p12_nothing_is_left_after_a_restart_of_the_kernel(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as temporary, notebook(tmp_path, TMPDIR=temporary) as book:
        book.run("docs = 'x'")
        with ScriptedServer(models={"root": [answer()]}) as server:
            assert book.run(cell(server)).status == "ok"
        kept = book.descendants()
        assert kept
        assert run_folders(temporary)
        book.manager.restart_kernel()
        assert gone(kept)
        assert not run_folders(temporary)


def test_p12_a_run_that_ends_well_keeps_three_idle_processes_until_unloaded(book: Notebook) -> None:
    with ScriptedServer(models={"root": lambda request: answer()}) as server:
        for _ in range(3):
            assert book.run(cell(server)).status == "ok"
            assert len(book.descendants()) <= 3
    kept = book.descendants()
    book.run("%unload_ext rlm_jupyter")
    assert gone(kept)
    assert book.run("%load_ext rlm_jupyter").status == "ok"


def test_p15_only_the_named_variable_is_written(book: Notebook) -> None:
    book.run("before = 1")
    space = "sorted(name for name in globals() if not name.startswith('_i'))"  # IPython's own record of the input
    names = set(book.value(space))
    with ScriptedServer(models={"root": lambda request: answer("1")}) as server:
        assert book.run(cell(server)).status == "ok"
        assert set(book.value(space)) - names <= {"result"}
        assert book.run(cell(server).replace("--out result", "")).status == "ok"
        assert set(book.value(space)) - names <= {"result"}
    assert book.value("before") == 1


def test_p21_a_key_that_a_provider_repeats_is_nowhere_to_be_seen(book: Notebook, tmp_path: Path) -> None:
    refusal = Reply(status=401, error={"message": f"Incorrect API key provided: {CANARY}."})
    with ScriptedServer(models={"root": [refusal]}) as server:
        ran = book.run(cell(server, "--api-key-env OPENAI_API_KEY"))
        assert server.requests[0].headers["authorization"] == f"Bearer {CANARY}"
    assert ran.ename == "LMRefused"
    assert CANARY not in f"{ran.traceback}{ran.html}{ran.streams}{ran.displays}{ran.updates}"
    for file in Path(book.value("__import__('os').environ['RLM_JUPYTER_TRACES']")).iterdir():
        assert CANARY not in file.read_text()


def test_p21_a_secret_of_the_environment_that_code_prints_is_in_no_output_of_the_notebook(
    book: Notebook, tmp_path: Path
) -> None:
    file = tmp_path / "settings.txt"
    file.write_text(f"password={PASSWORD}\n", encoding="utf-8")
    turns = [code(f"found = open({str(file)!r}).read()\nprint(found)"), f"It is {PASSWORD}.\n" + answer("found")]
    with ScriptedServer(models={"root": turns}) as server:
        ran = book.run(cell(server))
    assert ran.status == "ok", ran.traceback
    told = f"{ran.traceback}{ran.html}{ran.streams}{ran.displays}{ran.updates}"
    assert PASSWORD not in told
    assert "[redacted]" in told
    for path in Path(book.value("__import__('os').environ['RLM_JUPYTER_TRACES']")).iterdir():
        assert PASSWORD not in path.read_text(encoding="utf-8")
    assert book.value("result.value") == f"password={PASSWORD}\n"


def test_p02_the_view_says_that_local_is_not_isolated(book: Notebook) -> None:
    with ScriptedServer(models={"root": [answer()]}) as server:
        ran = book.run(cell(server))
    assert ENVIRONMENTS["local"].startswith("not isolated")
    assert ENVIRONMENTS["local"] in ran.html
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    assert "| `local` |" in readme
    assert "none: the code has your own rights" in readme


def test_p03_no_key_reaches_the_kernel_or_what_is_saved(book: Notebook) -> None:
    look = (
        "import os, sys, gc, subprocess\nseen = repr(dict(os.environ)) + repr(sys.argv) + open('/proc/self/environ').read()\n"
        "seen += subprocess.run('env', capture_output=True, text=True).stdout + repr(globals())\n"
        "seen += repr([o for o in gc.get_objects() if isinstance(o, (dict, list))][:0])\n"
        "for base in {os.getcwd(), os.path.expanduser('~')}:\n    for folder, _, files in os.walk(base):\n"
        "        seen += ''.join(open(os.path.join(folder, f), errors='replace').read() for f in files)\n"
        "canary = 'sk-canary-' + '7f3a9c51e2d84b60'\nfound = canary in seen"
    )
    with ScriptedServer(models={"root": [code(look), answer("found")]}) as server:
        ran = book.run(cell(server, "--api-key-env OPENAI_API_KEY"))
    assert ran.status == "ok", ran.traceback
    assert book.value("result.value") is False
    assert CANARY not in f"{ran.displays}{ran.updates}{ran.streams}"


def test_p24_what_is_missing_is_one_line_and_nothing_is_started(book: Notebook) -> None:
    book.run("%unload_ext rlm_jupyter\n%load_ext rlm_jupyter")
    before = len(book.descendants())
    for line, told in [
        ("%%rlm --context docs\nq", "no model chosen"),
        ("%%rlm --context docs --model m --base-url http://127.0.0.1:1/v1 --api-key-env NO_KEY\nq", "NO_KEY"),
        ("%%rlm --context dosc --model demo\nq", "did you mean docs"),
        ("%%rlm --context docs --model demo --env dokcer\nq", "no environment is named"),
        ("%%rlm --context docs --model demo --kernel julia-1\nq", "julia-1"),
    ]:
        ran = book.run(line)
        assert ran.status == "error"
        assert ran.streams.startswith("UsageError: ")
        assert told in ran.streams
        assert ran.streams.strip().count("\n") == 0
    assert len(book.descendants()) == before


def test_p27_the_users_folder_is_left_as_it_was(book: Notebook) -> None:
    listing = "sorted(__import__('os').listdir('.'))"
    before = book.value(listing)
    write = "open('made.txt', 'w').write('x')\nimport os\nos.write(1, b'raw out'); os.write(2, b'raw err')\nhere = os.getcwd()"
    with ScriptedServer(models={"root": [code(write), answer("here")]}) as server:
        ran = book.run(cell(server))
        assert "raw out" in server.requests[1].prompt
        assert "raw err" in server.requests[1].prompt
    assert ran.streams == ""
    assert book.value(listing) == before
    assert book.value("result.value") != book.value("__import__('os').getcwd()")


def test_a_saved_notebook_is_small_whatever_the_run_and_holds_no_widget(tmp_path: Path) -> None:
    loud = """
for n in range(20): print('<script>alert(1)</script>' * 20_000)
llm_query_batched([f'p{n}' * 2000 for n in range(500)])"""
    hostile = "<img src=x onerror=alert(1)> ![x](http://evil.example/a.png) [y](javascript:alert(1)) \x1b[31mred"
    turns = [hostile + code(loud)] * 6 + [answer(repr(hostile))]
    with ScriptedServer(models={"root": turns, "sub": lambda request: hostile}) as server:
        magic = f"%%rlm --context docs --base-url {server.url} --model root --sub-model sub --max-calls 5000"
        cells = [
            nbformat.v4.new_code_cell(source)
            for source in ("%load_ext rlm_jupyter\ndocs = 'x'", magic + "\n<b onclick=alert(1)>q</b>")
        ]
        book = nbformat.v4.new_notebook(cells=cells)
        nbclient.NotebookClient(
            book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    written = json.dumps(book.cells[1].outputs)
    assert len(written.encode()) < 256 * 1024
    assert "widget-view" not in written
    pages = [output["data"]["text/html"] for output in book.cells[1].outputs if "text/html" in output.get("data", {})]
    assert len(pages) == 2
    for bad in ("<script", "<img", "<b onclick", "\x1b", "href"):
        assert not any(bad in page for page in pages)
    assert any("&lt;img src=x onerror=alert(1)&gt;" in page for page in pages)


def test_a_plot_of_the_code_is_in_the_saved_notebook_as_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_JUPYTER_TRACES", str(tmp_path / "traces"))
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]); plt.show()"
    forged = "from IPython.display import SVG, HTML\ndisplay(SVG('<svg onload=alert(1)></svg>'), HTML('<img src=x>'))"
    with ScriptedServer(models={"root": [code(plot), code(forged), answer("1")]}) as server:
        cells = [
            nbformat.v4.new_code_cell("%load_ext rlm_jupyter\ndocs = ['alpha']"),
            nbformat.v4.new_code_cell(cell(server)),
        ]
        book = nbformat.v4.new_notebook(cells=cells)
        nbclient.NotebookClient(
            book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
        told = server.requests[1].body["messages"][-1]["content"]
    outputs = book.cells[1].outputs
    (picture,) = [output["data"] for output in outputs if "image/png" in output.get("data", {})]
    assert check(base64.b64decode(picture["image/png"])).width > 300
    assert re.search(r"\[a picture of \d+x\d+\]", told)
    assert not any("<svg" in output["data"].get("text/html", "") for output in outputs if "data" in output)
    assert not any("image/svg+xml" in output.get("data", {}) for output in outputs)
    nbformat.validate(book)


@pytest.mark.parametrize("option", ["", "--show-pictures-to-model"])
def test_a_model_sees_pictures_only_when_it_is_asked_for(book: Notebook, option: str) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]); plt.show()"
    with ScriptedServer(models={"root": [code(plot), code("print(1)"), answer("1")]}) as server:
        ran = book.run(cell(server, option))
        first, second = (request.body["messages"][3]["content"] for request in server.requests[1:])
    assert ran.status == "ok", ran.traceback
    assert first == second
    if not option:
        assert re.search(r"\[a picture of \d+x\d+\]", first)
        return
    text, picture = first
    assert (text["type"], picture["type"]) == ("text", "image_url")
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert check(base64.b64decode(data)).width > 300


def test_the_magic_in_a_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "RLM_JUPYTER_TRACES": str(tmp_path / "traces"), "IPYTHONDIR": str(tmp_path), "TERM": "xterm"}
    arguments = ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"]
    options: dict[str, Any] = {"encoding": "utf-8", "timeout": 30, "dimensions": (40, 160), "cwd": str(tmp_path)}
    turns = [code("print('seen ' + context)"), code("while True: pass")]
    with (
        ScriptedServer(models={"root": turns}) as server,
        pexpect.spawn(sys.executable, arguments, env=environment, **options) as terminal,
    ):
        terminal.expect_exact("In [1]:")
        terminal.sendline("%load_ext rlm_jupyter")
        terminal.expect_exact("In [2]:")
        terminal.sendline(f"get_ipython().run_cell('%%rlm --model root --base-url {server.url} --out got\\nhello there')")
        terminal.expect_exact("Iteration 1 of 30")
        terminal.expect_exact("seen hello there")
        terminal.expect_exact("Iteration 2 of 30")
        server.wait_for(2, ended=True)
        terminal.sendintr()
        terminal.expect_exact("Stopped")
        terminal.expect_exact("RunStopped")
        terminal.expect_exact("In [3]:")
        terminal.sendline("print('status is', got.status)")
        terminal.expect_exact("status is stopped")
        terminal.sendline("exit")
        terminal.expect(pexpect.EOF)

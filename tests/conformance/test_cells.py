"""Cells behave as in a notebook's kernel, wherever and however the kernel runs."""

from __future__ import annotations

import re

import pytest

from tests.conformance.driving import Session

pytestmark = pytest.mark.anyio


async def test_prints_results_displays_and_errors_come_in_order(repl: Session) -> None:
    ran = await repl.run("print('a')\ndisplay('b')\nprint('c')\ndisplay('d')\n'e'")
    assert [(output.stream, output.text.strip()) for output in ran.outputs] == [
        ("stdout", "a"), ("display", "'b'"), ("stdout", "c"), ("display", "'d'"), ("result", "'e'"),
    ]  # fmt: skip


async def test_a_traceback_is_a_notebooks_without_terminal_codes(repl: Session) -> None:
    ran = await repl.run("def divide(a, b):\n    return a / b\nprint('before')\ndivide(1, 0)")
    error = ran.text("error")
    assert ran.result.status == "error"
    assert ran.result.error == "ZeroDivisionError: division by zero"
    assert "----> 4 divide(1, 0)" in error
    assert "line 2, in divide(a, b)" in error or "in divide(a, b)" in error
    assert error.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in error
    assert ran.out == "before\n"


async def test_a_syntax_error_is_told(repl: Session) -> None:
    ran = await repl.run("1 +")
    assert ran.result.error.startswith("SyntaxError")
    assert "SyntaxError" in ran.text("error")


async def test_state_survives_from_cell_to_cell(repl: Session) -> None:
    await repl.ok("numbers = (n * n for n in range(10)); next(numbers), next(numbers)")
    await repl.ok("import tempfile; file = tempfile.TemporaryFile('w+'); file.write('first ')")
    await repl.ok("import threading; lock = threading.Lock(); lock.acquire()")
    await repl.ok("rate = 1\ndef price(n): return n * rate")
    await repl.ok("rate = 3")
    assert await repl.out("print(next(numbers))") == "4"
    assert await repl.out("file.write('second'); file.seek(0); print(file.read())") == "first second"
    assert await repl.out("print(lock.locked()); lock.release(); print(lock.locked())") == "True\nFalse"
    assert await repl.out("print(price(2))") == "6"


async def test_top_level_await_and_a_task_that_outlives_its_cell(repl: Session) -> None:
    await repl.ok(
        "import asyncio\nasync def later():\n    await asyncio.sleep(0.05)\n    return 7\ntask = asyncio.ensure_future(later())"
    )
    assert await repl.out("print(await task)") == "7"


async def test_threads_print_into_their_cell(repl: Session) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print(sorted(pool.map(lambda n: print(f"thread {n}") or n, range(8))))
"""
    out = await repl.out(code)
    assert out.splitlines()[-1] == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert {f"thread {n}" for n in range(8)} <= set(out.splitlines())


async def test_subprocesses_and_shell_escapes(repl: Session) -> None:
    code = "import subprocess, sys\nprint('a')\nsubprocess.run([sys.executable, '-c', 'print(\"b\")'], check=True)\nprint('c')"
    assert await repl.out(code) == "a\nb\nc"
    assert await repl.out("!echo from the shell") == "from the shell"
    assert await repl.out("lines = !printf 'x\\ny\\n'\nprint(lines)") == "['x', 'y']"
    assert await repl.out("subprocess.run(['echo', 'given'], stdout=sys.stdout)\nNone") == "given"


async def test_multiprocessing_by_fork_and_by_spawn(repl: Session) -> None:
    code = """
import multiprocessing, os, pathlib
pathlib.Path("squares.py").write_text("def square(n): return n * n")
import squares
def here(n):
    print(f"child {n}")
    return n + 1
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(here, [1, 2, 3]))
with multiprocessing.get_context("spawn").Pool(2) as pool:
    print(pool.map(squares.square, [1, 2, 3]))
"""
    lines = (await repl.out(code)).splitlines()
    assert "[2, 3, 4]" in lines
    assert "[1, 4, 9]" in lines
    assert {"child 1", "child 2", "child 3"} <= set(lines)


async def test_numpy_plots_and_sqlite(repl: Session) -> None:
    assert await repl.out("import numpy; print(numpy.arange(6).reshape(2, 3).sum(axis=1))") == "[ 3 12]"
    ran = await repl.ok("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()")
    assert re.fullmatch(r"\[a picture of \d+x\d+\]\n<Figure size 640x480 with 1 Axes>\n", ran.text("display"))
    assert await repl.out("import sqlite3; print(sqlite3.connect(':memory:').execute('select 6 * 7').fetchone())") == "(42,)"


async def test_magics_work(repl: Session) -> None:
    assert await repl.out("%%capture caught\nprint('hidden')") == ""
    assert await repl.out("print(caught.stdout.strip())") == "hidden"
    assert "per loop" in await repl.out("%timeit -n 1 -r 1 pass")


async def test_random_seeds_differ_between_kernels(repl: Session) -> None:
    other = await Session(repl.environment).start()
    code = "import random, numpy, uuid, os; print(random.random(), numpy.random.random(), uuid.uuid4())"
    try:
        assert len({*(await repl.out(code)).split(), *(await other.out(code)).split()}) == 6
    finally:
        await other.kernel.close()


async def test_each_kernel_has_its_own_folder_home_and_temporary_folder(repl: Session) -> None:
    other = await Session(repl.environment).start()
    code = "import os, tempfile; print(os.getcwd(), os.path.expanduser('~'), tempfile.gettempdir(), sep='\\n')"
    try:
        here, there = (await repl.out(code)).split("\n"), (await other.out(code)).split("\n")
    finally:
        await other.kernel.close()
    assert len({*here, *there}) == 6


async def test_raw_writes_are_captured_in_order(repl: Session) -> None:
    code = (
        "import os\nprint('one')\nos.write(1, b'two\\n')\nos.system('echo three')\nprint('four'); os.write(2, b'five\\n'); None"
    )
    ran = await repl.ok(code)
    assert ran.out == "one\ntwo\nthree\nfour\n"
    assert ran.text("stderr") == "five\n"


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "exit()", "quit()", "exit", "raise SystemExit"])
async def test_leaving_does_not_end_the_session(repl: Session, code: str) -> None:
    await repl.ok("kept = 5")
    ran = await repl.run(code)
    assert ran.result.status == "error"
    assert await repl.out("print(kept)") == "5"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout = None",
        "import sys; del sys.stdout",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import os; os.close(1); os.close(2)",
        "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 1)",
    ],
)
async def test_broken_streams_are_mended_before_the_next_cell(repl: Session, code: str) -> None:
    await repl.run(code)
    assert await repl.out("print('heard')\nimport subprocess; subprocess.run(['echo', 'too'])\nNone") == "heard\ntoo"


async def test_p14_input_is_refused_at_once(repl: Session) -> None:
    ran = await repl.run("input('password? ')")
    assert ran.result.error.startswith("StdinNotImplementedError")


async def test_lone_surrogates_and_binary_do_not_lose_the_output(repl: Session) -> None:
    ran = await repl.ok(r"""print('a\ud800b'); import os; os.write(1, b'\xff\xfe ok\n'); '\udfff'""")
    assert ran.out == "a\\ud800b\n�� ok\n"
    assert ran.text("result") == "'\\udfff'\n"


async def test_terminal_codes_are_taken_out_also_when_cut_in_two(repl: Session) -> None:
    ran = await repl.ok(
        "import os, time\nos.write(1, b'\\x1b[3')\ntime.sleep(0.1)\n"
        "os.write(1, b'1mred\\x1b[0m \\x1b]0;title\\x07end\\n')\nNone"
    )
    assert ran.out == "red end\n"


async def test_output_keeps_head_and_tail_and_counts_the_rest(repl: Session) -> None:
    ran = await repl.ok("for n in range(1_000_000): print(f'{n:09d}')")
    kept = [line for line in ran.out.splitlines() if line.isdigit() and len(line) == 9]
    assert kept[0] == "000000000"
    assert kept[-1] == "000999999"
    told = [line for line in ran.out.splitlines() if "left out" in line]
    assert told == [f"[... {ran.result.omitted:,} bytes of output left out ...]"]
    said = sum(len(output.text) for output in ran.outputs) - len(told[0]) - 2
    assert said + ran.result.omitted == 10_000_000
    assert 250_000 < said <= 256 * 1024


async def test_a_huge_result_is_cut_in_the_kernel(repl: Session) -> None:
    ran = await repl.ok("class Big:\n    def __repr__(self): return 'x' * 50_000_000 + 'END'\nBig()")
    assert ran.text("result").endswith("END\n")
    assert ran.result.omitted == 50_000_004 - 256 * 1024


async def test_p14_rich_types_and_payloads_never_reach_the_host(repl: Session) -> None:
    code = """
from IPython.display import HTML, Javascript, clear_output, display, update_display
display(HTML("<b>bold</b>"), display_id="one")
update_display("again", display_id="one")
display(Javascript("alert(1)"))
display({"text/html": "<i>only</i>"}, raw=True)
clear_output()
get_ipython().set_next_input("injected")
get_ipython().payload_manager.write_payload({"source": "page", "data": {"text/plain": "paged"}})
from comm import create_comm
create_comm(target_name="jupyter.widget", data={"x": 1})
None
"""
    ran = await repl.ok(code)
    assert [output.stream for output in ran.outputs] == ["display"]
    assert ran.text("display") == "<IPython.core.display.HTML object>\n<IPython.core.display.Javascript object>\n"


async def test_forged_protocol_messages_end_nothing(repl: Session) -> None:
    code = """
import time
kernel = get_ipython().kernel
parent = kernel.get_parent("shell")
kernel.session.send(kernel.iopub_socket, "status", {"execution_state": "idle"}, parent=parent, ident=b"status")
kernel.session.send(kernel.iopub_socket, "stream", {"name": "stdout", "text": "forged"}, parent=parent, ident=b"stream")
time.sleep(0.3)
print("still mine")
"""
    assert await repl.out(code) == "still mine"


async def test_what_a_thread_prints_after_its_cell_is_not_lost(repl: Session) -> None:
    await repl.ok("import threading, time\ndef late():\n    time.sleep(0.2); print('late')")
    await repl.ok("thread = threading.Thread(target=late); thread.start()")
    assert "late" in await repl.out("thread.join(); print('next')")


async def test_an_exception_with_a_broken_str_does_not_hang(repl: Session) -> None:
    ran = await repl.run("class Odd(Exception):\n    def __str__(self): raise RuntimeError('no')\nraise Odd")
    assert ran.result.status == "error"
    assert await repl.out("print(1)") == "1"


@pytest.mark.parametrize("code", ["x = '\0'", "print('\ud800')", "", "   \n", "# only a comment", "?print", "%no_such_magic"])
async def test_odd_cells_come_to_an_end(repl: Session, code: str) -> None:
    await repl.run(code)
    assert await repl.out("print(1)") == "1"

"""Launch, settings and tear-down of kernels on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest

from rlm_jupyter.errors import KernelDied, KernelStartError, SettingsError
from rlm_jupyter.kernels.local import check_kernel, clean_environment, open_local
from tests.conformance.driving import Session, session

pytestmark = pytest.mark.anyio


def add_kernelspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **spec: object) -> None:
    folder = tmp_path / "kernels" / name
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": "python", **spec}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder in which nobody else's runs lie."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_only_harmless_variables_are_handed_on() -> None:
    given = {
        "PATH": "/bin", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "CONDA_PREFIX": "/c", "https_proxy": "http://p",
        "NO_PROXY": "x", "SSL_CERT_FILE": "/ca", "OPENAI_API_KEY": "1", "ANTHROPIC_API_KEY": "2", "MODAL_TOKEN_ID": "3",
        "JUPYTER_TOKEN": "4", "JPY_PARENT_PID": "5", "AWS_SECRET_ACCESS_KEY": "6", "HOME": "/home/me",
        "CONDA_TOKEN": "7", "ANYTHING": "8",
    }  # fmt: skip
    kept = clean_environment(given)
    assert set(kept) == {
        "PATH", "LANG", "LC_ALL", "TZ", "CONDA_PREFIX", "https_proxy", "NO_PROXY", "SSL_CERT_FILE", "PYTHONUSERBASE"
    }  # fmt: skip


def test_an_unknown_kernel_is_refused_with_a_near_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_kernelspec(tmp_path, monkeypatch, "analysis")
    check_kernel("analysis")
    with pytest.raises(SettingsError, match="did you mean analysis"):
        check_kernel("analisys")


def test_a_kernel_of_another_language_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_kernelspec(tmp_path, monkeypatch, "ir", language="R")
    with pytest.raises(SettingsError, match="runs R"):
        check_kernel("ir")


async def test_another_kernelspec_is_started_cold_with_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_kernelspec(tmp_path, monkeypatch, "mine", env={"OF_THE_SPEC": "yes"})
    async with session(lambda: open_local("mine")) as repl:
        assert repl.kernel.how == "cold"
        assert await repl.out("import os; print(os.environ['OF_THE_SPEC'], llm_query('a'))") == "yes A"


async def test_a_kernel_that_does_not_come_up_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_kernelspec(tmp_path, monkeypatch, "broken", argv=[sys.executable, "-c", "raise SystemExit('no such package')"])
    environment = await open_local("broken")
    try:
        with pytest.raises(KernelStartError, match="no such package"):
            await Session(environment).start()
    finally:
        await environment.close()


async def test_a_command_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_kernelspec(tmp_path, monkeypatch, "missing", argv=["/nonexistent/python", "-f", "{connection_file}"])
    environment = await open_local("missing")
    try:
        with pytest.raises(KernelStartError, match="FileNotFoundError"):
            await Session(environment).start()
    finally:
        await environment.close()


async def test_a_supervisor_that_cannot_start_is_told(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(KernelStartError, match="did not start"):
        await open_local()
    assert os.listdir(runs) == []


async def test_the_first_kernel_is_forked_and_the_next_one_spare() -> None:
    async with session() as repl:
        assert repl.kernel.how == "forked"
        for _ in range(20):  # one that is asked for before the spare one is up is forked
            await repl.ok("import time; time.sleep(1)")
            second = await Session(repl.environment).start()
            if second.kernel.how == "spare":
                break
        assert second.kernel.how == "spare"
        assert await second.out("print('here')") == "here"


async def test_without_a_spare_every_kernel_is_forked() -> None:
    async with session(lambda: open_local(how="forked")) as repl:
        await repl.ok("import time; time.sleep(0.5)")
        assert [(await Session(repl.environment).start()).kernel.how for _ in range(2)] == ["forked", "forked"]


async def test_many_kernels_leave_nothing_behind() -> None:
    async with session() as repl:
        supervisor = psutil.Process(repl.kernel.pid).parent()
        assert supervisor is not None
        supervisor = supervisor.parent()
        assert supervisor is not None

        async def use() -> None:
            other = await Session(repl.environment).start()
            assert await other.out("print(1)") == "1"
            await other.kernel.close()

        def figures() -> tuple[int, int, int]:
            assert supervisor is not None
            return len(supervisor.children(recursive=True)), supervisor.num_fds(), supervisor.memory_info().rss

        async def least() -> list[int]:
            """Give the least of ten looks: a kernel that is just beginning or ending adds to one, a leak adds to all."""
            looks = []
            for _ in range(10):
                await use()
                looks.append(figures())
            return [min(column) for column in zip(*looks, strict=True)]

        processes, files, memory = await least()
        for _ in range(200):
            await use()
        after = await least()
        zombies = [child for child in supervisor.children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE]
        assert zombies == []
        assert after[0] <= processes + 1
        assert after[1] <= files + 4
        assert after[2] <= memory + 8 * 2**20


async def test_kernels_without_their_warmed_parent_are_started_cold() -> None:
    async with session() as repl:
        parent = psutil.Process(repl.kernel.pid).parent()
        assert parent is not None
        parent.kill()
        with pytest.raises(KernelDied, match="SIGKILL"):
            await repl.run("import time; time.sleep(60)")
        other = await Session(repl.environment).start()
        assert other.kernel.how == "cold"
        assert await other.out("print(llm_query('a'))") == "A"


async def test_environments_run_side_by_side() -> None:
    async with session() as one, session() as two:
        await asyncio.gather(one.ok("mine = 1"), two.ok("mine = 2"))
        assert (await one.out("print(mine)"), await two.out("print(mine)")) == ("1", "2")


async def test_a_closed_environment_says_so() -> None:
    async with session() as repl:
        pass
    with pytest.raises(KernelDied, match="closed"):
        await repl.run("1")
    with pytest.raises(KernelDied, match="closed"):
        await Session(repl.environment).start()
    await repl.kernel.close()
    await repl.environment.close()


async def test_an_ipykernel_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ipykernel").mkdir()
    (tmp_path / "ipykernel" / "__init__.py").write_text("raise ImportError('ipykernel is broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for how in ("spare", "cold"):
        environment = await open_local(how=how)
        try:
            with pytest.raises(KernelStartError, match="ipykernel is broken here"):
                await Session(environment).start()
        finally:
            await environment.close()


async def test_a_parent_that_ends_before_it_forks_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traitlets.py").write_text("import os, sys\nif 'ipykernel_launcher' in sys.argv[0]: os._exit(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = await open_local()
    try:
        with pytest.raises(KernelStartError, match=r"forked from (has ended|is gone)|its process ended with exit status 1"):
            await asyncio.wait_for(Session(environment).start(), 60)
    finally:
        await environment.close()


async def test_kernels_start_cold_while_the_parent_is_silent_and_are_forked_again_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent waits in an import until somebody writes to a pipe; what it forks then is let go, and it is not killed."""
    os.mkfifo(tmp_path / "go")
    (tmp_path / "pdb.py").write_text(
        "import sys\nfrom importlib.machinery import PathFinder\n"
        f"if sys.argv[0] == 'ipykernel_launcher': open({str(tmp_path / 'go')!r}).read()\n"
        f"found = PathFinder.find_spec('pdb', [path for path in sys.path if path != {str(tmp_path)!r}])\n"
        "exec(found.loader.get_code('pdb'), globals())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = await open_local(fork_seconds=0.2)
    try:
        first = await asyncio.wait_for(Session(environment).start(), 60)
        assert first.kernel.how == "cold"
        with await anyio.to_thread.run_sync(open, tmp_path / "go", "w"):
            pass
        forked = await Session(environment).start()
        with anyio.fail_after(60):
            while forked.kernel.how == "cold":
                await forked.kernel.close()
                forked = await Session(environment).start()
        await first.kernel.close()
        assert await forked.out("print(llm_query('well'))") == "WELL"
    finally:
        await environment.close()


async def test_the_users_list_of_fonts_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fontlist-v0.json").write_text("{}")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    async with session() as repl:
        assert await repl.out("import os; print(os.listdir(os.environ['MPLCONFIGDIR']))") == "['fontlist-v0.json']"

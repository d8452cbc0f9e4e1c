"""Promises of the docker environment as a user meets them: what is told, what is refused, and what is never handed over."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from IPython.core.error import UsageError

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.events import RunStarted
from rlm_jupyter.kernels.client import Engine as EngineFacts
from rlm_jupyter.kernels.client import find
from rlm_jupyter.kernels.docker import check_box, make_box, open_docker
from rlm_jupyter.settings import MIB, RunSettings
from rlm_jupyter.testing import ScriptedServer
from tests.boxes import MARK, Marked, box_of, derived_image, marked_image
from tests.conformance.driving import session
from tests.models import answer, code, scripted
from tests.shells import Shell, open_shell

pytestmark = [pytest.mark.anyio, pytest.mark.needs("docker")]

CANARY = "canary-4711-of-the-host"
SOON = 60.0
"""Seconds that a refusal may take on a busy machine. It is promised within 5."""


@pytest.fixture(scope="module")
def marked() -> Iterator[Marked]:
    with marked_image(derived_image()) as image:
        yield image


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with open_shell() as shell:
        shell.run("docs = ['one', 'two']; large = bytes(150_000_000)")
        yield shell


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(models={"root": [answer()], "sub": []}) as server:
        yield server


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, in which nobody else's lie."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def imported(marked: Marked, name: str, content: bytes) -> str:
    """Make an image of one file, marked like the others."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    made = f"rlm-test-{name.replace('/', '-')}:{marked.name.partition(':')[2]}"
    marked.engine.run("import", "--change", f"LABEL {MARK}={marked.name}", "-", made, data=data.getvalue())
    return made


def no_client(monkeypatch: pytest.MonkeyPatch, folder: Path, marked: Marked) -> str:
    monkeypatch.setenv("PATH", str(folder))
    return f"--image {marked.name}"


def no_engine(monkeypatch: pytest.MonkeyPatch, folder: Path, marked: Marked) -> str:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/nobody.sock")
    return f"--image {marked.name}"


def no_permission(monkeypatch: pytest.MonkeyPatch, folder: Path, marked: Marked) -> str:
    if os.getuid() != 0:
        pytest.skip("only root can be somebody who may not speak to the engine")
    client = find().program
    wrapper = folder / "docker"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {client} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", "/")
    return f"--image {marked.name}"


def no_context(monkeypatch: pytest.MonkeyPatch, folder: Path, marked: Marked) -> str:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return f"--image {marked.name}"


def without_python(monkeypatch: pytest.MonkeyPatch, folder: Path, marked: Marked) -> str:
    return f"--image {imported(marked, 'readme', b'nothing here')}"


def of_another_processor(monkeypatch: pytest.MonkeyPatch, folder: Path, marked: Marked) -> str:
    # The head of an ELF file of a machine that nobody has: class 64, little endian, type EXEC, machine 0x7fff.
    foreign = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\x7f\x01\x00\x00\x00" + bytes(40)
    return f"--image {imported(marked, 'usr/bin/python3', foreign)}"


def given(options: str) -> Callable[[pytest.MonkeyPatch, Path, Marked], str]:
    return lambda monkeypatch, folder, marked: options.format(image=marked.name)


BAD: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path, Marked], str], str]] = {
    "no client": (no_client, r"neither docker nor podman is on the PATH: install one .*or use --env local"),
    "no engine": (no_engine, r"no docker engine answers \(DOCKER_HOST=unix://.*nobody.sock\): start it .*or use --env local"),
    "no permission": (no_permission, r"no permission to speak to the docker engine: sudo usermod -aG docker \$USER"),
    "no context": (no_context, r"no docker context of that name.*see `docker context ls`, or unset DOCKER_CONTEXT"),
    "an unknown image": (given("--image 127.0.0.1:9/rlm/none:1"), r"no image is named 127.0.0.1:9/rlm/none:1 here, and .*"
                         r"name one with --image NAME that is here"),
    "no name of an image": (given("--image 'no name'"), r"--image 'no name': not an image's name; type one such as"),
    "an image without Python": (without_python, r"--image rlm-test-readme.*Python.*choose one that has"),
    "an image for another processor": (of_another_processor, r"another kind of processor .*choose an image for this one"),
    "too little memory": (given("--image {image} --memory 64m"), r"--memory 64m is too small .*: type --memory 257m or more"),
    "too little for the context": (given("--image {image} --memory 512m --context large"),
                                   r"--memory 512m is too small for a context of 143.1 MiB: type --memory 543m or more"),
    "no size": (given("--image {image} --memory lots"), r"--memory must be a size, such as 4g or 512m, not 'lots'"),
    "more memory than there is": (given("--image {image} --memory 90000g"), r"--memory 90000g: this engine has .* in all"),
    "more processors than there are": (given("--image {image} --cpus 4000"), r"--cpus 4000: this engine has \d+"),
    "an unknown network": (given("--image {image} --docker-network bridg"), r"no such network; did you mean bridge\?"),
    "an option of another place": (given("--image {image} --kernel python3"), r"--kernel is for --env local; this run is"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_p24_what_is_wrong_is_one_line_and_nothing_is_started_or_spent(
    name: str, shell: Shell, server: ScriptedServer, marked: Marked, tmp_path: Path, temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    prepare, told = BAD[name]
    with monkeypatch.context() as changed:
        options = prepare(changed, tmp_path, marked)
        if "--context" not in options:
            options += " --context docs"
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        began = time.monotonic()
        ran = shell.run(f"%%rlm --env docker --base-url {server.url} --model root --sub-model sub {options} --out result\nWho?")
        seconds = time.monotonic() - began
        started = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert isinstance(ran.error, UsageError), ran.output
    line = str(ran.error)
    assert line.count("\n") == 0
    assert re.search(told, line), line
    assert seconds < SOON
    assert started == []
    assert os.listdir(temporary) == []
    assert server.requests == []
    assert "result" not in shell.namespace
    assert marked.gone()


def test_p24_a_context_that_this_engine_cannot_hold_is_refused(marked: Marked) -> None:
    small = EngineFacts("docker", "20", "linux", "x86_64", 1024 * MIB, 2)
    box = box_of(marked)
    settings = RunSettings(model="demo", environment="docker")
    with pytest.raises(SettingsError, match=r"a context of 600 MiB needs 1.4 GiB .*this engine has 1 GiB: use --env local"):
        check_box(settings, box.client, small, 600 * MIB)
    check_box(settings, box.client, small, 300 * MIB)
    assert make_box(settings, box.client, small, box.image, 300 * MIB).memory == 1024 * MIB


# Isolation


def test_p02_a_box_that_does_not_start_fails_the_run_and_nothing_runs_here(marked: Marked, tmp_path: Path) -> None:
    trap = tmp_path / "run-here"
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    turns = [code(f"open({str(trap)!r}, 'w').write('x')"), answer()]
    place = {"image": marked.name, "gpus": "all"}
    with scripted(turns, environment="docker", environment_kwargs=place) as (rlm, server):
        result = rlm.start("c", "q?").wait(60)
        started = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert result.status == "failed"
    assert isinstance(result.error, KernelStartError)
    assert "--gpus: this engine has no support for GPUs" in str(result.error)
    assert (server.requests, started) == ([], [])
    assert not trap.exists()
    assert marked.gone()


@pytest.mark.parametrize("network", [None, "host"])
def test_p02_the_view_tells_the_isolation_that_there_is(marked: Marked, network: str | None) -> None:
    place = {"image": marked.name, "memory": "300m", **({"docker_network": network} if network else {})}
    look = "import os\nlimit = [open(path).read().strip() for path in ('/sys/fs/cgroup/memory/memory.limit_in_bytes', "
    look += "'/sys/fs/cgroup/memory.max') if os.path.exists(path)][0]\nanswer = [os.listdir('/sys/class/net'), int(limit)]"
    with scripted([code(f"{look}\nFINAL_VAR(answer)")], environment="docker", environment_kwargs=place) as (rlm, _):
        result = rlm.completion("c", root_prompt="q?")
    (told,) = [event.isolation for event in result.trace.events if isinstance(event, RunStarted)]
    devices, limit = result.value
    assert ("no network" in told) == (devices == ["lo"]) == (network is None)
    assert ("this machine's own network" in told) == (network == "host")
    assert limit == 300 * MIB
    assert "isolated: a container of" in told
    assert "300 MiB, 2 CPUs" in told
    assert result.trace.isolation == told


def test_p02_the_isolation_is_told_in_the_notebook(shell: Shell, marked: Marked) -> None:
    with ScriptedServer(models={"root": [answer()], "sub": []}) as server:
        options = f"--env docker --image {marked.name} --base-url {server.url} --model root --sub-model sub --view text"
        ran = shell.run(f"%%rlm {options} --out result\nWho?")
    assert ran.error is None, ran.output
    assert shell.namespace.pop("result").value == "done"
    assert "no network" in " ".join(ran.output.split())
    assert "a read-only root, nothing mounted" in " ".join(ran.output.split())


LOOK = f"""
import gc, glob, os, pathlib
needle = {CANARY[:9]!r} + {CANARY[9:]!r}
found = [name for name, value in os.environ.items() if needle in value]
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try:
        if needle.encode() in pathlib.Path(path).read_bytes():
            found.append(path)
    except PermissionError:
        pass
looked = 0
for root in ("/tmp", "/dev/shm", "/etc", "/run", "/root", "/home"):
    for folder, _, names in os.walk(root):
        for name in names:
            path = pathlib.Path(folder, name)
            if path.is_file() and os.access(path, os.R_OK):
                looked += 1
                if needle.encode() in path.read_bytes():
                    found.append(str(path))
for each in gc.get_objects():
    if type(each) is dict and "needle" not in each and needle in map(str, list(each.values())[:50]):
        found.append(sorted(map(str, each)))
print(looked > 5, found)
"""


async def test_p03_no_secret_of_the_host_reaches_a_box(marked: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "MODAL_TOKEN_SECRET", "JUPYTER_TOKEN", "JPY_API_TOKEN", "MY_OWN_VARIABLE"):
        monkeypatch.setenv(name, CANARY)
    proxy = f"http://user:{CANARY}@127.0.0.1:9"
    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    config = tmp_path / "config"
    config.mkdir()
    proxies = dict.fromkeys(("httpProxy", "httpsProxy", "ftpProxy", "noProxy", "allProxy"), proxy)
    auths = {"registry.example": {"auth": CANARY}}
    (config / "config.json").write_text(json.dumps({"proxies": {"default": proxies}, "auths": auths}))
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    record, client = tmp_path / "sent", tmp_path / "docker"
    # The real client, with all that this process sends to a box written down on its way.
    real = find().program
    client.write_text(f'#!/bin/sh\nif [ "$1" = run ]; then tee {record} | {real} "$@"; else exec {real} "$@"; fi\n')
    client.chmod(0o755)
    monkeypatch.setenv("RLM_CONTAINER_CLIENT", str(client))
    async with session(partial(open_docker, box_of(marked))) as repl:
        await repl.load("the context")
        assert await repl.out(LOOK) == "True []"
        assert CANARY not in json.dumps(marked.engine.inspect(marked.box()))
    sent = record.read_bytes()
    assert b"class Hub" in sent
    assert b"the context" in sent
    assert CANARY.encode() not in sent

"""The derived image: made once, found by its content, and everything that can be wrong with a user's image told in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pytest

from rlm_jupyter.errors import RLMError, RunStopped, SettingsError
from rlm_jupyter.kernels.client import Client, find
from rlm_jupyter.kernels.commands import Command, Stop
from rlm_jupyter.kernels.images import KEY_LABEL, Image, check_name, default_image, prepare
from rlm_jupyter.kernels.inspection import BUILD_LABEL
from rlm_jupyter.kernels.packages import REMOVER
from tests.deadlines import WAIT
from tests.engine import Engine, EngineError

pytestmark = pytest.mark.timeout(400)
ENGINE = Engine()
CHILD = "--label=rlm_jupyter.test=images"


UNCOMPILED = """
import os, sys, ipykernel.kernelapp, IPython, zmq, dill, pandas, pyarrow, statistics, xml.dom.minidom
specs = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, '__spec__', None)]
compiled = [spec for spec in specs if spec.origin != 'frozen' and spec.cached]
assert len(compiled) > 300
print([spec.name for spec in compiled if not os.path.exists(spec.cached)])
"""


def silent(line: str) -> None:
    """Take a line of progress and do nothing with it."""


def removed() -> None:
    """Wait until the folders that are being removed are gone."""
    for thread in threading.enumerate():
        if thread.name == REMOVER:
            thread.join(60)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test leaves no container of ours and nothing in the temporary folder."""
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    removed()
    assert os.listdir(folder) == []
    if shutil.which("docker"):
        assert ENGINE.containers(f"label={BUILD_LABEL}={os.getpid()}") == set()


@dataclass
class Images:
    """Images that are made for tests and removed after them."""

    names: list[str]

    def new(self) -> str:
        self.names.append(f"rlm-test-image:{os.getpid()}-{len(self.names)}")
        return self.names[-1]

    def imported(self, files: dict[str, bytes]) -> str:
        """Make an image of nothing but these files."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
        name = self.new()
        ENGINE.run("import", "-", name, data=data.getvalue())
        return name

    def changed(self, base: str, code: str = "pass", *changes: str) -> str:
        """Make an image of another one by running code in it as root, and by changes of its settings."""
        name = self.new()
        create = ("create", CHILD, "--network=none", "--user=0", "--entrypoint=python3", base, "-c", code)
        container = ENGINE.run(*create)
        try:
            if code != "pass":
                ENGINE.run("start", "--attach", container)
            ENGINE.run("commit", *(part for change in changes for part in ("--change", change)), container, name)
        finally:
            ENGINE.run("rm", "--force", container)
        return name


@pytest.fixture(scope="module")
def images() -> Iterator[Images]:
    made = Images([])
    yield made
    # What was made on top of them has their label; a stopped making may come to its end in the engine.
    for found in {*ENGINE.run("images", "--quiet", "--filter=label=rlm_jupyter.test=images").split(), *made.names}:
        with contextlib.suppress(EngineError):  # never made, or gone with another
            ENGINE.run("rmi", "--force", found)


@pytest.fixture(scope="module")
def full(docker_image: str) -> Image:
    """The derived image of the base image: made here when this machine has not made it yet, which takes half a minute."""
    return prepare(find(), docker_image, silent)


@pytest.fixture(scope="module")
def without_dill(full: Image, images: Images) -> str:
    """An image that has all that a kernel needs but dill."""
    code = "import shutil, dill, importlib.metadata as m; d = m.distribution('dill')._path; "
    code += "shutil.rmtree(dill.__path__[0]); shutil.rmtree(d)"
    return images.changed(full.reference, code, "USER 1234", 'VOLUME ["/data", "/cache"]')


def fresh(images: Images, base: str) -> str:
    """The same as another image under a new id, so that nothing was ever made of it."""
    return images.changed(base, "pass", f"LABEL rlm_jupyter.test.fresh={os.getpid()}-{len(images.names)}")


def logged(tmp_path: Path) -> tuple[Client, Callable[[], list[str]]]:
    """Give a client that writes its commands down, and what reads them."""
    log = tmp_path / "log"
    wrapper = tmp_path / "docker"
    wrapper.write_text(f'#!/bin/sh\necho "$1 $2" >> {log}\nexec "{find().program}" "$@"\n')
    wrapper.chmod(0o755)
    return Client(str(wrapper), "docker"), lambda: log.read_text().splitlines() if log.exists() else []


def in_box(reference: str, code: str) -> str:
    hard = (
        "--rm",
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--user=65534:65534",
        "--tmpfs=/tmp",
        "--env=HOME=/tmp",
        CHILD,
    )
    return ENGINE.run("run", *hard, "--entrypoint=python3", reference, "-c", code)


@pytest.mark.parametrize(
    "name",
    [
        "-v",
        "--privileged",
        "",
        " ",
        "a b",
        "a\n",
        "Python:3",
        "a//b",
        "a:b:c",
        "a@sha256:12",
        "../x",
        "x" * 600,
        "a$(id)",
        "http://a/b",
        "a:",
    ],
)
def test_a_malformed_name_never_reaches_the_client(name: str) -> None:
    nobody = Client("/nonexistent/docker", "docker")
    if name:
        with pytest.raises(SettingsError, match="not an image's name"):
            prepare(nobody, name, silent)
    else:
        with pytest.raises(SettingsError):
            check_name(name)


@pytest.mark.parametrize(
    "name", ["python:3.11-slim", "a", "localhost:5000/a/b_c:V1", "ghcr.io/x/y@sha256:" + "0" * 64, "sha256:" + "a" * 64]
)
def test_well_formed_names_pass(name: str) -> None:
    check_name(name)


def test_the_default_is_this_pythons_own_minor_version() -> None:
    assert default_image(Client("/x", "docker")) == f"python:3.{sys.version_info.minor}-slim"
    assert default_image(Client("/x", "podman")) == f"docker.io/library/python:3.{sys.version_info.minor}-slim"


@pytest.mark.needs("docker")
def test_an_unknown_image_is_one_line() -> None:
    before = time.monotonic()
    with pytest.raises(SettingsError) as error:
        prepare(find(), "registry.invalid/no/such:1", silent)
    assert time.monotonic() - before < WAIT
    text = str(error.value)
    assert text.startswith("no image is named registry.invalid/no/such:1 here, and the registry cannot be reached")
    assert "docker pull" in text
    assert "\n" not in text


@pytest.mark.needs("docker")
def test_a_registry_that_is_silent_is_given_up_in_time() -> None:
    with socket.socket() as registry:
        registry.bind(("127.0.0.1", 0))
        registry.listen()
        before = time.monotonic()
        with pytest.raises(SettingsError, match="did not end within 10 s"):
            prepare(find(), f"127.0.0.1:{registry.getsockname()[1]}/no/such:1", silent)
        assert time.monotonic() - before < WAIT


@pytest.mark.needs("docker")
def test_an_image_without_python_is_one_line(images: Images) -> None:
    with pytest.raises(SettingsError, match="it has no Python that any user may run"):
        prepare(find(), images.imported({"readme": b"nothing here"}), silent)


@pytest.mark.needs("docker")
def test_an_image_for_another_processor_is_one_line(images: Images) -> None:
    # The head of an ELF file of a machine that nobody has: class 64, little endian, type EXEC, machine 0x7fff.
    foreign = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\x7f\x01\x00\x00\x00" + bytes(40)
    with pytest.raises(SettingsError, match="another kind of processor"):
        prepare(find(), images.imported({"usr/bin/python3": foreign}), silent)


@pytest.mark.needs("docker")
def test_what_an_image_says_of_itself_is_not_taken_on_trust(full: Image, images: Images) -> None:
    honest: dict[str, object] = {
        "version": [3, 11, 2], "interpreter": "/usr/bin/python3", "absent": [], "implementation": "cpython",
        "machine": "x86_64", "threaded": False, "libc": "glibc 2.36", "site": "/usr/lib/python3/dist-packages",
        "installed": {}, "markers": {},
    }  # fmt: skip
    wrong: dict[str, dict[str, object]] = {
        "its Python is 3.9.1, and at least 3.11": {"version": [3, 9, 1]},
        "its Python lacks ctypes": {"absent": ["ctypes"]},
        "is not CPython": {"implementation": "pypy"},
        "its ipykernel is 5.0, and at least 6.31": {"installed": {"ipykernel": "5.0"}},
    }
    lies: list[dict[str, object]] = [
        {"interpreter": '/usr/bin/python3" EVIL="1'}, {"interpreter": "-c"}, {"site": "/a\nb"}, {"machine": "x86_64 -t /"},
        {"libc": "glibc 2.999999999"}, {"version": "3.11"}, {"installed": {"../../x": "1.0"}}, {"installed": [1]},
        {"markers": {"python_version": "3\x1b[2J"}}, {"absent": ["\x1b[2J"]},
    ]  # fmt: skip
    code = "import os, shutil; p = os.path.realpath(shutil.which('python3')); os.unlink(p); "
    code += "f = open(p, 'w'); f.write('#!/bin/sh\\nprintf %s \"$ANSWER\"\\n'); f.close(); os.chmod(p, 0o755)"
    liar = images.changed(full.reference, code)
    cases = [(expected, honest | part) for expected, part in wrong.items()]
    cases += [("does not say what it is as CPython would", honest | part) for part in lies]
    for expected, answer in cases:
        name = images.new()
        container = ENGINE.run("create", CHILD, f"--env=ANSWER=rlm_jupyter:{json.dumps(answer)}", liar)
        ENGINE.run("commit", container, name)
        ENGINE.run("rm", container)
        with pytest.raises(SettingsError, match=expected) as error:
            prepare(find(), name, silent)
        assert "\n" not in str(error.value)
        assert "\x1b" not in str(error.value)


@pytest.mark.needs("docker")
def test_the_derived_image_has_what_a_kernel_needs_in_the_hosts_versions(full: Image) -> None:
    needed = ("ipykernel", "ipython", "jupyter_client", "pyzmq", "dill", "numpy", "pandas", "pyarrow")
    code = "import sys, json, importlib.metadata as m, ipykernel, jupyter_client, zmq, dill, pyarrow, pandas; "
    code += f"assert pandas.DataFrame({{'a': [1]}}).a.sum() == 1; print(json.dumps([m.version(n) for n in {needed!r}])); "
    code += "print(sys.executable, '%d.%d.%d' % sys.version_info[:3])"
    versions, told = in_box(full.reference, code).splitlines()
    if full.python.startswith(f"3.{sys.version_info.minor}."):
        assert json.loads(versions) == [metadata.version(name) for name in needed]
    assert told == f"{full.interpreter} {full.python}"


@pytest.mark.needs("docker")
def test_only_what_is_missing_is_added_once(without_dill: str, images: Images, tmp_path: Path) -> None:
    # As Docker's own images of Python: without compiled files of the standard library.
    code = "import glob, os, sysconfig; "
    code += "[os.unlink(p) for p in glob.glob(sysconfig.get_path('stdlib') + '/**/*.pyc', recursive=True)]"
    base = images.changed(without_dill, code, "USER 1234")
    client, calls = logged(tmp_path)
    told: list[str] = []
    image = prepare(client, base, told.append)
    try:
        assert told[0] == f"making an image with dill on top of {base} (once)"
        assert image.volumes == ("/cache", "/data")
        layer = in_box(
            image.reference, "import importlib.metadata as m, dill; print(m.version('dill'), dill.loads(dill.dumps(5)))"
        )
        assert layer == f"{metadata.version('dill')} 5"
        assert in_box(image.reference, UNCOMPILED) == "[]"
        assert ENGINE.inspect(image.reference)["Config"]["User"] == "1234"
        done = len(calls())
        told.clear()
        assert prepare(client, base, told.append) == image
        assert calls()[done:] == ["image inspect", "image inspect"]
        assert told == []
    finally:
        ENGINE.run("rmi", image.reference)


@pytest.mark.needs("docker")
def test_an_image_that_lacks_nothing_gets_no_layer(full: Image) -> None:
    image = prepare(find(), full.reference, silent)
    try:
        assert ENGINE.inspect(image.reference)["RootFS"]["Layers"][:-1] in (
            ENGINE.inspect(full.reference)["RootFS"]["Layers"],
            ENGINE.inspect(full.reference)["RootFS"]["Layers"][:-1],
        )
    finally:
        ENGINE.run("rmi", image.reference)


@pytest.mark.needs("docker")
@pytest.mark.parametrize("step", ["making", "unpacking", "storing"])
def test_an_interrupt_leaves_nothing(step: str, without_dill: str, images: Images) -> None:
    def interrupt(line: str) -> None:
        if line.startswith(step):
            raise KeyboardInterrupt

    base = fresh(images, without_dill)
    with pytest.raises(KeyboardInterrupt):
        prepare(find(), base, interrupt)
    made = f"--filter=label=rlm_jupyter.test.fresh={base.partition(':')[2]}"
    assert ENGINE.run("images", "--all", "--format={{.Repository}}", made) == "rlm-test-image"


@pytest.mark.needs("docker")
@pytest.mark.parametrize("step", ["making", "unpacking", "storing"])
def test_another_thread_can_stop_it(step: str, without_dill: str, images: Images) -> None:
    stop = Stop()

    def order(line: str) -> None:
        if line.startswith(step):
            threading.Timer(0.1, stop.set).start()

    with pytest.raises(RunStopped):
        prepare(replace(find(), stop=stop), fresh(images, without_dill), order)


@pytest.mark.needs("docker")
def test_a_host_that_is_killed_leaves_no_container_and_its_folder_is_removed_by_the_next(
    without_dill: str, images: Images, nothing_left: Path
) -> None:
    code = "import sys; from rlm_jupyter.kernels import client, images; "
    code += "images.prepare(client.find(), sys.argv[1], lambda line: print(line, flush=True))"
    env = {**os.environ, "TMPDIR": str(nothing_left), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    host = subprocess.Popen([sys.executable, "-c", code, fresh(images, without_dill)], stdout=subprocess.PIPE, env=env)
    events = ("events", "--filter=event=destroy", f"--filter=label={BUILD_LABEL}={host.pid}")
    with host, Command([find().program, *events], seconds=60) as gone:
        assert host.stdout is not None
        while host.stdout.readline() != b"storing the image\n":
            assert host.poll() is None
        host.kill()
        destroyed = gone.lines()
        next(destroyed)
        if ENGINE.containers(f"label={BUILD_LABEL}={host.pid}"):
            next(destroyed)  # the first was the probe's
        assert ENGINE.containers(f"label={BUILD_LABEL}={host.pid}") == set()
    assert [path.name.startswith("rlm-image-") for path in nothing_left.iterdir()] == [True]
    image = prepare(find(), fresh(images, without_dill), silent)
    ENGINE.run("rmi", image.reference)


@pytest.mark.needs("docker")
def test_two_at_once_do_not_harm_each_other(without_dill: str, images: Images) -> None:
    base = fresh(images, without_dill)
    made: list[Image | RLMError] = []

    def make() -> None:
        try:
            made.append(prepare(find(), base, silent))
        except RLMError as error:
            made.append(error)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    first, second = made
    assert isinstance(first, Image)
    assert first == second
    key = first.reference.partition(":")[2]
    assert len(ENGINE.run("images", "--all", "--quiet", f"--filter=label={KEY_LABEL}={key}").split()) == 1
    ENGINE.run("rmi", first.reference)


@pytest.mark.needs("docker")
def test_no_credential_and_no_path_of_this_machine_enters_the_image(
    without_dill: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = {"httpProxy": "http://me:canary7@proxy.invalid:1", "httpsProxy": "http://me:canary7@proxy.invalid:1"}
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": proxy}}))
    base = fresh(images, without_dill)
    with monkeypatch.context() as context:
        context.setenv("DOCKER_CONFIG", str(tmp_path))
        image = prepare(find(), base, silent)
    assert "canary7" not in json.dumps(ENGINE.inspect(image.reference))
    assert "canary7" not in ENGINE.run("history", "--no-trunc", image.reference)
    find_it = (
        f"import pathlib; print([str(p) for p in pathlib.Path('/opt/rlm_jupyter/dill-{metadata.version('dill')}.dist-info')"
    )
    find_it += f".rglob('*') if p.is_file() and {sys.prefix!r}.encode() in p.read_bytes()])"
    assert in_box(image.reference, find_it) == "[]"
    ENGINE.run("rmi", image.reference)

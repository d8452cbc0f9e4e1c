"""A box is started as the docs say, and its code can do no more than they say."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlm_jupyter.kernels.client import Client
from rlm_jupyter.kernels.docker import Box, open_docker
from tests.boxes import Marked, box_of, derived_image, environment_of, marked_image
from tests.conformance.driving import Session, session

pytestmark = [pytest.mark.anyio, pytest.mark.needs("docker")]

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"
OF_THE_ENGINE = {"CgroupnsMode", "ConsoleSize", "MaskedPaths", "ReadonlyPaths", "RestartPolicy", "Runtime"}
"""What the engine sets in HostConfig by itself, whatever it is asked for."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def marked() -> Iterator[Marked]:
    with marked_image(derived_image()) as image:
        yield image


@pytest.fixture(scope="module")
def box(marked: Marked) -> Box:
    return box_of(marked)


@pytest.fixture(scope="module")
async def repl(box: Box, anyio_backend: str) -> AsyncIterator[Session]:
    """One box for all tests that only look around in it."""
    async with session(partial(open_docker, box)) as opened:
        yield opened


def settings_of_the_page(values: dict[str, object]) -> tuple[list[str], list[tuple[str, Any]]]:
    """Read the table: what is given to `docker run`, and what `docker inspect` says of it."""
    section = PAGE.read_text(encoding="utf-8").partition("## Settings of a box\n")[2].partition("\n## ")[0]
    for name, value in values.items():
        section = section.replace(f"{{{name}}}", str(value))
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")][1:]
    given = [option for row in rows for option in re.findall(r"`(--[^`]+)`", row[0])]
    seen = [option.partition(" = ")[::2] for row in rows for option in re.findall(r"`([A-Z][^`]+)`", row[1])]
    return given, [(path, json.loads(value)) for path, value in seen]


def at(info: Any, path: str) -> Any:
    """Give what `docker inspect` has at a path; names may hold points themselves."""
    if path in info:
        return info[path]
    head, _, rest = path.partition(".")
    return at(info[head], rest)


async def test_p23_docs_command_and_running_box_agree(box: Box, repl: Session, marked: Marked) -> None:
    info = marked.engine.inspect(marked.box())
    name = info["Name"].removeprefix("/")
    given, seen = settings_of_the_page({
        "name": name, "memory": box.memory, "scratch": box.scratch, "cpus": f"{box.cpus:g}", "network": "none",
        "nanocpus": int(box.cpus * 1e9), "interpreter": box.image.interpreter,
    })  # fmt: skip
    command = box.arguments(name)
    assert command[1] == "run"
    assert sorted(command[2 : command.index(box.image.reference)]) == sorted(given)
    assert len(seen) > 30
    assert {path: at(info, path) for path, _ in seen} == dict(seen)
    named = {path.split(".")[1] for path, _ in seen if path.startswith("HostConfig.")}
    others = {key: value for key, value in info["HostConfig"].items() if key not in named | OF_THE_ENGINE}
    assert {key: value for key, value in others.items() if value} == {}
    assert info["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert set(info["NetworkSettings"]["Networks"]) == {"none"}


async def test_p23_podman_is_given_the_same_but_for_its_own_folders(box: Box) -> None:
    theirs = dataclasses.replace(box, client=Client("/usr/bin/podman", "podman")).arguments("x")[2:]
    ours = box.arguments("x")[2:]
    assert set(theirs) - set(ours) == {
        "--read-only-tmpfs=false", f"--tmpfs=/tmp:rw,nosuid,nodev,noexec,mode=1777,size={box.scratch}"
    }  # fmt: skip
    assert len(theirs) == len(ours) + 1


async def test_p23_the_engine_itself_confirms_it_from_inside(repl: Session) -> None:
    code = """
import json, os
status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([os.getresuid(), os.getresgid(), {name: status[name].strip() for name in
      ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")}]))
"""
    users, groups, status = json.loads(await repl.out(code))
    assert (users, groups) == ([65534] * 3, [65534] * 3)
    assert {status[name] for name in status if name.startswith("Cap")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "65534")


async def test_there_is_no_network_no_route_and_no_name(repl: Session) -> None:
    code = """
import json, os, socket
def tried(act):
    try:
        return repr(act())
    except OSError as error:
        return type(error).__name__
def connect(family, kind, address):
    with socket.socket(family, kind) as there:
        there.settimeout(5)
        there.connect(address)
        return there.send(b"x")
names = [tried(lambda: socket.getaddrinfo(name, 80)) for name in ("example.com", "host.docker.internal", "pypi.org")]
asked = [tried(lambda: connect(socket.AF_INET, kind, (host, port))) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
         for host in ("1.1.1.1", "172.17.0.1", "10.0.2.2", "169.254.169.254") for port in (53, 80)]
asked.append(tried(lambda: connect(socket.AF_INET6, socket.SOCK_DGRAM, ("2606:4700:4700::1111", 53))))
raw = [tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)), tried(lambda: socket.socket(17, socket.SOCK_RAW))]
routes = [line for table in ("route", "ipv6_route") if os.path.exists(f"/proc/net/{table}")
          for line in open(f"/proc/net/{table}").read().splitlines() if line[:5] != "Iface" and line[-2:] != "lo"]
print(json.dumps([os.listdir("/sys/class/net"), routes, names, asked, raw]))
"""
    devices, routes, names, asked, raw = json.loads(await repl.out(code))
    assert (devices, routes) == (["lo"], [])
    assert set(names) == {"gaierror"}
    assert len(asked) == 17
    assert set(asked) == {"OSError"}
    assert set(raw) == {"PermissionError"}


async def test_nothing_can_be_written_but_the_folders_in_memory(repl: Session) -> None:
    code = """
import json, os
kinds = {}
for line in open("/proc/self/mounts"):
    device, place, kind, options = line.split()[:4]
    kinds[place] = (kind, "ro" not in options.split(","))
def of(path):
    while path not in kinds:
        path = os.path.dirname(path)
    return path
made, opened, folders = set(), set(), 0
for folder, inner, names in os.walk("/"):
    inner[:] = [name for name in inner if os.path.join(folder, name) not in ("/proc", "/sys")]
    folders += 1
    try:
        file = os.path.join(folder, "rlm-test")
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY))
        os.unlink(file)
        made.add(of(folder))
    except OSError:
        pass
    for name in names:
        file = os.path.join(folder, name)
        if not of(file).startswith("/tmp") and os.path.isfile(file) and os.access(file, os.W_OK):
            opened.add(file)
for root in ("/proc/sys", "/sys"):
    for folder, _, names in os.walk(root):
        opened.update(file for file in (os.path.join(folder, name) for name in names)
                      if os.path.isfile(file) and os.access(file, os.W_OK))
writable = sorted(kind for kind, changeable in kinds.values() if changeable)
print(json.dumps([sorted(made), sorted(opened), folders, sorted(set(writable)), kinds["/"], kinds["/tmp"]]))
"""
    made, opened, folders, writable, root, scratch = json.loads(await repl.out(code))
    assert folders > 1000
    assert set(made) <= {"/tmp", "/dev/shm", "/dev/mqueue"}
    assert "/tmp" in made
    assert opened == []
    assert set(writable) <= {"tmpfs", "proc", "devpts", "mqueue"}
    assert root[1] is False
    assert scratch == ["tmpfs", True]


async def test_no_other_process_is_seen_and_the_first_one_cannot_be_read_or_ended(repl: Session) -> None:
    code = """
import ctypes, json, os, signal
own = {}
for name in filter(str.isdigit, os.listdir("/proc")):
    own[int(name)] = [os.stat(f"/proc/{name}/cmdline").st_uid, open(f"/proc/{name}/comm").read().strip()]
def tried(act):
    try:
        return repr(act())
    except OSError as error:
        return type(error).__name__
secret = ("environ", "mem", "maps", "auxv", "stack", "io")
reads = {what: tried(lambda: open(f"/proc/1/{what}", "rb").read(1)) for what in secret}
reads["fd"] = tried(lambda: os.listdir("/proc/1/fd"))
reads["root"] = tried(lambda: os.listdir("/proc/1/root"))
reads["cwd"] = tried(lambda: os.readlink("/proc/1/cwd"))
# What kernels are forked from holds the standard error of the first one.
reads["fd of the parent"] = tried(lambda: os.listdir(f"/proc/{os.getppid()}/fd"))
libc = ctypes.CDLL(None, use_errno=True)
traced = libc.ptrace(16, 1, 0, 0)
for number in signal.valid_signals() - {signal.SIGSTOP}:
    os.kill(1, number)
print(json.dumps([own, reads, traced, os.path.exists("/proc/1/cmdline")]))
"""
    own, reads, traced, there = json.loads(await repl.out(code))
    assert len(own) <= 4
    assert {name for _, name in own.values()} == {"python3"}
    assert set(reads.values()) == {"PermissionError"}, reads
    assert (traced, there) == (-1, True)
    assert await repl.out("print(llm_query('still here'))") == "STILL HERE"


async def test_nothing_of_the_host_is_in_it(repl: Session, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    code = f"""
import json, os, stat
own = [line.split()[4] for line in open("/proc/self/mountinfo") if not line.split(" - ")[1].startswith(
       ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "overlay", "fuse-overlayfs", "btrfs", "zfs"))]
sockets = []
for folder, inner, names in os.walk("/"):
    inner[:] = [name for name in inner if os.path.join(folder, name) not in ("/proc", "/sys")]
    for name in names:
        try:
            mode = os.lstat(os.path.join(folder, name)).st_mode
        except OSError:
            continue
        if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
            sockets.append(os.path.join(folder, name))
there = [path for path in ({str(tmp_path)!r}, {str(Path(__file__).parent)!r}, "/var/run/docker.sock") if os.path.exists(path)]
abstract = [line.split()[-1] for line in open("/proc/net/unix").read().splitlines()[1:] if len(line.split()) > 7]
print(json.dumps([sorted(own), sockets, there, abstract, open("/etc/hosts").read(), sorted(os.listdir("/dev"))]))
"""
    own, sockets, there, abstract, hosts, devices = json.loads(await repl.out(code))
    assert set(own) <= {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
    assert [path for path in [*sockets, *abstract] if not path.startswith("/tmp/rlm/")] == []
    assert there == []
    assert not re.search(r"^(?!127\.|::1|f[ef]0)[0-9a-f]", hosts, re.MULTILINE), hosts
    assert set(devices) <= {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    }  # fmt: skip


async def test_the_environment_is_the_images_and_a_short_list(repl: Session, marked: Marked) -> None:
    theirs = environment_of(marked.engine.inspect(marked.box()))
    image = environment_of(marked.engine.inspect(marked.name))
    proxies = {name for name in theirs if name.lower().endswith("_proxy")}
    assert {theirs[name] for name in proxies} == {""}
    assert set(theirs) == {*image, *proxies, "LANG", "USER", "LOGNAME", "HOME"}
    inside = json.loads(await repl.out("import json, os; print(json.dumps(dict(os.environ)))"))
    ours = {"PATH", "HOSTNAME", "TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR", "TERM", "CLICOLOR", "PAGER", "GIT_PAGER", "MPLBACKEND"}
    assert set(inside) <= {*theirs, *ours}

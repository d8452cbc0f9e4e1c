"""The local Modal control plane, met through the unmodified SDK: what our tests of the `modal` environment stand on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
import requests

from tests.modal_local.plane import LocalModal

pytestmark = [pytest.mark.matrix, pytest.mark.needs("bwrap")]
MEGABYTE = 1 << 20
WAIT = 60
SERVE = "import http.server as h, sys; h.ThreadingHTTPServer((sys.argv[1], 8080), h.SimpleHTTPRequestHandler).serve_forever()"
STREAM = """
import time
from flask import Flask, Response
app = Flask("stream")

@app.get("/")
@app.get("/short")
def stream(rest=None):
    from flask import request
    def parts():
        yield "first\\n"
        time.sleep(0.1 if request.path == "/short" else 100)
        yield "last\\n"
    from flask import stream_with_context
    return Response(stream_with_context(parts()))

import waitress
waitress.serve(app, host="0.0.0.0", port=8080)
"""
ECHO_LINES = "import sys\nfor line in sys.stdin: print('got', line.strip(), flush=True)"
REACH = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close(); print('reached')"


@pytest.fixture
def app(local_modal: LocalModal) -> modal.App:
    return modal.App.lookup("local-tests", create_if_missing=True)


@pytest.fixture
def sandbox(app: modal.App) -> modal.Sandbox:
    return modal.Sandbox.create(app=app, timeout=300, outbound_cidr_allowlist=[])


def data_of(size: int) -> bytes:
    return os.urandom(MEGABYTE) * (size // MEGABYTE)


def send(process: Any, data: bytes) -> threading.Thread:
    """Send data to a process's standard input from a thread of its own, a megabyte at a time."""

    def work() -> None:
        for at in range(0, len(data), MEGABYTE):
            process.stdin.write(data[at : at + MEGABYTE])
            process.stdin.drain()
        process.stdin.write_eof()
        process.stdin.drain()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def receive(process: Any) -> tuple[str, int, int]:
    """Give the digest of all that a process prints, how much it was, and its largest piece."""
    digest, size, largest = hashlib.sha256(), 0, 0
    for piece in process.stdout:
        digest.update(piece)
        size, largest = size + len(piece), max(largest, len(piece))
    return digest.hexdigest(), size, largest


def test_exec_runs_in_a_root_and_among_processes_of_its_own(sandbox: modal.Sandbox) -> None:
    process = sandbox.exec("sh", "-c", "echo to one; echo to two >&2; exit 3")
    assert (process.stdout.read(), process.stderr.read(), process.wait()) == ("to one\n", "to two\n", 3)
    look = f"id -u; ls /root /home /tmp /run; ls /proc | grep -c '^[0-9]'; ls -d {Path(__file__).parent} 2>&1; pwd"
    inside = sandbox.exec("sh", "-c", look)
    lines = inside.stdout.read().splitlines()
    assert lines[0] == "0"
    assert int(lines[-3]) < 10, "only the sandbox's own processes"
    assert "No such file" in lines[-2]
    assert lines[-1] == "/root"
    modules = sandbox.exec("python", "-c", "import flask, waitress, ipykernel, zmq, dill, numpy, pandas, pyarrow; print('all')")
    assert modules.stdout.read() == "all\n"


def test_what_is_asked_for_is_recorded_as_it_was_asked(local_modal: LocalModal, app: modal.App) -> None:
    image = modal.Image.debian_slim(python_version="3.11").pip_install("numpy", "flask")
    sandbox = modal.Sandbox.create(
        "sleep", "100", app=app, image=image, cpu=2, memory=512, timeout=120, idle_timeout=60, region="us-east",
        outbound_domain_allowlist=["example.com"], encrypted_ports=[8080], workdir="/data", tags={"of": "me"},
        secrets=[modal.Secret.from_dict({"WORD": "hush"})],
        volumes={"/vol": modal.Volume.from_name("local-tests", create_if_missing=True)},
    )  # fmt: skip
    created = local_modal.created(sandbox.object_id)
    asked = created.definition
    assert (created.backend, created.app) == ("V2", "local-tests")
    assert created.request["tags"] == [{"tag_name": "of", "tag_value": "me"}]
    assert (asked["timeout_secs"], asked["idle_timeout_secs"], asked["workdir"]) == (120, 60, "/data")
    assert asked["network_access"] == {"network_access_type": "ALLOWLIST", "allowed_domains": ["example.com"]}
    assert asked["open_ports"] == {"ports": [{"port": 8080}]}
    assert (asked["resources"]["milli_cpu"], asked["resources"]["memory_mb"]) == (2000, 512)
    assert asked["scheduler_placement"]["regions"] == ["us-east"]
    assert asked["volume_mounts"][0]["mount_path"] == "/vol"
    commands = [line for layer in local_modal.image(asked["image_id"]) for line in layer["dockerfile_commands"]]
    assert any("pip install" in line and "flask" in line and "numpy" in line for line in commands)
    assert sandbox.exec("sh", "-c", "pwd; echo $WORD").stdout.read() == "/data\nhush\n"


def test_a_gpu_goes_to_the_first_back_end_and_runs(local_modal: LocalModal, app: modal.App) -> None:
    sandbox = modal.Sandbox.create("sh", "-c", "read word; echo $word $MORE", app=app, gpu="T4", env={"MORE": "more"})
    created = local_modal.created(sandbox.object_id)
    assert (created.backend, created.definition["resources"]["gpu_config"]["gpu_type"]) == ("V1", "T4")
    assert sandbox.exec("echo", "hi").stdout.read() == "hi\n"
    sandbox.stdin.write("some\n")
    sandbox.stdin.drain()
    assert sandbox.stdout.read() == "some more\n"
    sandbox.wait()
    assert sandbox.returncode == 0


def test_standard_streams_are_live_both_ways(sandbox: modal.Sandbox) -> None:
    process = sandbox.exec("python", "-c", ECHO_LINES, bufsize=1)
    lines = iter(process.stdout)
    for number in range(5):
        process.stdin.write(f"{number}\n")
        process.stdin.drain()
        assert next(lines) == f"got {number}\n"
    process.stdin.write_eof()
    process.stdin.drain()
    assert list(lines) == []
    assert process.wait() == 0


def test_100_mb_pass_through_a_process_both_ways(sandbox: modal.Sandbox, record_property: Any) -> None:
    data = data_of(100 * MEGABYTE)
    process = sandbox.exec("cat", text=False)
    began = time.monotonic()
    sending = send(process, data)
    digest, size, largest = receive(process)
    record_property("seconds", time.monotonic() - began)
    sending.join(WAIT)
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert largest <= 256 << 10
    assert process.wait() == 0


def test_streams_go_on_where_they_were_after_the_connection_is_cut(local_modal: LocalModal, sandbox: modal.Sandbox) -> None:
    data = data_of(40 * MEGABYTE)
    process = sandbox.exec("cat", text=False)
    before = local_modal.told().connections["router"]
    local_modal.router.after(25 * MEGABYTE)
    sending = send(process, data)
    digest, size, _ = receive(process)
    sending.join(WAIT)
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert local_modal.told().connections["router"] > before
    assert process.wait() == 0


def test_a_reader_may_come_late_and_a_flood_waits_for_it(sandbox: modal.Sandbox) -> None:
    process = sandbox.exec("sh", "-c", "head -c 80000000 /dev/zero; echo done >&2", text=False)
    assert process.poll() is None, "held up by its pipe"
    digest, size, _ = receive(process)
    assert (size, digest) == (80_000_000, hashlib.sha256(bytes(80_000_000)).hexdigest())
    assert process.stderr.read() == b"done\n"


def test_an_exec_that_takes_too_long_is_killed(sandbox: modal.Sandbox) -> None:
    process = sandbox.exec("sleep", "1000", timeout=1)
    assert process.wait() in (-1, 137), "the client's own deadline, or what became of the process, whichever is first"
    gone = sandbox.exec("sh", "-c", "while grep -lz ^1000 /proc/[0-9]*/cmdline; do sleep 0.1; done", timeout=WAIT)
    assert gone.wait() == 0


def test_files_of_100_mb_arrive_whole(sandbox: modal.Sandbox, record_property: Any) -> None:
    data, files = data_of(100 * MEGABYTE), sandbox.filesystem
    began = time.monotonic()
    files.write_bytes(data, "/data/in/big.bin")
    record_property("seconds", time.monotonic() - began)
    digest = sandbox.exec("sha256sum", "/data/in/big.bin").stdout.read().split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    assert hashlib.sha256(files.read_bytes("/data/in/big.bin")).hexdigest() == digest


def test_files_arrive_whole_though_the_connection_is_cut(
    local_modal: LocalModal, sandbox: modal.Sandbox, tmp_path: Path
) -> None:
    data, files = data_of(20 * MEGABYTE), sandbox.filesystem
    (tmp_path / "local").write_bytes(data)
    local_modal.router.after(8 * MEGABYTE)
    files.copy_from_local(tmp_path / "local", "/data/big.bin")
    digest = hashlib.sha256(data).hexdigest()
    assert sandbox.exec("sha256sum", "/data/big.bin").stdout.read().split()[0] == digest
    local_modal.router.after(8 * MEGABYTE)
    files.copy_to_local("/data/big.bin", tmp_path / "back")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest


def test_files_can_be_listed_made_removed_and_watched(sandbox: modal.Sandbox) -> None:
    files = sandbox.filesystem
    files.make_directory("/data/a")
    files.write_text("text", "/data/b.txt")
    sandbox.exec("ln", "-s", "b.txt", "/data/link").wait()
    listed = {entry.name: (entry.type.value, entry.size) for entry in files.list_files("/data")}
    assert listed.keys() == {"a", "b.txt", "link"}
    assert (listed["a"][0], listed["b.txt"], listed["link"][0]) == ("directory", ("file", 4), "symlink")
    assert files.stat("/data/link").symlink_target == "b.txt"
    with pytest.raises(modal.exception.SandboxFilesystemNotFoundError):
        files.read_bytes("/data/none")
    with pytest.raises(modal.exception.SandboxFilesystemIsADirectoryError):
        files.write_bytes(b"x", "/data/a")
    with pytest.raises(modal.exception.SandboxFilesystemNotADirectoryError):
        files.write_bytes(b"x", "/data/b.txt/c")
    files.write_text("x", "/data/a/x")
    with pytest.raises(modal.exception.SandboxFilesystemDirectoryNotEmptyError):
        files.remove("/data/a")
    files.remove("/data/a", recursive=True)
    assert {entry.name for entry in files.list_files("/data")} == {"b.txt", "link"}
    sandbox.exec("sh", "-c", "while sleep 0.1; do echo more >/data/c.txt; rm /data/c.txt; done")
    seen = {(event.type.value, *event.paths) for event in files.watch("/data", timeout=4)}
    assert {("Create", "/data/c.txt"), ("Modify", "/data/c.txt"), ("Remove", "/data/c.txt")} <= seen


def test_a_tunnel_speaks_tls_of_the_authority_and_reaches_the_sandboxs_address_only(app: modal.App) -> None:
    probe = modal.Probe.with_tcp(8080)
    served = modal.Sandbox.create(
        "python", "-c", SERVE, "0.0.0.0", app=app, encrypted_ports=[8080], readiness_probe=probe, outbound_cidr_allowlist=[]
    )
    served.wait_until_ready(timeout=WAIT)
    url = served.tunnels()[8080].url
    assert url.startswith("https://127.0.0.1:")
    assert requests.get(f"{url}/", timeout=WAIT).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{url}/", timeout=WAIT, verify=certifi_alone())
    private = modal.Sandbox.create("python", "-c", SERVE, "127.0.0.1", app=app, encrypted_ports=[8080], readiness_probe=probe)
    with pytest.raises(modal.exception.TimeoutError):
        private.wait_until_ready(timeout=2)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"{private.tunnels()[8080].url}/", timeout=WAIT)


def certifi_alone() -> str:
    import certifi

    return certifi.where()


def test_an_unencrypted_port_is_plain(app: modal.App) -> None:
    served = modal.Sandbox.create(
        "python", "-c", SERVE, "0.0.0.0", app=app, unencrypted_ports=[8080],
        readiness_probe=modal.Probe.with_exec("sh", "-c", "echo >/dev/null </dev/tcp/127.0.0.1/8080 || python -c "
                                              "'import socket; socket.create_connection((\"127.0.0.1\", 8080))'"),
    )  # fmt: skip
    served.wait_until_ready(timeout=WAIT)
    host, port = served.tunnels()[8080].tcp_socket
    assert requests.get(f"http://{host}:{port}/", timeout=WAIT).status_code == 200


def test_terminating_is_told_to_all_who_wait(local_modal: LocalModal, sandbox: modal.Sandbox) -> None:
    process = sandbox.exec("sleep", "1000")
    assert sandbox.poll() is None
    assert sandbox.terminate(wait=True) == 137
    assert sandbox.poll() == 137
    assert process.wait() == 137
    assert modal.Sandbox.from_id(sandbox.object_id).returncode == 137
    with pytest.raises(modal.exception.NotFoundError):
        sandbox.exec("echo", "hi")
    assert local_modal.running() == []


def test_time_out_is_124_and_idleness_and_preemption_end_a_sandbox(local_modal: LocalModal, app: modal.App) -> None:
    late = modal.Sandbox.create(app=app, timeout=1)
    idle = modal.Sandbox.create(app=app, timeout=300, idle_timeout=1)
    preempted = modal.Sandbox.create(app=app, timeout=300)
    with pytest.raises(modal.exception.SandboxTimeoutError):
        late.wait()
    assert late.returncode == 124
    idle.wait()
    local_modal.preempt(preempted.object_id, silent=False)
    preempted.wait(raise_on_termination=False)
    assert preempted.returncode == 137
    statuses = {state.id: state.status for state in local_modal.told().sandboxes}
    assert [statuses[one.object_id] for one in (late, idle, preempted)] == ["TIMEOUT", "IDLE_TIMEOUT", "TERMINATED"]


def test_sandboxes_are_found_by_tags_name_and_id(app: modal.App) -> None:
    first = modal.Sandbox.create(app=app, name="first", tags={"run": "1", "who": "me"})
    second = modal.Sandbox.create(app=app, tags={"run": "2", "who": "me"})
    second.set_tags({"run": "3", "who": "me"})

    def found(**tags: str) -> set[str]:
        return {one.object_id for one in modal.Sandbox.list(app_id=app.app_id, tags=tags)}

    assert found(who="me") == {first.object_id, second.object_id}
    assert found(run="1") == {first.object_id}
    assert (found(run="2"), found(run="3")) == (set(), {second.object_id})
    assert second.get_tags() == {"run": "3", "who": "me"}
    assert modal.Sandbox.from_name("local-tests", "first").object_id == first.object_id
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Sandbox.create(app=app, name="first")
    again = modal.Sandbox.from_id(first.object_id)
    assert again.exec("echo", "hi").stdout.read() == "hi\n"
    again.terminate(wait=True)
    assert found(who="me") == {second.object_id}
    with pytest.raises(modal.exception.NotFoundError):
        modal.Sandbox.from_name("local-tests", "first")


@pytest.fixture
def real_server() -> Iterator[int]:
    """Give the port of a server of this machine that stands for one on the Internet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_sandbox_reaches_what_its_policy_allows_and_nothing_else(
    local_modal: LocalModal, app: modal.App, real_server: int
) -> None:
    address = local_modal.host("files.example.com", {80: real_server})
    local_modal.host("other.example.org", {80: real_server})

    def reached(host: str, port: int = 80, **policy: Any) -> str:
        one = modal.Sandbox.create(app=app, **policy)
        process = one.exec("python", "-c", REACH, host, str(port))
        return process.stdout.read().strip() or process.stderr.read().splitlines()[-1]

    assert reached("files.example.com") == "reached"
    assert reached("files.example.com", outbound_domain_allowlist=["*.example.com"]) == "reached"
    assert "gaierror" in reached("other.example.org", outbound_domain_allowlist=["*.example.com"])
    assert reached(address, outbound_cidr_allowlist=[f"{address}/32"]) == "reached"
    policies: list[dict[str, Any]] = [{"outbound_cidr_allowlist": []}, {"block_network": True}]
    for closed in policies:
        assert "Network is unreachable" in reached(address, **closed)
        assert "Connection refused" in reached("127.0.0.1", real_server, **closed), "a loopback of its own"


def test_tunnels_can_be_late_cut_refused_and_swallowed(local_modal: LocalModal, app: modal.App) -> None:
    served = modal.Sandbox.create(
        "python", "-c", SERVE, "0.0.0.0", app=app, encrypted_ports=[8080], readiness_probe=modal.Probe.with_tcp(8080)
    )
    served.wait_until_ready(timeout=WAIT)
    url, faults = f"{served.tunnels()[8080].url}/", local_modal.tunnels
    with faults.delayed(0.05):
        began = time.monotonic()
        assert requests.get(url, timeout=WAIT).ok
        assert time.monotonic() - began >= 6 * 0.05, "handshakes of TCP and TLS, and the request: a round trip each"
    faults.bad_gateway()
    assert requests.get(url, timeout=WAIT).status_code == 502
    faults.down()
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url, timeout=WAIT)
    faults.black_hole()
    with pytest.raises(requests.exceptions.Timeout):
        requests.get(url, timeout=1)
    faults.black_hole(seconds=1)
    assert requests.get(url, timeout=WAIT).ok, "what was held arrives"
    faults.after(100)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url, timeout=WAIT)
    assert requests.get(url, timeout=WAIT).ok


def test_the_sdk_goes_on_through_faults_of_its_own_connections(local_modal: LocalModal, sandbox: modal.Sandbox) -> None:
    local_modal.sdk.down(seconds=1)
    assert sandbox.exec("echo", "hi").stdout.read() == "hi\n"
    process = sandbox.exec("python", "-c", ECHO_LINES, bufsize=1)
    lines = iter(process.stdout)
    local_modal.sdk.black_hole(seconds=1)
    process.stdin.write("word\n")
    process.stdin.drain()
    assert next(lines) == "got word\n"
    assert local_modal.sdk.cut() >= 1
    with local_modal.sdk.delayed(0.05):
        began = time.monotonic()
        process.stdin.write("late\n")
        process.stdin.drain()
        assert next(lines) == "got late\n"
        assert time.monotonic() - began >= 0.1
    process.stdin.write_eof()
    process.stdin.drain()
    assert process.wait() == 0


def test_a_proxy_that_buffers_holds_a_stream_back_until_it_ends(local_modal: LocalModal, app: modal.App) -> None:
    served = modal.Sandbox.create(
        "python", "-c", STREAM, app=app, encrypted_ports=[8080], readiness_probe=modal.Probe.with_tcp(8080)
    )
    served.wait_until_ready(timeout=WAIT)
    url = f"{served.tunnels()[8080].url}/"
    with requests.get(url, stream=True, timeout=WAIT) as live:
        assert next(live.iter_content(None)) == b"first\n"
    local_modal.tunnels.buffer()
    with requests.Session() as session:
        with pytest.raises(requests.exceptions.ReadTimeout):
            session.get(url, timeout=2)
        assert session.get(f"{url}short", timeout=WAIT).content == b"first\nlast\n"


def test_one_create_makes_one_sandbox_though_its_connection_is_lost(local_modal: LocalModal, app: modal.App) -> None:
    local_modal.control.after(50)
    made = modal.Sandbox.create(app=app, tags={"of": "once"})
    assert made.exec("echo", "hi").stdout.read() == "hi\n"
    assert [one.object_id for one in modal.Sandbox.list(app_id=app.app_id, tags={"of": "once"})] == [made.object_id]
    local_modal.router.after(50)
    process = made.exec("sh", "-c", "echo once >>/tmp/log; sleep 100")
    assert process.poll() is None
    assert (
        made.exec("sh", "-c", "until [ -s /tmp/log ]; do sleep 0.05; done; sleep 0.2; cat /tmp/log").stdout.read() == "once\n"
    )


def test_a_call_fails_as_a_test_orders(local_modal: LocalModal, app: modal.App) -> None:
    local_modal.fail("SandboxCreateV2", "RESOURCE_EXHAUSTED", "the workspace has reached its limit")
    with pytest.raises(modal.exception.ResourceExhaustedError, match="has reached its limit"):
        modal.Sandbox.create(app=app)
    local_modal.fail("SandboxCreateV2", "UNAVAILABLE", "try again", times=2)
    before = local_modal.told().requests["SandboxCreateV2"]
    assert modal.Sandbox.create(app=app).poll() is None
    assert local_modal.told().requests["SandboxCreateV2"] == before + 3


def test_a_worker_that_is_taken_away_answers_no_more_and_the_control_plane_knows(
    local_modal: LocalModal, sandbox: modal.Sandbox
) -> None:
    with pytest.raises(modal.exception.ConflictError, match="no readiness probe"):
        sandbox.wait_until_ready(timeout=1)
    local_modal.preempt(sandbox.object_id)
    sandbox.wait(raise_on_termination=False)
    assert sandbox.returncode == 137
    with pytest.raises(modal.exception.TimeoutError):
        sandbox.wait_until_ready(timeout=1)


def test_local_files_of_an_image_are_in_the_sandbox(app: modal.App, tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given")
    image = modal.Image.debian_slim().add_local_file(tmp_path / "given.txt", "/data/given.txt")
    assert modal.Sandbox.create("cat", "/data/given.txt", app=app, image=image).stdout.read() == "given"


def test_a_snapshot_of_the_file_system_starts_another_sandbox(app: modal.App, sandbox: modal.Sandbox) -> None:
    sandbox.exec("sh", "-c", "mkdir /data && echo kept >/data/file && ln -s file /data/link && chmod 600 /data/file").wait()
    image = sandbox.snapshot_filesystem()
    sandbox.exec("sh", "-c", "echo changed >/data/file").wait()
    other = modal.Sandbox.create("sh", "-c", "cat /data/link; stat -c %a /data/file", app=app, image=image)
    assert other.stdout.read() == "kept\n600\n"


def test_without_the_accounts_token_nothing_is_made(local_modal: LocalModal) -> None:
    before = len(local_modal.told().created)
    client = modal.Client.from_credentials("ak-somebody", "as-else")
    with pytest.raises(modal.exception.AuthError):
        modal.App.lookup("local-tests", client=client)
    client.close()
    assert len(local_modal.told().created) == before


STARTS = """
import os, signal, sys
from tests.modal_local.plane import LocalModal
plane = LocalModal()
os.environ.update(plane.environment)
import modal
app = modal.App.lookup("a", create_if_missing=True)
boxes = [modal.Sandbox.create("sleep", sys.argv[1], app=app, encrypted_ports=[8080]) for _ in range(2)]
boxes[0].exec("sleep", sys.argv[1])
print(plane.authority.parent, flush=True)
sys.stdin.read()
plane.close() if sys.argv[2] == "close" else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["close", "kill"])
def test_nothing_is_left_when_the_plane_or_its_user_ends(how: str, tmp_path: Path) -> None:
    mark = str(10_000_000 + os.getpid() + (how == "kill"))

    def sleeping() -> int:
        return sum(mark.encode() in line for line in _command_lines())

    with subprocess.Popen(
        [sys.executable, "-c", STARTS, mark, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    ) as user:  # fmt: skip
        assert user.stdin is not None
        assert user.stdout is not None
        folder = Path(user.stdout.readline().strip())
        assert folder.is_dir()
        assert sleeping() >= 5, "two sandboxes of two processes, an exec, and who started them"
        user.stdin.close()
        assert user.wait(WAIT) == (0 if how == "close" else -signal.SIGKILL)
    deadline = time.monotonic() + WAIT
    while (sleeping() or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (sleeping(), folder.exists()) == (0, False)


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_everything_the_sdk_asked_for_is_served(local_modal: LocalModal) -> None:
    assert local_modal.told().unknown == []

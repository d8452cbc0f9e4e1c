"""The command-line client of Docker or Podman: found, bounded, each of its failures told in one line that says what to do."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlm_jupyter.errors import RunStopped, SettingsError
from rlm_jupyter.kernels.client import Client, ClientError, check_engine, explain, find
from rlm_jupyter.kernels.commands import OUT_CAP, Stop
from tests.deadlines import BACK_WITHIN

SHELL = Client("/bin/sh", "docker")


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 700
    return text


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_docker_is_taken_before_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RLM_CONTAINER_CLIENT", raising=False)
    podman = script(tmp_path / "podman", "")
    assert find() == Client(podman, "podman")
    docker = script(tmp_path / "docker", "")
    assert find() == Client(docker, "docker")
    monkeypatch.setenv("RLM_CONTAINER_CLIENT", "podman")
    assert find() == Client(podman, "podman")


def test_no_client_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError) as error:
        find()
    assert "install one" in one_line(error)
    monkeypatch.setenv("RLM_CONTAINER_CLIENT", "nerdctl")
    with pytest.raises(SettingsError) as error:
        find()
    assert "RLM_CONTAINER_CLIENT='nerdctl'" in one_line(error)


@pytest.mark.needs("docker")
def test_an_engine_says_what_it_is() -> None:
    engine = check_engine(find())
    assert (engine.os, engine.cpus > 0, engine.memory > 2**28) == ("linux", True, True)
    assert engine.version[0].isdigit()


@pytest.mark.needs("docker")
@pytest.mark.parametrize("host", ["unix://{folder}/none", "unix://{folder}/dead", "tcp://127.0.0.1:{closed}"])
def test_no_engine_is_one_line(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DOCKER_HOST", host.format(folder=tmp_path, closed=closed.getsockname()[1]))
        with pytest.raises(SettingsError) as error:
            check_engine(find())
    text = one_line(error)
    assert text.startswith("no docker engine answers (DOCKER_HOST=")
    assert "systemctl start docker" in text


@pytest.mark.needs("docker")
def test_an_engine_that_is_silent_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/silent")
        before = time.monotonic()
        with pytest.raises(SettingsError) as error:
            check_engine(find())
    assert time.monotonic() - before < BACK_WITHIN
    assert "did not answer within 4 s" in one_line(error)


@pytest.mark.needs("docker")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without rights")
def test_no_permission_on_the_socket_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_nobody = script(tmp_path / "docker", f'exec setpriv --reuid=65534 --regid=65534 --clear-groups "{find().program}" "$@"')
    monkeypatch.setenv("RLM_CONTAINER_CLIENT", as_nobody)
    with pytest.raises(SettingsError) as error:
        check_engine(find())
    assert "sudo usermod -aG docker $USER" in one_line(error)


@pytest.mark.parametrize("answer", ["", "[]", "null", "{}", '{"ServerVersion": 3}', '{"host": 1}'])
def test_what_is_no_engine_is_told(answer: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        check_engine(Client(script(tmp_path / "docker", f"echo '{answer}'"), "docker"))
    one_line(error)


def test_podman_is_read_and_windows_containers_are_refused(tmp_path: Path) -> None:
    podman = '{"host": {"os": "linux", "arch": "amd64", "memTotal": 9, "cpus": 3}, "version": {"Version": "5.4.0"}}'
    engine = check_engine(Client(script(tmp_path / "podman", f"echo '{podman}'"), "podman"))
    assert (engine.name, engine.version, engine.memory, engine.cpus) == ("podman", "5.4.0", 9, 3)
    windows = '{"ServerVersion": "28", "OSType": "windows", "Architecture": "x86_64", "MemTotal": 1, "NCPU": 1}'
    with pytest.raises(SettingsError, match="switch it to Linux containers"):
        check_engine(Client(script(tmp_path / "docker", f"echo '{windows}'"), "docker"))


@pytest.mark.needs("docker")
@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--network=no-such-network-here",), "docker network ls"),
        (("--memory=1m",), "--memory is less"),
        (("--memory=much",), "--memory is not a size"),
        (("--cpus=4096",), "--cpus is more"),
        (("--network=none", "--gpus=all"), "--gpus: this engine has no support"),
        (("--network=none", "--runtime=no-such"), "Runtimes in `docker info`"),
        (("--network=none", "--entrypoint=/no/such/program"), "the image cannot run the program"),
    ],
)
def test_a_refused_box_is_one_line(arguments: tuple[str, ...], advice: str, docker_image: str) -> None:
    client = find()
    with pytest.raises(ClientError) as error:
        client.run("run", "--rm", "--label=rlm_jupyter.test=refused", *arguments, docker_image)
    assert one_line(error).find(advice) >= 0
    assert client.run("ps", "--all", "--quiet", "--filter=label=rlm_jupyter.test=refused") == b""


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("permission denied while trying to connect to the docker API at unix:///var/run/docker.sock", "usermod"),
        (
            "failed to connect to the docker API at unix:///x; check if the path is correct and if the daemon is running",
            "start",
        ),
        ("Cannot connect to Podman. Please verify your connection to the Linux system using `podman system", "engine answers"),
        ("Error response from daemon: client version 1.50 is too new. Maximum supported API version is 1.41", "DOCKER_API"),
        ("exec /usr/bin/python3: exec format error", "processor"),
        ("Error: python:9: image not known", "--image NAME"),
        ("manifest for python:9 not found: manifest unknown: manifest unknown", "check the name"),
        ("write /var/lib/docker/tmp/x: no space left on device", "disk is full"),
        ("\x1b[31mdocker: Error response from daemon: something new.\x1b[0m\nSee 'docker run --help'.", "something new."),
        ("cannot reach tcp://me:hunter2@example.org", "tcp://***@example.org"),
        ("", "exit code 1"),
    ],
)
def test_what_clients_say_is_explained(said: str, advice: str) -> None:
    text = explain(said, 1)
    assert advice in text
    assert "\x1b" not in text
    assert "hunter2" not in text
    assert "\n" not in text


def test_a_box_that_was_killed_speaks_of_memory() -> None:
    assert "--memory" in explain("", 137)


def test_a_flood_ends_the_client_and_is_not_kept() -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(ClientError, match="wrote more than it may"):
        SHELL.run("-c", "cat /dev/zero", seconds=60)
    assert psutil.Process().memory_info().rss - before < 3 * OUT_CAP


def test_a_deadline_ends_the_client_and_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="did not end within") as error:
        SHELL.run("-c", f"sleep 1000 & echo $! > {tmp_path}/pid; wait", seconds=1)
    assert error.value.late
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text())) or (
        psutil.Process(int((tmp_path / "pid").read_text())).status() == psutil.STATUS_ZOMBIE
    )


def test_another_thread_can_stop_it_now_and_for_good() -> None:
    stop = Stop()
    client = Client("/bin/sh", "docker", stop)
    assert client.run("-c", "cat", input=b"as it was \xff") == b"as it was \xff"
    with client.start("-c", "echo begun; exec sleep 1000", seconds=60) as command:
        assert next(command.lines()) == "begun"
        threading.Thread(target=stop.set).start()
        with pytest.raises(RunStopped):
            command.wait()
        assert not command.running()
    with pytest.raises(RunStopped):
        client.run("-c", "echo never")

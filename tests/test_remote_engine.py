"""A box runs in an engine that only a TCP connection leads to: nothing of this machine is mounted, so nothing is missing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_jupyter import RLM
from rlm_jupyter.kernels import images
from rlm_jupyter.kernels.client import find


class Tunnel:
    """A TCP port of loopback that leads to the engine's socket, and how many connections came through it."""

    def __init__(self, engine: str) -> None:
        self.count = 0
        self._engine = engine
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self.count += 1
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._engine)
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    opened = Tunnel(host.removeprefix("unix://"))
    yield opened
    opened.close()


@pytest.mark.parametrize("way", ["DOCKER_HOST", "DOCKER_CONTEXT"])
def test_a_run_in_an_engine_elsewhere(
    way: str, tunnel: Tunnel, docker_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images.prepare(find(), docker_image, lambda told: None)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv(way, tunnel.address if way == "DOCKER_HOST" else "far")
    if way == "DOCKER_CONTEXT":
        subprocess.run(
            ["docker", "context", "create", "far", "--docker", f"host={tunnel.address}"],
            env={name: value for name, value in os.environ.items() if name != "DOCKER_CONTEXT"},
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip
    pieces = {"a.py": "x = 1\n" * 200_000, "b.py": "class Fraction:\n    pass\n"}
    with RLM("demo", environment="docker", environment_kwargs={"image": docker_image}) as rlm:
        result = rlm.completion(pieces, "Which file defines the class Fraction?")
    assert result.value == "b.py:1: class Fraction:"
    assert tunnel.count >= 4

"""`%rlm doctor` tells what is here and what to type, in a table or JSON, and never the value of a secret."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from rlm_jupyter import doctor
from rlm_jupyter.doctor import Finding, examine, render, to_json
from rlm_jupyter.kernels import images
from rlm_jupyter.kernels.client import check_engine, find
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.settings import ENVIRONMENTS
from rlm_jupyter.testing import ScriptedServer
from rlm_jupyter.trials import FIRST_USE, NOTE, OK, PROBLEM, TRIES, Trial
from tests.deadlines import WAIT
from tests.engine import Engine
from tests.shells import open_shell

CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PROVIDERS.values():
        if row.key_variable:
            monkeypatch.setenv(row.key_variable, CANARY)
        if row.address_variable:
            monkeypatch.delenv(row.address_variable, raising=False)
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", CANARY)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2hunter2@proxy.firm:3128")
    monkeypatch.setenv("STRANGE_PASSWORD", "hunter3hunter3")
    monkeypatch.setenv("NO_PROXY", "hunter3hunter3.example")


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


@pytest.mark.usefixtures("keys")
def test_p21_no_value_of_a_secret_is_shown() -> None:
    findings = examine({"model": "gpt-5-mini"})
    for text in (render(findings), to_json(findings)):
        for secret in (CANARY, CANARY[:12], "hunter2", "hunter3hunter3"):
            assert secret not in text
        assert "proxy.firm:3128" in text
        assert "OPENAI_API_KEY is set" in text


@pytest.mark.usefixtures("keys")
def test_what_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GROQ_API_KEY")
    monkeypatch.setenv("VLLM_BASE_URL", "localhost:8000")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    before = {child.pid for child in psutil.Process().children()}  # what those fork meanwhile is theirs
    found = by_name(examine({"model": "groq/x"}))
    assert {child.pid for child in psutil.Process().children()} <= before
    assert found["sys.executable"].value == sys.executable
    assert found["openai"].value.startswith("OPENAI_API_KEY is set (https://api.openai.com")
    assert "GROQ_API_KEY is not set" in found["groq"].value
    assert "needs no key (http://127.0.0.1:11434" in found["ollama"].value
    assert (found["vllm"].state, found["azure"].state, found["groq"].state) == (PROBLEM, NOTE, NOTE)
    assert "VLLM_BASE_URL" in found["vllm"].advice
    assert found["local"].state == OK
    assert found["local"].value.startswith("ready: ran a cell")
    assert "not isolated" in found["local"].value
    assert "GROQ_API_KEY is not set" in found["model"].advice
    assert found["REQUESTS_CA_BUNDLE"].state == PROBLEM
    assert "GiB free" in found["traces"].value
    for package in doctor.PACKAGES:
        assert package in found
        assert found[package].state == OK


def test_a_server_of_this_machine_is_told_as_listening_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
        there = by_name(examine())["ollama"]
    gone = by_name(examine())["ollama"]
    assert (there.state, there.advice) == (OK, "")
    assert gone.state == NOTE
    assert "nobody listens there" in gone.value
    assert "ollama serve" in gone.advice
    monkeypatch.setenv("OLLAMA_HOST", "elsewhere.example:1")
    assert doctor.listens(PROVIDERS["ollama"].address()) is None


def test_every_environment_is_tried() -> None:
    assert set(TRIES) == set(ENVIRONMENTS)


def test_a_local_environment_that_cannot_start_is_told_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nread settings\necho no such module >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    found = by_name(examine())["local"]
    assert found.state == PROBLEM
    assert "no such module" in found.value
    assert "ipykernel" in found.advice


def test_docker_runs_a_cell_in_a_box_and_leaves_no_client_attached(docker_image: str) -> None:
    client = find()
    images.prepare(client, docker_image, lambda told: None)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    findings = by_name(examine({"image": docker_image, "memory": "1g"}))
    found = findings["docker"]
    assert (found.state, found.advice) == (OK, "")
    assert re.match(rf"ready: ran a cell in a container of {docker_image} \(Python 3\.[\d.]+\), \d+\.\d s with", found.value)
    assert "isolated: a container without network" in found.value
    assert f"engine {check_engine(client).version} on " in findings["docker engine"].value
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_docker_makes_and_pulls_no_image(docker_image: str) -> None:
    engine = Engine()
    name = f"rlm-doctor-test:{os.getpid()}"
    container = engine.run("create", docker_image, "python3")
    engine.run("commit", "--change", "LABEL test=doctor", container, name)
    engine.run("rm", container)
    try:
        for image in (name, "no-such-image-of-ours:1"):
            tried = TRIES["docker"]({"image": image})
            assert (tried.state, tried.advice) == (NOTE, FIRST_USE)
            assert tried.value == f"no image is ready for {image} yet"
            assert "engine" in tried.engine
            assert images.ready(find(), image) is None
        assert engine.run("images", "--quiet", "no-such-image-of-ours") == ""
    finally:
        engine.run("rmi", name)


@contextmanager
def _no_client(monkeypatch: pytest.MonkeyPatch, folder: str) -> Iterator[str]:
    monkeypatch.setenv("PATH", folder)
    yield "install one"


@contextmanager
def _no_engine(monkeypatch: pytest.MonkeyPatch, folder: str) -> Iterator[str]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/none")
    yield "no docker engine answers"


@contextmanager
def _silent_engine(monkeypatch: pytest.MonkeyPatch, folder: str) -> Iterator[str]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/silent")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/silent")
        silent.listen()
        yield "did not answer within 4 s"


@pytest.mark.needs("docker")
@pytest.mark.parametrize("broken", [_no_client, _no_engine, _silent_engine])
def test_without_an_engine_docker_is_a_note_unless_it_is_the_default(
    broken: Callable[[pytest.MonkeyPatch, str], AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as folder, broken(monkeypatch, folder) as told:
        started = time.monotonic()
        tried = TRIES["docker"]({"env": "local"})
        assert time.monotonic() - started < WAIT
        assert tried.state == NOTE
        assert told in tried.advice
        assert "--env local" in tried.advice
        assert "\n" not in tried.advice
        assert TRIES["docker"]({"env": "docker"}) == Trial("not ready", PROBLEM, tried.advice)


def test_a_setting_that_docker_cannot_have_is_a_problem(docker_image: str) -> None:
    images.prepare(find(), docker_image, lambda told: None)
    tried = TRIES["docker"]({"image": docker_image, "memory": "100m"})
    assert tried.state == PROBLEM
    assert tried.advice.startswith("--memory 100m is too small")


def test_the_table_marks_what_is_to_be_mended() -> None:
    text = render([Finding("A", "one", "fine"), Finding("B", "two", "bad\x1b[31m\n", PROBLEM, "type this")])
    assert text == "A\n   one  fine\n\nB\n ! two  bad [31m\n        -> type this\n\n1 to mend, marked with !"


def test_long_lines_are_wrapped_under_their_own_column_at_words() -> None:
    address = "https://a-host-with-a-name." + "long-" * 30 + "example"
    lines = render([Finding("A", "one", "word " * 40 + address, NOTE, "then " * 30)]).split("\n")
    assert all(len(line) < 100 or line.strip() == address for line in lines)
    assert [line.strip() for line in lines].count(address) == 1
    assert " ".join(" ".join(lines).split()).count("word") == 40
    assert all(line.startswith("        ") for line in lines[2:-2])


def test_the_command_prints_a_table_or_json() -> None:
    with open_shell() as shell:
        shell.run("%config RLMMagics.model = 'demo'")
        table = shell.run("%rlm doctor")
        told = shell.run("%rlm doctor --json")
    assert table.error is None
    assert "sys.executable" in table.output
    assert "a terminal (shown as text)" in table.output
    findings = {one["name"]: one for one in json.loads(told.output)}
    assert findings["model"]["state"] == OK
    assert set(PROVIDERS) <= set(findings)
    assert set(ENVIRONMENTS) <= set(findings)
    assert all(set(one) == {"section", "name", "value", "state", "advice"} for one in findings.values())

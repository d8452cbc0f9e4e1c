"""The command-line client of Docker or Podman, and its failures in one line each that says what to do.

The client is the whole interface: `DOCKER_HOST`, `DOCKER_CONTEXT`, `DOCKER_CONFIG` and logins to registries are its own
business and are honoured because it inherits this process's environment. Nothing here starts an engine or asks for a password.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.commands import Command, Ended, Stop
from rlm_jupyter.kernels.text import plain

CHECK_SECONDS = 4.0
PATIENT_SECONDS = 20.0
"""For an engine that has just answered: on a busy machine it can be slow."""
CHOICE = "RLM_CONTAINER_CLIENT"
NO_PROXIES = tuple(
    f"--env={name}="
    for stem in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (stem, stem.upper())
)
"""Arguments of `run` for a box without a network: the client would hand on the proxies of its settings, passwords included."""
_KNOWN = ("docker", "podman")
_LONGEST = 300


class ClientError(KernelStartError):
    """The client refused or failed. The text is one line that says what to do.

    Attributes
    ----------
    said
        What the client wrote, cleaned and bounded.
    code
        Its exit code.
    late
        Whether its deadline ended it.
    """

    def __init__(self, message: str, said: str = "", code: int = 1, late: bool = False) -> None:
        super().__init__(message)
        self.said = said
        self.code = code
        self.late = late


@dataclass(frozen=True, slots=True)
class Client:
    """A client on this machine: its absolute path and the name of what it drives. `stop` ends its commands from any thread."""

    program: str
    name: str
    stop: Stop | None = field(default=None, compare=False)

    def run(self, *args: str, input: bytes | None = None, seconds: float = 20.0, grace: float = 0.0) -> bytes:
        """Run one command and give its standard output; a ClientError when it fails or is late, RunStopped when stopped.

        When this thread is interrupted, the command has `grace` seconds to come to its own end before it is killed.
        """
        with _spooled(input) as stdin, self.start(*args, stdin=stdin, seconds=seconds) as command:
            try:
                ended = command.wait()
            except BaseException:
                command.ends_within(grace)
                raise
        self.check(args[0], ended, seconds)
        return ended.stdout

    def start(self, *args: str, stdin: IO[bytes] | int | None = None, seconds: float) -> Command:
        """Start one command, for one that is read or written while it runs."""
        try:
            return Command([self.program, *args], stdin=stdin, seconds=seconds, stop=self.stop)
        except OSError as error:
            raise ClientError(f"{self.program} cannot be run: {error.strerror}") from None

    def check(self, verb: str, ended: Ended, seconds: float) -> None:
        """Raise the ClientError of a command that failed."""
        said = cleaned(ended.stderr)
        if ended.late:
            raise ClientError(f"`{self.name} {verb}` did not end within {seconds:.0f} s", said, ended.code, late=True)
        if ended.flooded:
            raise ClientError(f"`{self.name} {verb}` wrote more than it may", said, ended.code)
        if ended.code:
            raise ClientError(explain(said, ended.code, self.name), said, ended.code)


@dataclass(frozen=True, slots=True)
class Engine:
    """What answers behind the client: name, version, kind of system and processor, bytes of memory, processors."""

    name: str
    version: str
    os: str
    architecture: str
    memory: int
    cpus: int


def find() -> Client:
    """Give the client: what `RLM_CONTAINER_CLIENT` names, else docker, else podman; a SettingsError when there is none."""
    wanted = os.environ.get(CHOICE, "")
    for name in (wanted,) if wanted else _KNOWN:
        path = shutil.which(name)
        if path is not None:
            return Client(os.path.abspath(path), "podman" if "podman" in os.path.basename(name) else "docker")
    if wanted:
        raise SettingsError(f"{CHOICE}={wanted!r}: no such program; set it to docker, podman or a path, or unset it")
    raise SettingsError(
        "neither docker nor podman is on the PATH: install one (Debian, Ubuntu: sudo apt-get install docker.io; "
        "Mac, Windows: Docker Desktop), or use --env local"
    )


def check_engine(client: Client, seconds: float = CHECK_SECONDS) -> Engine:
    """Ask the engine what it is.

    Raises
    ------
    SettingsError
        When no engine answers, when this user may not speak to it, or when it runs Windows containers.
    """
    try:
        out = client.run("info", "--format", "{{json .}}", seconds=seconds)
        engine = _read_engine(out, client.name)
    except ClientError as error:
        if error.late:
            raise SettingsError(
                f"the {client.name} engine{_place()} did not answer within {seconds:.0f} s: "
                f"see whether `{client.name} info` answers, restart the engine, or use --env local"
            ) from None
        raise SettingsError(str(error)) from None
    if engine is None:
        raise SettingsError(f"no engine answers `{client.name} info`{_place()}: {start_hint(client.name)}")
    if engine.os != "linux":
        raise SettingsError(f"the {client.name} engine runs {engine.os} containers; switch it to Linux containers")
    return engine


def _read_engine(out: bytes, name: str) -> Engine | None:
    """Read `info`, Docker's or Podman's; None when it tells of no engine."""
    try:
        info: Any = json.loads(out)
        if "host" in info:
            host = info["host"]
            return Engine(
                "podman", _word(info["version"]["Version"]), _word(host["os"]), _word(host["arch"]),
                int(host["memTotal"]), int(host["cpus"]),
            )  # fmt: skip
        if not info["ServerVersion"]:
            return None
        return Engine(
            "docker", _word(info["ServerVersion"]), _word(info["OSType"]), _word(info["Architecture"]),
            int(info["MemTotal"]), int(info["NCPU"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise ClientError(f"`{name} info` answers what neither Docker nor Podman would: check {CHOICE} and the PATH") from None


def start_hint(name: str) -> str:
    """Say how an engine is started."""
    if name == "podman":
        return "`podman info` must work first (Mac, Windows: podman machine start), or use --env local"
    return "start it (Linux: sudo systemctl start docker; Mac, Windows: open Docker Desktop), or use --env local"


_PULL = "name one with --image NAME that is here (`{name} images`), or fetch it by hand (`{name} pull NAME`)"
_EXPLAINED: tuple[tuple[str, str], ...] = (
    # the engine
    (
        r"permission denied.*(?:socket|\.sock)|dial unix.*permission denied",
        "no permission to speak to the {name} engine: sudo usermod -aG docker $USER, then log in again; or use --env local",
    ),
    (r"context [\"']?(\S+?)[\"']?:? (?:context )?not found|current context .* is not found", "no {name} context of that name"
     "{place}: see `{name} context ls`, or unset DOCKER_CONTEXT"),
    (r"client version (\S+) is too (?:new|old)", "the {name} client and engine are of different ages: update the older one, or "
     "set DOCKER_API_VERSION to what the engine's `{name} version` says"),
    (r"unable to (?:parse|resolve) docker (?:host|endpoint)|invalid bind address|unable to parse docker host",
     "DOCKER_HOST{place} is not an address: type unix:///path, tcp://host:port or ssh://user@host, or unset it"),
    (r"cannot connect to (?:the docker daemon|podman)|is the docker daemon running|error during connect|failed to connect to "
     r"the docker api|unable to connect to podman", "no {name} engine answers{place}: {start}"),
    # the image
    (r"exec format error", "the image is for another kind of processor than this engine's: choose another with --image NAME"),
    (r"no matching manifest", "the image does not exist for this engine's kind of processor: choose another with --image NAME"),
    (r"no such image|unable to find image|image not known|no such object", "no such image is here: " + _PULL),
    (r"pull access denied|manifest unknown|manifest for .* not found|repository does not exist|name unknown|"
     r"requested access to the resource is denied|unauthorized", "the registry has no image of that name, or wants a login: "
     "check the name, or `{name} login`"),
    (r"no such host|i/o timeout|network is unreachable|no route to host|tls handshake timeout|connection refused|"
     r"client\.timeout|x509:|server misbehaving|connection reset|temporary failure in name resolution",
     "the registry cannot be reached: " + _PULL),
    (r"toomanyrequests|rate limit", "the registry refuses more downloads for now: `{name} login`, or " + _PULL),
    # the box
    (r"network (\S+) not found|unable to find network|network .* not found", "no such network: see `{name} network ls` for "
     "what --docker-network can name"),
    (r"could not select device driver|nvidia-container|unresolvable cdi devices|no known gpu",
     "--gpus: this engine has no support for GPUs: install the NVIDIA Container Toolkit, or leave --gpus out"),
    (r"minimum memory limit", "--memory is less than the engine allows: choose at least 512m"),
    (r"invalid argument .* for .*(?:--memory|-m,)|invalid size", "--memory is not a size: type one such as 4g"),
    (r"range of cpus is from|invalid argument .* for .*--cpus", "--cpus is more than the engine has, or not a number: "
     "see CPUs in `{name} info`"),
    (r"unknown (?:or invalid )?runtime|runtime .* not found", "the engine's default runtime is missing: see Runtimes in "
     "`{name} info`"),
    (r"no space left on device", "the engine's disk is full: `{name} system df` shows with what"),
    (r"cannot allocate memory|out of memory|oom", "the engine has not enough memory: choose a smaller --memory, or free some"),
    (r"executable file not found|no such file or directory|permission denied", "the image cannot run the program"),
)  # fmt: skip


def explain(said: str, code: int | None = None, name: str = "docker") -> str:
    """Say in one line what a failure of the client means and what to do.

    Parameters
    ----------
    said
        What it wrote on its standard error.
    code
        Its exit code, where it is known: 125 the engine refused, 126 and 127 the program cannot be run, 137 killed.
    """
    text = cleaned(said)
    last = _last(text)
    for pattern, advice in _EXPLAINED:
        if re.search(pattern, text, re.IGNORECASE):
            told = advice.format(name=name, place=_place(), start=start_hint(name))
            return f"{told} ({name}: {last})"
    if last:
        return f"{name} refused: {last}"
    if code == 137:
        return "the box was killed, perhaps because its memory was used up: choose a larger --memory"
    return f"{name} ended with exit code {code} and did not say why"


def cleaned(text: str) -> str:
    """Give text of the client without escapes and passwords, bounded to its last 4,000 characters."""
    return re.sub(r"(://)[^/@\s]*@", r"\1***@", plain(text[-4000:])).replace("\r", "\n").strip()


def _last(text: str) -> str:
    """Give the line that says most: the last one that is no hint."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"(?i)see '|run '|usage:|warning|for more|errors pretty", line)]
    line = (told or lines or [""])[-1]
    line = re.sub(r"^(?:docker: |error: |error response from daemon: )+", "", line, flags=re.IGNORECASE)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def _place() -> str:
    """Say where the user's own settings point the client."""
    for variable in ("DOCKER_HOST", "CONTAINER_HOST", "DOCKER_CONTEXT"):
        if value := os.environ.get(variable):
            return f" ({variable}={cleaned(value)[:100]})"
    return ""


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return cleaned(value)[:100]


@contextlib.contextmanager
def _spooled(data: bytes | None) -> Iterator[IO[bytes] | None]:
    if data is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


__all__ = ["NO_PROXIES", "Client", "ClientError", "Engine", "check_engine", "cleaned", "explain", "find", "start_hint"]

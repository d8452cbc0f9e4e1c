"""What a Modal sandbox is asked for: its settings, checked before anything is made, and the image that a kernel can run in.

`ModalPlace.arguments` is everything that is sent to Modal when a sandbox is created. By default it can reach
nothing, and has no secret, no volume and one port, on which its broker waits for the host. The package `modal` is imported when
it is needed and not before.
"""

from __future__ import annotations

import dataclasses
import difflib
import getpass
import importlib
import math
import os
import posixpath
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.packages import LEAST, wanted
from rlm_jupyter.settings import did_you_mean

if TYPE_CHECKING:
    import modal

LONGEST = 24 * 60 * 60
"""Seconds that Modal lets a sandbox live."""
RECONNECT_SECONDS = 15.0
"""Seconds without a byte after which a connection is taken for lost, and made again."""
SHORTEST_RECONNECT, LONGEST_RECONNECT = 1.0, 600.0
BRIDGES = ("tunnel", "exec")
"""How LM calls reach the host: pulled by it out of the sandbox's broker, or down the supervisor's own stream."""
PORT = 8080
SERVES = ("flask>=3", "waitress>=3")
"""What the broker needs in the sandbox."""
USUAL = ("scipy", "sympy", "requests", "httpx", "pyyaml", "tqdm")
"""What code that an LM writes expects to find besides numpy, pandas, pyarrow, and flask, which the broker needs."""
PIPE = "/tmp/.rlm-hold"
FOLDER = "/tmp/rlm"
MADE_BY = "rlm_jupyter"
HOST, PROCESS, BEGUN = "host", "process", "begun"
"""Tags of a sandbox: the machine and the process that use it, and when it was asked for, in seconds since the epoch."""

MOST: Mapping[str, int] = {"cpu": 10_000, "memory": 1 << 30}
"""Cores, and MiB, above which it is a slip of the pen; what Modal has, it says itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DOMAIN = re.compile(
    r"(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*\.[A-Za-z][A-Za-z0-9-]*"
)
_GPU = re.compile(r"[A-Za-z][A-Za-z0-9-]*!?(?::[1-9][0-9]?)?")
_GIVEN_BY_RLM = ("context_payload", "lm_handler_address")
_SPELLED = {
    "block_network": "it is spelled network='closed' here, which is the default; with bridge='exec' it blocks the tunnel, too",
    **dict.fromkeys(
        ("outbound_domain_allowlist", "outbound_cidr_allowlist", "cidr_allowlist"),
        "the domains that code may reach are network=[...] here",
    ),
    **dict.fromkeys(
        ("encrypted_ports", "h2_ports", "unencrypted_ports", "readiness_probe"),
        "ports follow from bridge here: 'tunnel' (the default) has one, 'exec' none",
    ),
    "env": "variables are secrets=[modal.Secret.from_dict({...})] here",
    "sandbox_timeout": "it is timeout here",
}
"""What `modal.Sandbox.create`, or the magic, calls otherwise."""
_TAKEN = ("/", "/root", "/tmp", "/proc", "/sys", "/dev")
"""Where no volume can be mounted, as Modal or the kernels need the place."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModalPlace:
    """What one sandbox is started with. Construction checks it; a `SettingsError` names what to change.

    Attributes
    ----------
    app_name
        The app of Modal's that the sandbox belongs to; it is made when there is none.
    timeout, idle_timeout
        Seconds until Modal ends the sandbox: in all, and (None: never) while no command runs in it and nobody is connected.
        While its host is there something always runs in it.
    reconnect
        Seconds without a byte after which a connection to the sandbox is taken for lost and made again, which is told. When
        that has gone on for six times as long the sandbox is given up; after nine times as long it gives its host up, and ends.
    image
        A `modal.Image` or the name of one in a registry; None: `modal_image()`. What a kernel needs is layered on top.
    gpu, cpu, memory, region
        As of `modal.Sandbox.create`: "T4", cores, MiB, "us-east".
    secrets, volumes
        `modal.Secret`s and `modal.Volume`s (by the path where they are mounted), or their names. The code can read them.
    network
        `closed`: none. `open`: the code can send what it reads anywhere. Or the domains that it may reach.
    bridge
        How its LM calls reach the host. `tunnel`: a broker in the sandbox holds them, and the host pulls them through an
        encrypted tunnel of Modal's. `exec`: over the supervisor's own stream; then there is no port, and no network at all
        where it is closed.
    name
        A name for the sandbox that no other running one of the app may have.
    """

    app_name: str = "rlm-sandbox"
    timeout: int = 600
    image: modal.Image | str | None = None
    gpu: str | None = None
    cpu: float | tuple[float, float] | None = None
    memory: int | tuple[int, int] | None = None
    secrets: tuple[modal.Secret | str, ...] = ()
    volumes: Mapping[str, modal.Volume | str] = dataclasses.field(default_factory=dict)
    region: str | Sequence[str] | None = None
    idle_timeout: int | None = None
    network: str | tuple[str, ...] = "closed"
    bridge: str = "tunnel"
    name: str | None = None
    reconnect: float = RECONNECT_SECONDS

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ModalPlace:
        """Make one of a user's arguments by name; what is not known is refused, never ignored."""
        known = [field.name for field in dataclasses.fields(cls)]
        offered = [name for name in known if name != "name"] + ["setup_code"]
        for name in given:
            if name in _GIVEN_BY_RLM:
                raise SettingsError(f"environment_kwargs: {name} is set by RLM itself; leave it out")
            if name in _SPELLED:
                raise SettingsError(f"environment_kwargs: {name}: {_SPELLED[name]}")
            if name not in known:
                raise SettingsError(f"environment_kwargs: modal takes no {name!r}{did_you_mean(str(name).lower(), offered)}")
        arguments = dict(given)
        for name in ("secrets", "network"):
            if isinstance(arguments.get(name), (list, tuple, set, frozenset)):
                arguments[name] = tuple(arguments[name])
        return cls(**arguments)

    def __post_init__(self) -> None:
        for option in ("app_name", "name"):
            value = getattr(self, option)
            if (value is not None or option == "app_name") and not (isinstance(value, str) and _NAME.fullmatch(value)):
                raise SettingsError(f"{option}={value!r}: type letters, digits, dots, dashes and underscores, 64 at most")
        for option in ("timeout", "idle_timeout"):
            _check_seconds(option, getattr(self, option))
        if self.idle_timeout is not None and self.idle_timeout > self.timeout:
            raise SettingsError(f"idle_timeout={self.idle_timeout}: timeout={self.timeout} ends the sandbox before; give less")
        _check_reconnect(self.reconnect)
        self._check_bridge()
        self._check_network()
        self._check_machine()
        self._check_stores()

    def _check_stores(self) -> None:
        if isinstance(self.secrets, str) or not isinstance(self.secrets, Sequence) or "" in self.secrets:
            raise SettingsError("secrets: give a list of modal.Secret objects or of their names")
        if not isinstance(self.volumes, Mapping) or not all(str(path).startswith("/") for path in self.volumes):
            raise SettingsError('volumes: give a dict by absolute path, such as {"/data": modal.Volume.from_name("data")}')
        for path, volume in self.volumes.items():
            whole = posixpath.normpath(path)
            if (
                whole.lstrip("/") == ""
                or whole in _TAKEN
                or whole.startswith(("/proc/", "/sys/", "/dev/", f"{FOLDER}/"))
                or whole == FOLDER
            ):
                raise SettingsError(f"volumes: nothing can be mounted at {path}; choose another path, such as /data")
            if volume == "":
                raise SettingsError(f"volumes: {path} must be a modal.Volume or its name, which is empty")

    def _check_bridge(self) -> None:
        if self.bridge not in BRIDGES:
            raise SettingsError(f"bridge={self.bridge!r} is not known{did_you_mean(str(self.bridge), BRIDGES)}")

    def _check_network(self) -> None:
        if isinstance(self.network, str):
            if self.network not in ("closed", "open"):
                close = difflib.get_close_matches(self.network.lower(), ("closed", "open"), n=1)
                domain = f'; type network=["{self.network}"]' if _DOMAIN.fullmatch(self.network) else ""
                hint = f"; did you mean {close[0]}?" if close else domain
                raise SettingsError(f"network={self.network!r} is neither 'closed' nor 'open' nor a list of domains{hint}")
        elif not isinstance(self.network, tuple) or not self.network:
            raise SettingsError("network must be 'closed', 'open', or a list of domains such as [\"pypi.org\"]")
        else:
            for domain in self.network:
                if not isinstance(domain, str) or not _DOMAIN.fullmatch(domain):
                    raise SettingsError(f'network: {domain!r} is no domain; type one such as "pypi.org" or "*.example.com"')

    def _check_machine(self) -> None:
        for option, kind in (("cpu", "cores, such as 2 or 0.5"), ("memory", "MiB, such as 4096")):
            value = getattr(self, option)
            parts = value if isinstance(value, tuple) and len(value) == 2 else (value,)
            whole = (int,) if option == "memory" else (int, float)
            if value is not None and not all(
                isinstance(part, whole) and not isinstance(part, bool) and 0 < part < math.inf for part in parts
            ):
                raise SettingsError(f"{option}={value!r}: type {kind}, or two of them as (request, limit)")
            if value is not None and max(parts) > MOST[option]:
                raise SettingsError(f"{option}={value!r}: no machine has so much; type {kind}")
            if len(parts) == 2 and parts[0] > parts[1]:
                raise SettingsError(f"{option}={value!r}: the request, {parts[0]:g}, is above the limit, {parts[1]:g}")
        regions = (self.region,) if isinstance(self.region, str) else self.region
        if regions is not None and not (isinstance(regions, (list, tuple)) and regions and all(map(_is_name, regions))):
            raise SettingsError(f'region={self.region!r}: type one of Modal\'s such as "us-east", or a list of them')
        package = sys.modules.get("modal")  # where it is not imported, nobody can have an image of its
        known = (str,) if package is None else (str, package.Image)
        if self.image is not None and not isinstance(self.image, known):
            raise SettingsError(f"image: give a modal.Image or a name in a registry, not a {type(self.image).__name__}")
        if self.gpu is not None and not (isinstance(self.gpu, str) and _GPU.fullmatch(self.gpu)):
            raise SettingsError(f'gpu={self.gpu!r}: type a name of Modal\'s such as "T4", or "A100:2" for two')

    @property
    def isolation(self) -> str:
        """What separates the code from the user's machine, for the banner."""
        tunnel = self.bridge == "tunnel"
        closed = "no way out" if tunnel else "no network"
        network = {"closed": closed, "open": "an open network: code can send what it reads"}
        reach = network[self.network] if isinstance(self.network, str) else f"{closed} but to {', '.join(self.network)}"
        reach += f", one way in (port {PORT}, for whoever holds this run's token)" if tunnel else ""
        given = [f"GPU {self.gpu}"] if self.gpu else []
        given += [f"{len(self.secrets)} secrets"] if self.secrets else []
        given += [f"{len(self.volumes)} volumes"] if self.volumes else []
        also = f", {', '.join(given)}" if given else ""
        return f"isolated: a sandbox at Modal (app {self.app_name}), {reach}{also}; ended after {self.timeout:,} s at most"

    def arguments(self, app: modal.App, image: modal.Image) -> dict[str, Any]:
        """Give everything that `modal.Sandbox.create` is called with, besides the command."""
        modal = load()
        policy: dict[str, Any] = {}
        if self.bridge == "tunnel":
            policy |= {"encrypted_ports": [PORT], "readiness_probe": modal.Probe.with_tcp(PORT)}
        if self.network == "closed":
            # A blocked network has no tunnels; one that may reach nothing has.
            policy["block_network" if self.bridge == "exec" else "outbound_cidr_allowlist"] = self.bridge == "exec" or []
        elif isinstance(self.network, tuple):
            policy |= {"outbound_domain_allowlist": list(self.network)}
        asked = {
            "gpu": self.gpu, "cpu": self.cpu, "memory": self.memory, "region": self.region,
            "idle_timeout": self.idle_timeout, "name": self.name,
        }  # fmt: skip
        return {
            "app": app,
            "image": image,
            "timeout": self.timeout,
            "tags": tags(),
            "secrets": [modal.Secret.from_name(one) if isinstance(one, str) else one for one in self.secrets],
            "volumes": {
                path: modal.Volume.from_name(one) if isinstance(one, str) else one for path, one in self.volumes.items()
            },
            **policy,
            **{option: value for option, value in asked.items() if value is not None},
        }

    def layered(self) -> modal.Image:
        """Give the image with what the kernel needs; what a user's own image has of that stays as it is."""
        if self.image is None:
            return modal_image()
        base: modal.Image = load().Image.from_registry(self.image) if isinstance(self.image, str) else self.image
        broker = SERVES if self.bridge == "tunnel" else ()
        return base.pip_install(*(f"{name}>={LEAST[name]}" if name in LEAST else name for name in wanted()), *broker)


def modal_image() -> modal.Image:
    """Give the image that a sandbox is started from by default, to be extended.

    Debian slim with Python of this machine's minor version, numpy, pandas, scipy, sympy, requests, httpx, flask, pyyaml, tqdm,
    dill, pyarrow, and what the kernel needs: of what crosses between the two, the versions that this machine has.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    image: modal.Image = load().Image.debian_slim(python_version=python).pip_install(*wanted().values(), *USUAL, *SERVES)
    return image


def load() -> Any:
    """Give the package `modal`; a SettingsError when it is not there."""
    try:
        return importlib.import_module("modal")
    except ImportError:
        raise SettingsError(
            "the package modal is not installed: type pip install 'rlm_jupyter[modal]', then modal setup"
        ) from None
    except Exception as error:  # it reads its settings when it is imported, and refuses a file that is damaged
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise SettingsError(f"the package modal cannot be loaded: {line}") from None


def tags() -> dict[str, str]:
    """Give the tags by which sandboxes of this user on this machine are found again."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return {
        "made-by": MADE_BY,
        "user": _tag(user),
        HOST: _tag(socket.gethostname()),
        PROCESS: str(os.getpid()),
        BEGUN: str(int(time.time())),
    }


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _tag(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63] or "unknown"


def _check_seconds(option: str, value: object) -> None:
    if value is None and option == "idle_timeout":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{option} must be a whole number of seconds, 1 or more, not {value!r}")
    if value > LONGEST:
        raise SettingsError(f"{option}={value}: Modal lets a sandbox live {LONGEST:,} s (24 hours); type that or less")


def _check_reconnect(value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not SHORTEST_RECONNECT <= value <= LONGEST_RECONNECT:  # type: ignore[operator]
        raise SettingsError(f"reconnect={value!r}: type seconds from {SHORTEST_RECONNECT:.0f} to {LONGEST_RECONNECT:.0f}")

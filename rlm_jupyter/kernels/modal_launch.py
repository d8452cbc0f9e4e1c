"""From a run's settings to a sandbox at Modal: what is refused first, and how the sandbox is told to user and LM.

Everything here happens before a sandbox is asked for. `check` says hello to Modal, with a deadline, so that a missing package,
a missing or refused token and a network that does not lead there are one line each; it creates nothing.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.client import cleaned
from rlm_jupyter.kernels.images import check_name
from rlm_jupyter.kernels.modal_place import LONGEST, ModalPlace, load
from rlm_jupyter.settings import MIB, MODAL_NAMES, PLACES, RunSettings, option, size_of

T = TypeVar("T")

HELLO_SECONDS = 4.0
"""Within which Modal must have answered."""
DEFAULT_CPU, DEFAULT_MEMORY = 0.125, 128
"""What Modal reserves when nothing is asked for: cores, MiB (its documentation; more is used where there is some)."""
_NAMED = re.compile(r"<[^<>]*>")


def place_of(settings: RunSettings) -> ModalPlace:
    """Give what a run's settings ask of a sandbox; a SettingsError names the option that cannot be."""
    given: dict[str, Any] = {}
    settings_of = {MODAL_NAMES.get(name, name): name for name, places in PLACES.items() if "modal" in places}
    for argument, name in settings_of.items():
        value = getattr(settings, name)
        if value is not None:
            given[argument] = _held(value, settings.objects)
    if isinstance(given.get("memory"), str):
        given["memory"] = _mebibytes(given["memory"])
    if isinstance(network := given.get("network"), str) and ("," in network or "." in network):
        given["network"] = tuple(domain.strip() for domain in network.split(",") if domain.strip())
    try:
        return ModalPlace(**given)
    except SettingsError as error:
        name, rest = re.fullmatch(r"(\w*)(.*)", str(error), re.DOTALL).groups()  # type: ignore[union-attr]
        raise SettingsError(f"{option(settings_of[name])}{rest}" if name in given else str(error)) from None


def _held(value: Any, objects: Mapping[str, Any]) -> Any:
    """Give a setting's value with the objects that it names."""
    if isinstance(value, str) and _NAMED.fullmatch(value):
        if value not in objects:
            raise SettingsError(f"these settings name {value}, an object that is not kept in them: give it to the run again")
        return objects[value]
    if isinstance(value, tuple):
        return tuple(_held(item, objects) for item in value)
    return {key: _held(item, objects) for key, item in value.items()} if isinstance(value, Mapping) else value


def _mebibytes(text: str) -> int:
    if not text.strip().isdecimal():
        return size_of(text) // MIB
    try:
        return size_of(f"{text}m") // MIB  # a plain number is MiB, as Modal's own are
    except SettingsError:
        raise SettingsError(f"--memory {text}: too little; type MiB, such as 4096, or a size, such as 4g") from None


def check(settings: RunSettings) -> None:
    """Refuse what cannot be, in less than 5 s, with nothing created: settings, package, token, a way to Modal."""
    place = place_of(settings)
    if isinstance(place.image, str):
        try:
            check_name(place.image)
        except SettingsError as error:
            raise SettingsError(f"{error}, or a variable that holds a modal.Image") from None
    check_objects(place, load())
    token_from()
    say_hello()


def check_objects(place: ModalPlace, modal: Any) -> None:
    """Refuse a secret or a volume of another kind."""
    for secret in place.secrets:
        if not isinstance(secret, (str, modal.Secret)):
            raise SettingsError(f"secrets: give modal.Secret objects or their names, not a {type(secret).__name__}")
    for path, volume in place.volumes.items():
        if not isinstance(volume, (str, modal.Volume, modal.CloudBucketMount)):
            raise SettingsError(f"volumes: {path} must be a modal.Volume or its name, not a {type(volume).__name__}")


def token_from() -> str:
    """Tell where this machine has its token from, without asking Modal about it; a SettingsError where it has none."""
    config = load().config
    if os.environ.get("MODAL_IS_REMOTE") == "1":  # the SDK ignores tokens there
        return "none is needed in a container at Modal"
    if not (config.config.get("token_id") and config.config.get("token_secret")) and not config.config.get(
        "oauth_refresh_token"
    ):
        raise SettingsError("there is no token of Modal on this machine: type modal setup in a terminal, which makes one")
    named = [name for name in ("MODAL_TOKEN_ID", "MODAL_OAUTH_REFRESH_TOKEN") if os.environ.get(name)]
    return named[0] if named else str(config.user_config_path)


def say_hello() -> None:
    """Reach Modal with this machine's token; the connection is the one that a run uses then."""
    modal = load()

    def hello() -> None:
        modal.Client.from_env().hello()

    try:
        within(HELLO_SECONDS, hello)
    except Exception as error:  # whatever the SDK raises is one line
        raise explained(error, HELLO_SECONDS) from None


def explained(error: Exception, seconds: float) -> SettingsError:
    """Give one line for what the SDK raised when it asked Modal for something, within so many seconds."""
    known = load().exception
    line = (cleaned(str(error)).splitlines() or [""])[0][:200] or type(error).__name__
    if isinstance(error, known.AuthError):
        return SettingsError(f"Modal does not accept this machine's token: type modal setup in a terminal ({line})")
    if isinstance(error, (TimeoutError, known.ConnectionError)) or not isinstance(error, known.Error):
        return SettingsError(f"Modal cannot be reached within {seconds:.0f} s: is there a network, or a proxy? ({line})")
    return SettingsError(f"Modal refuses this machine: {line}")


def version() -> str:
    return str(load().__version__)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Do something in a thread of its own, where no event loop runs; TimeoutError when it takes longer."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # raised where it was asked for
            outcome.set_exception(error)

    threading.Thread(target=run, name="rlm_jupyter modal", daemon=True).start()
    try:
        return outcome.result(seconds)
    except concurrent.futures.TimeoutError:
        raise TimeoutError("no answer") from None


def limits(place: ModalPlace) -> str:
    """Give what the LM is told of the place."""
    if place.network == "closed":
        reach = "no network, so nothing can be downloaded or installed"
    elif place.network == "open":
        reach = "a network"
    else:
        reach = f"a network that reaches {', '.join(place.network)} and nothing else"
    return f"in a cloud sandbox with {reach}; {machine(place)}; it ends {place.timeout:,} s after its start, with all variables"


def machine(place: ModalPlace) -> str:
    """Give what the sandbox is given of a machine, as it is billed."""
    cpu = place.cpu if place.cpu is not None else DEFAULT_CPU
    memory = place.memory if place.memory is not None else DEFAULT_MEMORY
    cores, mebibytes = (_span(one) for one in (cpu, memory))
    gpu = f", GPU {place.gpu}" if place.gpu else ""
    return f"{cores} CPU, {mebibytes} MiB{gpu}"


def _span(value: Any) -> str:
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def network_advice(place: ModalPlace) -> str:
    """Give what to type where code failed for want of a network; '' where there is one."""
    if place.network == "open":
        return ""
    domains = "pypi.org,files.pythonhosted.org"
    if place.network == "closed":
        return f"the sandbox has no network: --network {domains} opens it to those, --network open to all"
    return f"the sandbox reaches {', '.join(place.network)} only: add what it needs to --network, or type --network open"


def warnings(settings: RunSettings, place: ModalPlace) -> tuple[str, ...]:
    """Give what a user should know before the first request."""
    if settings.timeout <= place.timeout:
        return ()
    seconds = math.ceil(settings.timeout)
    longest = "no sandbox lives longer" if place.timeout == LONGEST else f"--sandbox-timeout {LONGEST} is the longest at Modal"
    advice = f"--sandbox-timeout {seconds} makes them equal" if seconds <= LONGEST else longest
    return (f"the sandbox ends after {place.timeout:,} s, the run may take {seconds:,} s: {advice}",)

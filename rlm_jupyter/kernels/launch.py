"""From a run's settings to the environment that its kernels live in: what is checked first, and how it is opened.

One place knows all environments by name; a new one is added to `check` and `prepare`. An environment is never replaced by
another one: what cannot be had is refused, in one line, before anything is started.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.local import check_kernel, open_local
from rlm_jupyter.settings import ENVIRONMENTS, RunSettings, size_text

if TYPE_CHECKING:
    from rlm_jupyter.kernels.docker import Box

Told = Callable[[str], None]
"""Called with what is done that takes longer than a moment, a line each."""
_NO_NETWORK = re.compile(
    "Network is unreachable|Temporary failure in name resolution|Name or service not known|No address associated"
    "|Failed to establish a new connection|Could not resolve host|urlopen error|Max retries exceeded|No matching distribution"
    "|All connection attempts failed|ConnectionRefusedError"
)
"""How Python, pip, requests, httpx, curl and git say that a place could not be reached."""


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """How an environment is opened.

    Attributes
    ----------
    isolation
        What separates the code from the user's machine, told truthfully, with this run's settings.
    limits
        What the LM is told of the place: what its code cannot do there. '' where it is as anywhere else.
    open
        Opens it, and tells the steps that take longer than a moment.
    warm
        Under what name it may be kept for a next run with the same needs; None: it ends with its run.
    machine
        What somebody else bills by the second while it is open, beside the LMs; '' where nobody does.
    network_advice
        What to type where code failed for want of a network; '' where there is one.
    warnings
        What the user should know before the first request.
    """

    isolation: str
    open: Callable[[Told], Awaitable[Environment]]
    warm: str | None = None
    limits: str = ""
    machine: str = ""
    network_advice: str = ""
    warnings: tuple[str, ...] = ()

    def advice(self, failure: str) -> str:
        """Give what to type where a failure of code reads as if it was for want of a network; '' where it does not."""
        return self.network_advice if _NO_NETWORK.search(failure) else ""


def check(settings: RunSettings) -> None:
    """Refuse an environment that cannot be had, in less than 5 s and with a SettingsError that says what to do."""
    check_setup(settings)
    if settings.kernel is not None:
        check_kernel(settings.kernel)
    if settings.environment == "docker":
        from rlm_jupyter.kernels import client, images

        if settings.image is not None:
            images.check_name(settings.image)
        client.check_engine(client.find())
    elif settings.environment == "modal":
        from rlm_jupyter.kernels import modal_launch

        modal_launch.check(settings)


def prepare(settings: RunSettings, context: int, told: Told) -> Launch:
    """Make everything ready that a run with a context of so many bytes needs, such as a container's image.

    Raises
    ------
    SettingsError
        What is asked for is not there or does not suffice.
    KernelStartError
        It could not be made.
    """
    if settings.environment == "docker":
        from rlm_jupyter.kernels import client, docker, images

        found = client.find()
        engine = client.check_engine(found, client.PATIENT_SECONDS)
        docker.check_box(settings, found, engine, context)
        box = docker.make_box(settings, found, engine, images.prepare(found, settings.image, told), context)
        return Launch(
            box.isolation,
            lambda told: docker.open_docker(box),
            limits=_limits(box),
            network_advice="the container has no network: --docker-network bridge gives it one"
            if box.network == "none"
            else "",
        )
    if settings.environment == "modal":
        return _at_modal(settings)
    return Launch(ENVIRONMENTS["local"], lambda told: open_local(settings.kernel), f"local {settings.kernel or ''}")


def _at_modal(settings: RunSettings) -> Launch:
    from rlm_jupyter.kernels import modal, modal_launch

    place = modal_launch.place_of(settings)
    return Launch(
        place.isolation,
        lambda told: modal.open_modal(place, told=told),
        limits=modal_launch.limits(place),
        machine=modal_launch.machine(place),
        network_advice=modal_launch.network_advice(place),
        warnings=modal_launch.warnings(settings, place),
    )


def check_setup(settings: RunSettings) -> None:
    """Refuse set-up code that this Python cannot read, where it is to run in one of the same version: nothing is started."""
    if not settings.setup_code or settings.kernel or settings.image:  # another Python may know newer syntax
        return
    from IPython.core.inputtransformer2 import TransformerManager

    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings(action="ignore"):
            code = TransformerManager().transform_cell(settings.setup_code)  # type: ignore[no-untyped-call]
            compile(code, "set-up code", "exec", flags)
    except (SyntaxError, ValueError) as error:  # ValueError: it holds a NUL
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        told = " ".join(str(getattr(error, "msg", error)).split())[:200]
        raise SettingsError(f"--setup-code: this is no Python{where}: {told}") from None


def _limits(box: Box) -> str:
    network = "no network, so nothing can be downloaded or installed" if box.network == "none" else f"the network {box.network}"
    gpus = f", GPUs {box.gpus}" if box.gpus else ""
    return (
        f"in a container with {network}; {size_text(box.memory)} of memory, {box.cpus:g} processors{gpus}; files can be "
        f"written under /tmp only, {size_text(box.scratch)} at most, which count as memory"
    )

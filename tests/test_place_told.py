"""What a run in a container says of the container: to the reader in every view, and to the LM in its first message."""

from __future__ import annotations

import pytest

from rlm_jupyter import RLM
from rlm_jupyter.kernels import images
from rlm_jupyter.kernels.client import find
from rlm_jupyter.testing import ScriptedServer
from rlm_jupyter.widgets import html, words
from tests.models import answer
from tests.payloads import Page


@pytest.mark.needs("docker")
def test_p02_views_and_lm_are_told_what_the_container_is(docker_image: str) -> None:
    images.prepare(find(), docker_image, lambda told: None)
    with ScriptedServer([answer("len(context)")]) as server:
        place = {"image": docker_image, "memory": "1g", "cpus": 1.5}
        backend = {"model_name": "root", "base_url": server.url}
        with RLM("openai", backend, environment="docker", environment_kwargs=place) as rlm:
            result = rlm.completion("four", "How long is it?")
        first = server.requests[0].messages[1]["content"]
    assert result.value == 4
    assert "Your code runs in a container with no network, so nothing can be downloaded or installed" in first
    assert "1 GiB of memory, 1.5 processors; files can be written under /tmp only, 512 MiB at most" in first
    told = result.trace.isolation
    assert told.startswith(f"isolated: a container of {docker_image}, no network; 1 GiB, 1.5 CPUs; not root")
    assert f"docker, {told} (kernel: " in Page(html.render(result.trace)).text
    assert f"docker ({told})" in words.opening(result.trace)

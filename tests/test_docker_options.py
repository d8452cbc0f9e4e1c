"""The options of a box and what an image brings along: each does what it says, is told, and weakens nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import partial

import pytest

from rlm_jupyter.errors import KernelError, KernelStartError
from rlm_jupyter.kernels.docker import open_docker
from rlm_jupyter.settings import MIB
from tests.boxes import Marked, box_of, boxes_of, derived_image, marked_image
from tests.conformance.driving import Session, session
from tests.engine import Engine

pytestmark = [pytest.mark.anyio, pytest.mark.needs("docker")]


@pytest.fixture(scope="module")
def marked() -> Iterator[Marked]:
    with marked_image(derived_image()) as image:
        yield image


async def test_memory_and_processors_are_what_was_asked_for(marked: Marked) -> None:
    box = box_of(marked, memory="300m", cpus=0.5)
    assert "300 MiB, 0.5 CPUs" in box.isolation
    async with session(partial(open_docker, box)):
        info = marked.engine.inspect(marked.box())["HostConfig"]
    assert (info["Memory"], info["MemorySwap"], info["NanoCpus"]) == (300 * MIB, 300 * MIB, 500_000_000)


async def test_a_context_makes_a_box_larger(marked: Marked) -> None:
    small, large = box_of(marked), box_of(marked, 64 * MIB)
    assert large.memory >= small.memory
    assert large.scratch == small.scratch + 64 * MIB
    async with session(partial(open_docker, large)) as repl:
        await repl.load("x" * (64 * MIB))
        assert await repl.out("print(len(context))") == str(64 * MIB)


async def test_more_than_the_folders_hold_is_an_error_of_the_code(marked: Marked) -> None:
    async with session(boxes_of(marked, memory="256m")) as repl:
        ran = await repl.run("import os\nwith open('big', 'wb') as file:\n    while True: file.write(bytes(1 << 20))")
        assert ran.result.error.startswith("OSError: [Errno 28]")
        assert await repl.out("print(os.path.getsize('big') >> 20 > 100, llm_query('well'))") == "True WELL"
        refused = []
        for _ in range(3):  # the first one may get the kernel that was kept ahead
            try:
                await Session(repl.environment).start()
            except KernelStartError as error:
                refused.append(str(error))
        assert len(refused) >= 2
        assert [told for told in refused if "No space left on device" not in told] == []
        with pytest.raises(KernelError, match=r"did not reach the kernel: it could not be written \(No space left on device\)"):
            await repl.load(b"x" * (40 * MIB))
        await repl.ok("os.unlink('big')")
        await repl.load(b"x" * (40 * MIB))
        assert await repl.out("print(len(context))") == str(40 * MIB)


@pytest.fixture
def network() -> Iterator[str]:
    engine = Engine()
    name = f"rlm-test-network-{secrets.token_hex(4)}"
    engine.run("network", "create", "--label=rlm_jupyter.test", "--internal", name)
    try:
        yield name
    finally:
        engine.run("network", "rm", name)


async def test_a_network_is_joined_when_it_is_named_and_told(marked: Marked, network: str) -> None:
    box = box_of(marked, docker_network=network)
    assert f"network {network}: code can send what it reads" in box.isolation
    assert "no network" not in box.isolation
    async with session(partial(open_docker, box)) as repl:
        assert set(marked.engine.inspect(marked.box())["NetworkSettings"]["Networks"]) == {network}
        assert await repl.out("import os; print(sorted(os.listdir('/sys/class/net')))") == "['eth0', 'lo']"


async def test_the_machines_own_network_is_told_as_what_it_is(marked: Marked) -> None:
    told = box_of(marked, docker_network="host").isolation
    assert "this machine's own network: code can reach what this machine reaches" in told
    assert "no network" not in told
    assert "no network" in box_of(marked, docker_network="none").isolation


async def test_what_an_image_sets_does_not_change_the_box(marked: Marked) -> None:
    changes = (
        "VOLUME /data", "VOLUME /srv/more", 'ENTRYPOINT ["/bin/false"]', 'CMD ["no"]', "USER 1234", "ENV COLOUR=blue",
        "ENV http_proxy=http://theirs:1", 'HEALTHCHECK CMD ["touch", "/data/healthy"]', "WORKDIR /usr", "EXPOSE 8080",
    )  # fmt: skip
    with marked_image(marked.name, *changes) as odd:
        async with session(boxes_of(odd)) as repl:
            info = odd.engine.inspect(odd.box())
            assert info["Mounts"] == []
            assert info["NetworkSettings"]["Ports"] == {}
            assert info["HostConfig"]["PortBindings"] == {}
            assert (info["Config"]["User"], info["Config"]["StopSignal"]) == ("65534:65534", "SIGKILL")
            assert info["Config"]["Healthcheck"] == {"Test": ["NONE"]}
            assert set(info["HostConfig"]["Tmpfs"]) == {"/tmp", "/data", "/srv/more"}
            code = "import os; print(os.environ['COLOUR'], os.environ['http_proxy'], os.getuid(), os.listdir('/data'))"
            assert await repl.out(code) == "blue  65534 []"
            await repl.ok("open('/data/x', 'w').write('x'); open('/srv/more/x', 'w').write('x')")
            big = await repl.run("open('/data/y', 'wb').write(bytes(2 << 20))")
            assert big.result.error.startswith("OSError: [Errno 28]")


@pytest.mark.parametrize("script", ["rm -rf /tmp", "chmod 0500 /tmp"])
async def test_an_image_with_an_odd_tmp_works(marked: Marked, script: str) -> None:
    with marked_image(marked.name, script=script) as odd:
        async with session(boxes_of(odd)) as repl:
            assert await repl.out("open('mine', 'w').write('x'); print(open('mine').read(), llm_query('a'))") == "x A"


async def test_gpus_that_the_engine_cannot_give_are_told_and_nothing_is_left(marked: Marked) -> None:
    box = box_of(marked, gpus="all")
    assert "GPUs all" in box.isolation
    with pytest.raises(KernelError, match="--gpus: this engine has no support for GPUs"):
        await open_docker(box)
    assert marked.gone()

"""Children's kernels beside their parents': what reaches whom, and that nobody speaks for, or hears of, another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial

import anyio
import anyio.to_thread
import pytest

from rlm_jupyter.budget import Budget
from rlm_jupyter.children import Family
from rlm_jupyter.contexts import prepare
from rlm_jupyter.errors import KernelError
from rlm_jupyter.events import Event
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.lm import providers
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from rlm_jupyter.trace import Trace
from tests.conformance.driving import ENVIRONMENTS, NAMES, Session
from tests.models import answer, code

pytestmark = pytest.mark.anyio

ASK = "import sys; ask = sys.modules['_rlm_repl'].repl.channel.ask; take = sys.modules['_rlm_repl'].repl.channel.take"
LEAVE = """
import hashlib, os
fd = os.memfd_create("parcel", os.MFD_ALLOW_SEALING)
os.write(fd, b"a secret of " + NAME)
SEALS
piece = {"form": "text", "offset": 0, "size": 12 + len(NAME), "digest": hashlib.sha256(b"a secret of " + NAME).hexdigest()}
print(ask({"kind": "parcel", "pieces": [piece]}, fd=fd)[0])
"""
SEAL = "import fcntl; fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)"


def leave(name: str, seals: str = SEAL) -> str:
    return LEAVE.replace("NAME", repr(name.encode())).replace("SEALS", seals)


@pytest.fixture(scope="module", params=[name for name in NAMES if "local-cold" not in name.values])
async def shared(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Environment]:
    """An environment in which sixteen kernels are started at once: cold ones would take long, and prove nothing more."""
    opened = await ENVIRONMENTS[request.param](request)()
    try:
        yield opened
    finally:
        await opened.close()


async def test_sixteen_children_at_once_see_only_their_own_output(shared: Environment) -> None:
    """Each prints, changes its folder and waits for an LM within one cell; no LM answers before all of them wait."""
    first = (
        "import os, subprocess, sys\nos.mkdir(context); os.chdir(context)\n"
        "print(context, 'begins', flush=True); subprocess.run(['echo', context, 'of a program'])\n"
        "reply = llm_query(context)\n"
        "print(context, 'heard', reply, 'in', os.path.basename(os.getcwd())); print(context, 'errs', file=sys.stderr)"
    )
    names = [f"name{number:02}" for number in range(16)]
    roots = [code(f"got = rlm_query_batched(['child'] * 16, {names!r})\nprint('only the parent')"), answer("got")]

    def root(request: Request) -> str:
        if "Question:\nchild" not in request.messages[1]["content"]:
            return roots.pop(0)
        return (
            code(first) if len(request.messages) == 2 else answer("(context, os.path.basename(os.getcwd()), os.listdir('..'))")
        )

    told: list[Event] = []
    with ScriptedServer(models={"root": root, "sub": lambda request: Reply(request.prompt.upper(), hold=True)}) as server:
        settings = RunSettings(model="root", sub_model="sub", base_url=server.url, max_depth=2, max_concurrent_children=16)
        budget = Budget(settings)
        handler = LMHandler(settings, budget, partial(providers.open_lm, settings=settings), told.append)
        family = Family(settings, budget, told.append)
        node = family.root(handler)
        context = prepare("c")
        try:
            await node.open(shared, context)
            async with anyio.create_task_group() as group:
                group.start_soon(node.run, "root", context.description)
                await anyio.to_thread.run_sync(partial(server.wait_for, 1 + 16 + 16, timeout=90))
                server.release()
        finally:
            await family.aclose()
            await handler.aclose()
    trace = Trace.from_events(told)
    for child in trace.children:
        (cell,) = child.iterations[0].cells
        streams = {stream: "".join(o.text for o in cell.outputs if o.stream == stream) for stream in ("stdout", "stderr")}
        name = streams["stdout"].split()[0]
        names.remove(name)
        lines = [f"{name} begins", f"{name} of a program", f"{name} heard {name.upper()} in {name}"]
        assert streams == {"stdout": "\n".join(lines) + "\n", "stderr": f"{name} errs\n"}
        assert child.answer == repr((name, name, [name]))
    assert names == []
    (parent,) = trace.iterations[0].cells
    assert [(output.stream, output.text) for output in parent.outputs] == [("stdout", "only the parent\n")]


async def refused(request: CallRequest) -> Sequence[CallOutcome]:
    return [CallOutcome(error="nobody is asked here")] * len(request.prompts)


@pytest.fixture
async def family(environment: Environment) -> AsyncIterator[tuple[Session, Session, Kernel]]:
    """Two kernels that may have children, and a child of the second one."""
    one, two = Session(environment), Session(environment)
    one.kernel = await environment.start_kernel(refused, children=2)
    two.kernel = await environment.start_kernel(refused, children=2)
    child = await environment.start_kernel(refused, parent=two.kernel)
    try:
        yield one, two, child
    finally:
        for kernel in (child, two.kernel, one.kernel):
            await kernel.close()


async def test_p18_a_child_gets_what_its_own_parent_left_and_nothing_else(
    environment: Environment, family: tuple[Session, Session, Kernel]
) -> None:
    one, _, child = family
    below = Session(environment)
    below.kernel = child
    waits = anyio.Event()

    async def hold(request: CallRequest) -> Sequence[CallOutcome]:
        waits.set()
        await anyio.sleep_forever()
        return []

    one.kernel, old = await environment.start_kernel(hold, children=2), one.kernel
    await old.close()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run, f"{ASK}\n{leave('one')}\nllm_query('keep the cell open')")
        await waits.wait()
        with pytest.raises(KernelError, match="its parent has not left it"):
            await child.inherit(1, 0)  # another kernel has left a parcel of that number
        own = await environment.start_kernel(refused, parent=one.kernel)
        await own.inherit(1, 0)
        heir = Session(environment)
        heir.kernel = own
        assert await heir.out("print(context)") == "a secret of one"
        await own.close()
        await one.kernel.interrupt()
    own = await environment.start_kernel(refused, parent=one.kernel)
    with pytest.raises(KernelError, match="its parent has not left it"):
        await own.inherit(1, 0)  # it was let go with the cell
    await own.close()
    script = f"""{ASK}
for header in ({{"kind": "take", "call": "", "place": 0}}, {{"kind": "take", "call": "a" * 32, "place": 0}}):
    try: print(take(header))
    except LMError as error: print(error)
print(ask({{"kind": "children"}})[0])
{leave("child")}
"""
    out = await below.out(script)
    assert out.splitlines() == ["nothing lies ready there"] * 2 + [
        "{'children': 0}",
        "{'refused': 'the contexts could not be read'}",
    ]


NO_PARCELS = (
    "piece['size'] = 10**12",
    "piece['offset'] = 5",
    "piece['form'] = 'typed'",
    "piece['digest'] = 'x'",
    "piece['more'] = 1",
    "fd = os.pipe()[0]",
    "fd = os.open('/dev/zero', os.O_RDONLY)",
    "fd = os.memfd_create('unsealed')",
    "fd = None",
)


async def test_p18_what_is_no_parcel_is_refused(family: tuple[Session, Session, Kernel]) -> None:
    one, _, _ = family
    for change in NO_PARCELS:
        code_ = leave("one").replace("print(ask", f"{change}\nprint(ask")
        assert await one.out(f"{ASK}\n{code_}") == "{'refused': 'the contexts could not be read'}", change
    assert await one.out("print(1)") == "1"


async def test_p18_only_a_childs_answer_may_be_a_pickle(environment: Environment, repl: Session) -> None:
    forge = leave("me").partition("print(ask")[0] + (
        "header = {'kind': 'final', 'name': '', 'type_name': 'x', 'form': 'pickle', 'size': piece['size'],\n"
        "          'digest': piece['digest'], 'preview': ''}\nprint(ask(header, fd=fd)[0])"
    )
    ran = await repl.ok(f"{ASK}\n{forge}")
    assert (ran.out, ran.result.final) == ("{'refused': 'the answer could not be read'}\n", None)

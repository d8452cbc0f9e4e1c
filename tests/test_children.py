"""Child RLMs: whole trees over HTTP with real kernels; what crosses between them, what they may, and how they end."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from rlm_jupyter import RLM, SettingsError
from rlm_jupyter.children import Places, Seat
from rlm_jupyter.engine import Engine
from rlm_jupyter.testing import Reply, Request
from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Child
from tests.kinds import ODD_TEXT
from tests.models import answer, code, scripted, text_of

Turns = list["Reply | str"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One worker thread and warm environment for the runs of this module."""
    engine = Engine()
    yield engine
    engine.close()


class Cast:
    """A script for a whole tree: who is asked is told apart by the first word of its question; each plays its turns in order.

    An attempt that fails (a `Reply` with a status) is followed by the next one of the same turn.
    """

    def __init__(self, parts: Callable[[str], Turns]) -> None:
        self._parts = parts
        self._left: dict[str, Turns] = {}
        self.asked: list[tuple[str, Request]] = []

    def __call__(self, request: Request) -> Reply | str:
        name = self.name(request)
        self.asked.append((name, request))
        turns = self._left.setdefault(name, list(self._parts(name)))
        return turns.pop(0)

    @staticmethod
    def name(request: Request) -> str:
        found = re.match(r"Question:\n(\S+)", request.messages[1]["content"])
        assert found is not None, request.messages[1]["content"][:200]
        return found[1]


def cast(**parts: Sequence[Reply | str]) -> Cast:
    return Cast(lambda name: list(parts[name]))


def nodes(trace: Trace) -> dict[str, Child]:
    return {child.node: child for child in trace.children}


# What crosses


def test_a_child_has_a_kernel_of_its_own_and_its_answer_comes_back_with_its_type(engine: Engine) -> None:
    parts = cast(
        root=[
            code("import os\nmine = 'the parent'\nopen('mine.txt', 'w').close()"),
            code("got = rlm_query('child of it', {'n': [1, {2}], 't': (b'x', None)})\nkind = type(got).__name__"),
            answer("[kind, got, mine, os.listdir()]"),
        ],
        child=[
            code("seen = (type(context).__name__, context, 'mine' in globals())\nimport os; here = os.listdir()"),
            answer("(seen, here, {3: 1.5})"),
        ],
    )
    with scripted(parts, engine=engine, max_depth=2) as (rlm, _):
        result = rlm.completion("c", root_prompt="root")
    seen = ("dict", {"n": [1, {2}], "t": (b"x", None)}, False)
    assert result.value == ["tuple", (seen, [], {3: 1.5}), "the parent", ["mine.txt"]]
    (child,) = result.trace.children
    assert (child.node, child.parent, child.depth, child.status, child.answer_type) == ("0.1", "0", 1, "answered", "tuple")
    assert (child.context_type, child.context_size, child.question, child.model) == ("dict", 2, "child of it", "root")
    assert "dict of 2 items" in child.context_description
    assert result.trace.iterations[1].cells[0].children == [child]


KINDS = """
import collections, dataclasses, numpy as np, pandas as pd
@dataclasses.dataclass
class Own:
    x: int
    def double(self): return 2 * self.x
frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
kinds = [%r, 10**400, {"k": (1, {2})}, Own(4), frame, np.arange(300_000), lambda x: x + 1, "long " * 8_000_000, [], b"\\0"]
"""


def test_contexts_and_answers_of_every_kind_cross_between_kernels(engine: Engine) -> None:
    """Also a class and a function of the session itself, an array that is mapped, and a text of 40 MB that goes by disk."""
    check = (
        "def same(a, b):\n"
        "    if isinstance(a, pd.DataFrame): return a.equals(b)\n"
        "    if isinstance(a, np.ndarray): return bool((a == b).all() and a.dtype == b.dtype)\n"
        "    if callable(a): return b(3) == 4\n"
        "    return b.double() == 8 and b.x == a.x if type(a).__name__ == 'Own' else type(a) is type(b) and a == b\n"
        "FINAL_VAR([same(a, b) for a, b in zip(kinds, back)])"
    )
    parts = cast(
        root=[
            code(KINDS % ODD_TEXT, "back = rlm_query_batched([f'child{n} give it back' for n in range(10)], kinds)"),
            code(check),
        ],
        **{f"child{n}": [code("FINAL_VAR(context)")] for n in range(10)},
    )
    with scripted(parts, engine=engine, max_depth=2) as (rlm, _):
        result = rlm.completion("c", root_prompt="root")
    assert result.value == [True] * 10
    told = {child.question.split()[0]: child.answer for child in result.trace.children}
    assert told["child0"] == ODD_TEXT.replace("\x00", "").replace("\r\n", "\n")
    assert len(told["child7"]) < 20_000
    assert all(child.answer for child in result.trace.children)


def test_without_a_context_the_prompt_is_the_childs(engine: Engine) -> None:
    def parts(request: Request) -> str:
        if "Question:\nroot" in text_of(request):
            return code("FINAL_VAR(rlm_query('Who?\\nDo not guess: ' + 'x' * 300))")
        return answer("context.split('\\n')[0]")

    with scripted(parts, engine=engine, max_depth=2) as (rlm, server):
        result = rlm.completion("c", root_prompt="root")
    assert result.value == "Who?"
    assert "in `context` itself" in server.requests[1].messages[1]["content"]
    assert result.trace.children[0].question.startswith("Who?")


@pytest.mark.parametrize(
    ("code_", "error"),
    [
        ("rlm_query(5)", "TypeError: prompt must be a str, not int"),
        ("rlm_query('q', [open('x', 'w')])", "TypeError: context[0] is an open file; pass what it holds"),
        ("rlm_query_batched('q')", "TypeError: rlm_query_batched takes a list of prompts"),
        ("rlm_query_batched(['a', 'b'], ['c'])", "ValueError: 1 contexts for 2 prompts"),
        ("rlm_query_batched({'a': 1})", "TypeError: rlm_query_batched takes a list of prompts, not a dict"),
        ("llm_query_batched(None)", "TypeError: llm_query_batched takes a list of prompts, not a NoneType"),
        ("rlm_query_batched(['a', ' '])", "ValueError: prompts[1] is empty"),
        ("rlm_query('')", "ValueError: prompt is empty"),
        ("rlm_query_batched(['a'], 'c')", "TypeError: contexts must be a list"),
        ("import pandas\nrlm_query_batched(['a'], pandas.DataFrame({'c': [1]}))", "one for each prompt, not a DataFrame"),
        ("rlm_query_batched(['a'] * 1001)", "ValueError: a batch of 1,001 children; at most 1,000"),
        ("rlm_query('q', model='gpt-9')", "code may not use the model 'gpt-9' in this run; it may use root, sub, other"),
    ],
)
def test_what_no_child_can_be_asked_is_refused_in_the_cell(engine: Engine, code_: str, error: str) -> None:
    with scripted([code(code_), answer("1")], engine=engine, max_depth=2, allowed_models=("other",)) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert error in server.requests[1].prompt
    assert result.trace.children == []
    assert len(server.requests) == 2


def test_an_answer_that_cannot_be_handed_over_is_an_error_in_the_childs_cell_which_it_can_mend(engine: Engine) -> None:
    parts = cast(
        root=[code("got = rlm_query('child', 1)"), answer("got")],
        child=[code("FINAL_VAR(n for n in range(3))"), code("FINAL_VAR([open('x', 'w')])"), answer("[1, 2]")],
    )
    with scripted(parts, engine=engine, max_depth=2) as (rlm, _):
        assert rlm.completion("c", root_prompt="root").value == [1, 2]
    told = [text_of(request) for name, request in parts.asked if name == "child"]
    assert "this answer is a generator, which can be read only once; make a list of it" in told[1]
    assert "this answer[0] is an open file; pass what it holds" in told[2]


def test_a_child_can_be_given_another_of_the_runs_models(engine: Engine) -> None:
    parts = cast(root=[code("FINAL_VAR(rlm_query('child', 1, model='sub'))")], child=[answer("llm_query('again')")])

    def sub(request: Request) -> Reply | str:
        return parts(request) if len(request.messages) > 1 else "plain"

    with scripted(parts, sub, engine=engine, max_depth=2) as (rlm, server):
        assert rlm.completion("c", root_prompt="root").value == "plain"
    assert [request.model for request in server.requests] == ["root", "sub", "sub"]


# Depth


def test_where_depth_does_not_allow_children_they_are_plain_calls_with_the_context_as_text(engine: Engine) -> None:
    turns = [code("r = rlm_query('one', {'a': 1})\ns = rlm_query_batched(['two', 'three'], [None, 'text'])"), answer("[r, *s]")]
    with scripted(turns, lambda request: request.prompt.upper(), engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert result.value == ["ONE\n\nCONTEXT:\n{'A': 1}", "TWO", "THREE\n\nCONTEXT:\nTEXT"]
    assert result.trace.children == []
    assert "rlm_query" not in text_of(server.requests[0])


def test_children_are_offered_only_where_depth_allows(engine: Engine) -> None:
    parts = cast(
        root=[code("FINAL_VAR(rlm_query('child', 1))")],
        child=[code("FINAL_VAR(rlm_query('grandchild', 2))")],
        grandchild=[code("FINAL_VAR(rlm_query('plain', 3))")],
    )
    with scripted(parts, ["read"], engine, max_depth=3) as (rlm, _):
        result = rlm.completion("c", root_prompt="root")
    assert result.value == "read"
    offered = {name: "rlm_query(" in text_of(request) for name, request in parts.asked}
    assert offered == {"root": True, "child": True, "grandchild": False}
    assert [(child.node, child.depth) for child in result.trace.children] == [("0.1", 1), ("0.1.1", 2)]


@pytest.mark.parametrize(
    ("name", "value"), [("max_depth", 0), ("max_depth", 17), ("max_concurrent_children", 0), ("max_concurrent_children", 129)]
)
def test_a_depth_that_makes_no_sense_is_refused(name: str, value: int) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} .*(must be|makes no sense)"):
        RLM("demo", **arguments)


# How children end


def test_a_child_that_dies_or_gives_no_answer_is_an_error_in_the_cell_and_the_lm_goes_on(engine: Engine) -> None:
    parts = cast(
        root=[
            code(
                "try:\n    rlm_query('dies', 1)\nexcept LMError as error:\n    first = str(error)\n"
                "rest = rlm_query_batched(['dies2', 'well', 'fails', 'idles'], [1, 2, 3, 4])"
            ),
            answer("[first, [str(r) for r in rest]]"),
        ],
        dies=[code("import os; os._exit(3)")],
        dies2=[code("import os; os.kill(os.getpid(), 9)")],
        well=[answer("context")],
        fails=[Reply(status=400, error={"message": "no such thing"})],
        idles=[code("pass"), code("pass"), code("1/0")],
    )
    with scripted(parts, engine=engine, max_depth=2, max_iterations=2) as (rlm, server):
        result = rlm.completion("c", root_prompt="root")
    first, (died, well, failed, idle) = result.value
    assert "ended itself with exit status 3 while a cell ran" in first
    assert died.startswith("Error: the child failed: The kernel was killed by SIGKILL")
    assert (well, idle) == ("2", "Error: the child gave no answer: no answer after 2 iterations (--max-iterations 2)")
    assert "no such thing" in failed
    assert [child.status for child in result.trace.children] == ["failed", "failed", "answered", "failed", "limit"]
    assert "4 calls failed, at [0, 2, 3]" in server.requests[-1].prompt


CAPPED: dict[str, tuple[Turns, Any, str]] = {
    "turns": ([code("found = [context]"), code("pass"), answer("found")], ["here"], "max_iterations"),
    "words": ([code("pass"), code("pass"), "It was Smith."], "It was Smith.", "max_iterations"),
    "errors": ([code("1/0"), code("1/0"), answer("{context}")], {"here"}, "max_consecutive_errors"),
    "candidate": ([code("FINAL_VAR((context, 1))\n1/0"), code("pass"), Reply("")], ("here", 1), "max_iterations"),
    "fails": ([code("FINAL_VAR((context, 2))\n1/0"), code("pass"), Reply(status=400)], ("here", 2), "max_iterations"),
    "asks": (
        [
            code("pass"),
            code("pass"),
            code("try: llm_query('more')\nexcept LMError as error: told = str(error)\nFINAL_VAR(told)"),
        ],
        "no answer after 2 iterations (--max-iterations 2)",
        "max_iterations",
    ),
}
"""What a child does until it reaches a cap of its own, and then; its answer; the cap."""


def test_a_child_at_a_cap_of_its_own_is_asked_once_more_for_its_answer_and_nobody_else_is_stopped(engine: Engine) -> None:
    parts = cast(
        root=[code(f"got = rlm_query_batched({[*CAPPED]!r}, ['here'] * {len(CAPPED)})"), answer("got")],
        **{name: turns for name, (turns, _, _) in CAPPED.items()},
    )
    with scripted(parts, engine=engine, max_depth=2, max_iterations=2, max_consecutive_errors=2) as (rlm, server):
        result = rlm.completion("c", root_prompt="root")
    assert dict(zip(CAPPED, result.value, strict=True)) == {name: value for name, (_, value, _) in CAPPED.items()}
    assert (result.status, result.calls, len(server.requests)) == ("answered", 2 + 3 * len(CAPPED), 2 + 3 * len(CAPPED))
    for child in result.trace.children:
        assert (child.status, child.limit, child.error) == ("limit", CAPPED[child.question][2], "")
        assert [turn.last for turn in child.iterations] == [False, False, True]
        assert child.answer


def test_a_child_has_no_last_request_where_the_tree_has_no_room_for_one(engine: Engine) -> None:
    """Of four requests one is kept for the root: the child's third finds none, and the root answers with its own last."""
    parts = cast(root=[code("rlm_query('child', 1)"), "As far as I know: Smith."], child=[code("pass")] * 2)
    with scripted(parts, engine=engine, max_depth=2, max_iterations=2, max_calls=4) as (rlm, server):
        result = rlm.completion("c", root_prompt="root")
    assert (result.status, result.limit, result.value) == ("limit", "max_calls", "As far as I know: Smith.")
    assert [name for name, _ in parts.asked] == ["root", "child", "child", "root"]
    assert len(server.requests) == result.calls == 4
    assert [(child.status, child.answer) for child in result.trace.children] == [("limit", "")]


def test_prose_of_a_child_is_its_answer(engine: Engine) -> None:
    parts = cast(root=[code("FINAL_VAR(rlm_query('child', 1))")], child=["It is 7.", "Still 7.", "It is 7, really."])
    with scripted(parts, engine=engine, max_depth=2) as (rlm, _):
        result = rlm.completion("c", root_prompt="root")
    assert (result.value, result.trace.children[0].status) == ("It is 7, really.", "unmarked")


# The tree, the ledger, the caps


def test_p05_p26_a_tree_equals_the_servers_log(engine: Engine) -> None:
    """Two children with two grandchildren each, three iterations each; some requests fail first, some calls for good."""
    ask = "got = rlm_query_batched([f'{context}{n} of it' for n in range(2)], [f'{context}{n}' for n in range(2)])"
    plain = "llm_query_batched(['fine', 'refused'])"
    busy = Reply(status=503, error={"message": "busy"}, headers={"Retry-After": "0"})

    def turns(name: str) -> Turns:
        deep = len(name) == 3
        first = code(f"context = {name!r}\n" + (f"got = {plain}" if deep else ask))
        replies: Turns = [first, code("n = llm_query('fine')"), code("FINAL_VAR((context, len(got)))")]
        told: Turns = [Reply(str(reply), usage=(100 + number, 10)) for number, reply in enumerate(replies)]
        return [told[0], busy, *told[1:]] if name in ("r1", "r10") else told

    parts = Cast(turns)
    prices = {"root": (1.0, 2.0), "sub": (3.0, 4.0)}

    def sub(request: Request) -> Reply:
        if request.prompt == "refused":
            return Reply(status=400, error={"message": "not this"})
        return Reply("ok", usage=(20, 7))

    with scripted(parts, sub, engine, max_depth=3, prices=prices, max_concurrency=4) as (rlm, server):
        result = rlm.completion("r", root_prompt="r")
    log = server.requests
    good = Counter(request.model for request in log if request.status == 200)
    assert (good["root"], good["sub"], len(log)) == (21, 11, 21 + 11 + 2 + 4)
    assert server.peak <= 4
    sent = {request.model: 0 for request in log} | {"root": 7 * (100 + 101 + 102), "sub": 11 * 20}
    assert (result.calls, result.usage.input_tokens, result.usage.output_tokens) == (38, sum(sent.values()), 210 + 77)
    assert result.cost == pytest.approx((sent["root"] * 1 + 210 * 2 + 220 * 3 + 77 * 4) / 1e6)
    assert not result.usage.estimated
    tree = nodes(result.trace)
    names = {"0.1": "r0", "0.2": "r1", "0.1.1": "r00", "0.1.2": "r01", "0.2.1": "r10", "0.2.2": "r11"}
    assert {node: child.question.split()[0] for node, child in tree.items()} == names
    assert {node: child.parent for node, child in tree.items()} == {node: node.rpartition(".")[0] for node in names}
    per = Counter(name for name, _ in parts.asked)
    for node, name in names.items():
        below = [other for other in names.values() if other.startswith(name)]
        calls = sum(per[other] + (4 if len(other) == 3 else 1) - (len(other) == 3) for other in below)
        assert (tree[node].requests, len(tree[node].iterations)) == (calls, 3), node
        assert tree[node].usage.input_tokens == sum(303 + (40 if len(other) == 3 else 20) for other in below)
    assert Trace.from_jsonl(result.trace.to_jsonl()).to_dict() == result.trace.to_dict()


def test_p07_caps_hold_against_children_that_swallow_everything(engine: Engine) -> None:
    """8 children with 8 threads each ask without end, and for grandchildren: the server sees what the cap allows."""
    swallow = (
        "import threading\n"
        "def ask():\n"
        "    while True:\n"
        "        for way in (llm_query, lambda p: rlm_query(p, 1), lambda p: rlm_query_batched([p] * 4, [1] * 4),\n"
        "                    lambda p: llm_query_batched([p] * 8)):\n"
        "            try: way('deep')\n"
        "            except BaseException: pass\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    parts = Cast(lambda name: [code("rlm_query_batched(['deep'] * 8, [1] * 8)") if name == "root" else code(swallow)] * 300)
    with scripted(parts, lambda request: "x", engine, max_depth=4, max_calls=150, max_concurrency=6) as (rlm, server):
        result = rlm.completion("c", root_prompt="root")
    assert result.status == "limit"
    assert result.limit == "max_calls"
    assert len(server.requests) <= 150
    assert result.calls == len(server.requests)
    assert server.peak <= 6
    assert 8 < len(result.trace.children) <= 150


def test_nested_batches_never_wait_for_each_other(engine: Engine) -> None:
    """With two places for a tree of 1 + 3 + 9 all come to their end; never more than two work."""

    def turns(name: str) -> Turns:
        if len(name) == 3:
            return [answer("1")]
        return [
            code(f"got = rlm_query_batched(['{name}' + str(n) for n in range(3)], [n for n in range(3)])"),
            answer("sum(got)"),
        ]

    with scripted(Cast(turns), engine=engine, max_depth=3, max_concurrent_children=2) as (rlm, _):
        result = rlm.completion("c", root_prompt="r")
    assert result.value == 9
    alive = most = 0
    for event in result.trace.events:
        alive += (type(event).__name__ == "ChildStarted") - (type(event).__name__ == "ChildEnded")
        most = max(most, alive)
    assert most <= 4


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(20))
async def test_p07_places_are_never_too_many_and_never_missing(seed: int) -> None:
    """Random trees, some given up at random: those that work are never more than there are places, and all come to an end."""
    chance = random.Random(seed)
    most, levels = chance.randint(1, 4), chance.randint(1, 4)
    places = Places(most)
    working, alive, ended = 0, Counter[int](), 0

    async def rest() -> None:
        for _ in range(chance.randint(0, 3)):
            await anyio.lowlevel.checkpoint()

    async def child(parent: Seat) -> None:
        nonlocal working, ended
        async with places.below(parent) as seat:
            alive[seat.depth] += 1
            working += 1
            assert max(alive.values()) <= most
            try:
                await rest()
                for _ in range(chance.randint(0, 2)):
                    assert working <= places.taken <= most
                    if seat.depth < levels:
                        working -= 1
                        async with anyio.create_task_group() as group:
                            for _ in range(chance.randint(1, 4)):
                                group.start_soon(child, seat)
                        working += 1
                    await rest()
            finally:
                working -= 1
                alive[seat.depth] -= 1
        ended += 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(child, Seat())
    assert (working, places.taken, sum(alive.values())) == (0, 0, 0)
    assert ended >= 10


@pytest.mark.anyio
async def test_a_place_is_given_back_by_whoever_gives_up() -> None:
    """A child that waits is cancelled, in every state, with its parent: no place is lost and none is made."""
    places = Places(1)
    for turns, deep in itertools.product(range(6), (False, True)):
        async with anyio.create_task_group() as group, places.below(Seat()) as seat:

            async def wait(seat: Seat = seat, deep: bool = deep) -> None:
                async with places.below(seat) as below:
                    if deep:
                        async with places.below(below):
                            await anyio.sleep_forever()
                    await anyio.sleep_forever()

            group.start_soon(wait)
            group.start_soon(wait)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert places.taken == 0, (turns, deep)
    with anyio.fail_after(5):
        async with places.below(Seat()):
            assert places.taken == 1

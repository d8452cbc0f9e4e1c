"""Questions about Python sources with their true answers, sampled by `ast`: how good is the demo stand-in really?

Three kinds, in many phrasings: which file defines NAME, which file contains TEXT, what is the value of CONSTANT in module M.
The truth comes from the syntax trees and from plain counting, never from the stand-in. `python -m tests.demo_questions` asks
the stand-in in a plain namespace (`--rlm`: through the real loop and kernel) and prints the rates.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import collections
import contextlib
import dataclasses
import io
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rlm_jupyter import RLM, contexts, prompts
from rlm_jupyter.kernels.cell import Output
from rlm_jupyter.lm.client import LM, Message
from rlm_jupyter.lm.demo import DemoLM
from scripts.demo import read_sources
from tests.demo_phrasings import BARE_CONTAIN, CONTAIN, DEFINE, METHOD, VALUE

KINDS = ("define", "contain", "value")

_TEST = re.compile(r"(^|/)_*(tests?)(/|_|\.)|(^|/)test_|_test\.py$")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question and every (path, line) that is a right answer; `value`: the source of the value that is asked for."""

    kind: str
    text: str
    path: str
    lines: frozenset[int]
    value: str = ""

    def is_right(self, answer: str) -> bool:
        """Whether the first place that the answer names is right, file and line."""
        match = re.match(r"(.+?):(\d+): ", answer)
        return match is not None and match[1] == self.path and int(match[2]) in self.lines


@dataclasses.dataclass(frozen=True, slots=True)
class _Definition:
    name: str
    path: str
    line: int
    kind: str
    top: bool
    valued: bool = False
    owner: str = ""


def _definitions(path: str, text: str) -> Iterator[_Definition]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return
    todo: list[tuple[ast.AST, bool]] = [(tree, True)]
    while todo:
        node, top = todo.pop()
        for child in ast.iter_child_nodes(node):
            inner = top and not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.ClassDef):
                yield _Definition(child.name, path, child.lineno, "class", top)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                kind = "method" if isinstance(node, ast.ClassDef) else "function"
                owner = node.name if isinstance(node, ast.ClassDef) else ""
                yield _Definition(child.name, path, child.lineno, kind, top, owner=owner)
            elif isinstance(child, (ast.Assign, ast.AnnAssign)):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        yield _Definition(target.id, path, child.lineno, "constant", top, child.value is not None)
            todo.append((child, inner))


def _value(text: str, line: int) -> str:
    """The source of what is assigned on a line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.lineno == line and node.value:
            return ast.get_source_segment(text, node.value) or ""
    return ""


class Sampler:
    """Draws questions about `sources`, each with one right file, which is one of `paths` (default: any)."""

    def __init__(self, sources: Mapping[str, str], seed: int | str, paths: Iterable[str] | None = None) -> None:
        self._sources = sources
        self._random = random.Random(seed)
        self._paths = sorted(path for path in paths or sources if path.endswith(".py"))
        self._by_name: dict[str, list[_Definition]] = collections.defaultdict(list)
        for path in self._paths:
            for definition in _definitions(path, sources[path]):
                self._by_name[definition.name].append(definition)
        self._names = sorted(name for name in self._by_name if len(name) > 2)
        self._methods = [d for name in self._names for d in self._by_name[name] if d.owner]
        self._constants = sorted(
            {(d.path, d.name) for name in self._names for d in self._by_name[name] if d.top and d.valued and d.name.isupper()}
        )

    def sample(self, kind: str, count: int) -> list[Question]:
        draw: Callable[[], Question | None] = {"define": self._define, "contain": self._contain, "value": self._value}[kind]
        found: list[Question] = []
        while len(found) < count:
            question = draw()
            if question is not None:
                found.append(question)
        return found

    def _define(self) -> Question | None:
        return self._method() if self._random.random() < 0.15 else self._plain()

    def _method(self) -> Question | None:
        """A method by its class: `Owner.name`, `name of class Owner`; the name alone would often fit several files."""
        method = self._random.choice(self._methods)
        owners = [d for d in self._by_name[method.owner] if d.kind == "class"]
        if _TEST.search(method.path) or method.name.startswith("__") or {d.path for d in owners} != {method.path}:
            return None
        text = self._random.choice(METHOD).format(name=method.name, owner=method.owner)
        lines = frozenset(d.line for d in self._by_name[method.name] if (d.path, d.owner) == (method.path, method.owner))
        return Question("define", text, method.path, lines)

    def _plain(self) -> Question | None:
        name = self._random.choice(self._names)
        if name.startswith("__") or (name.startswith("test") and self._random.random() < 0.9):
            return None
        all_of = self._by_name[name]
        tiers = [
            [d for d in all_of if bool(_TEST.search(d.path)) == test and d.top == top]
            for test in (False, True)
            for top in (True, False)
        ]
        best = next(tier for tier in tiers if tier)
        kinds = {d.kind for d in best}
        nested_variable = kinds == {"constant"} and not best[0].top
        if len({d.path for d in best}) != 1 or len(kinds) != 1 or nested_variable:
            return None
        if _TEST.search(best[0].path) and self._random.random() < 0.8:
            return None
        kind = next(iter(kinds))
        text = self._random.choice(DEFINE).format(name=name, the_kind=f"the {kind} " if self._random.random() < 0.7 else "")
        nested = {d.line for d in all_of if d.path == best[0].path and d.kind != "constant"}
        return Question("define", text, best[0].path, frozenset(d.line for d in best) | nested)

    def _contain(self) -> Question | None:
        path = self._random.choice(self._paths)
        lines = self._sources[path].split("\n")
        line = self._random.choice(lines).strip()
        if len(line) < 12 or not re.search(r"\w{3}", line):
            return None
        if self._random.random() < 0.5:
            words = line.split(" ")
            start = self._random.randrange(len(words))
            line = " ".join(words[start : start + self._random.randint(2, 8)])
        if len(line) < 10 or sum(line in text for text in self._sources.values()) != 1:
            return None
        if self._random.random() < 0.25:
            text = self._random.choice(BARE_CONTAIN).format(text=line)
        else:
            first, last = self._random.choice([("'", "'"), ('"', '"'), ("`", "`"), ("“", "”")])
            text = self._random.choice(CONTAIN).format(quoted=f"{first}{line}{last}")
        return Question("contain", text, path, frozenset(n for n, other in enumerate(lines, 1) if line in other))

    def _value(self) -> Question | None:
        path, name = self._random.choice(self._constants)
        if _TEST.search(path) and self._random.random() < 0.8:
            return None
        all_of = [d for d in self._by_name[name] if d.path == path and d.top]
        dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        last = dotted.rpartition(".")[2]
        forms = [dotted, dotted, dotted, path]
        others = {p for p in self._sources if re.search(rf"(^|/){re.escape(last)}(/__init__)?\.py$", p)}
        forms += [last, f"{last}.py"] if others == {path} and not path.endswith("__init__.py") else []
        text = self._random.choice(VALUE).format(name=name, module=self._random.choice(forms))
        value = _value(self._sources[path], all_of[0].line) if len(all_of) == 1 else ""
        return Question("value", text, path, frozenset(d.line for d in all_of), value)


def ask_plainly(sources: object, question: str) -> str:
    """The answer of the stand-in with its code run in a plain namespace: no kernel, no loop."""
    model = DemoLM()
    final: list[object] = []

    def batched(batch: Sequence[str]) -> list[str]:
        return [_complete(model, [{"role": "user", "content": prompt}]) for prompt in batch]

    names: dict[str, object] = {"context": sources, "llm_query_batched": batched, "FINAL_VAR": final.append}
    left = prompts.Left(1, 30, 1000, 1800)
    messages: list[Message] = [
        {"role": "system", "content": prompts.SYSTEM},
        {"role": "user", "content": prompts.first_message(question, contexts.prepare(sources).description, left)},
    ]
    for _ in range(10):
        reply = _complete(model, messages)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(reply.partition("```repl\n")[2].rpartition("\n```")[0], names)
        if final:
            return str(final[0])
        output = prompts.outputs_message([prompts.Ran((Output("stdout", out.getvalue()),), "ok")], 0, left)
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": output}]
    return ""


def ask_rlm(sources: object, question: str) -> str:
    """The answer of the stand-in through the real loop, its code run in a real kernel."""
    return RLM(backend="demo", environment="local").completion(sources, root_prompt=question).response


def _complete(model: LM, messages: Sequence[Message]) -> str:
    return asyncio.run(model.complete(messages, max_output_tokens=8192, timeout=60)).text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100, help="questions of each kind")
    parser.add_argument("--seed", default=time.strftime("%Y%m%d%H%M%S"), help="default: a new one each time")
    parser.add_argument("--rlm", action="store_true", help="through the real loop and kernel (slower)")
    parser.add_argument("--show", action="store_true", help="print the questions that were missed")
    chosen = parser.parse_args(arguments)
    sources = read_sources()
    sampler = Sampler(sources, chosen.seed)
    print(f"{len(sources):,} files, {sum(map(len, sources.values())) / 1e6:.1f} MB, seed {chosen.seed}")
    ask = ask_rlm if chosen.rlm else ask_plainly
    right = asked = 0
    for kind in KINDS:
        good = whole = values = 0
        started = time.monotonic()
        for question in sampler.sample(kind, chosen.count):
            answer = ask(sources, question.text)
            good += question.is_right(answer)
            values += bool(question.value)
            whole += bool(question.value) and question.value in answer
            if chosen.show and not question.is_right(answer):
                print(
                    f"  MISSED {question.text}\n    true: {question.path}:{sorted(question.lines)}\n    said: {answer[:300]!r}"
                )
        seconds = (time.monotonic() - started) / max(1, chosen.count)
        more = f"; the whole value quoted in {whole} of {values}" if values else ""
        print(f"{kind:>8}: {good} of {chosen.count} right file and line ({seconds:.2f} s each){more}")
        right, asked = right + good, asked + chosen.count
    print(f"     all: {right} of {asked}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

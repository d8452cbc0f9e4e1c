"""What a finished run tells, read back out of each of its renderings: for the test that they all tell the same."""

from __future__ import annotations

import html.parser
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from playwright.sync_api import Page

from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Branch
from rlm_jupyter.widgets import markup, words

Asked = tuple[str, str, str, str]
"""A call or a child: its state, what it was asked, what came back, its error."""


@dataclass
class Facts:
    """Iterations are counted by depth and number; pictures by their dimensions; texts without the white space around them."""

    status: str = ""
    answer: str = ""
    iterations: Counter[tuple[int, int]] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    outputs: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    calls: Counter[Asked] = field(default_factory=Counter)
    children: Counter[Asked] = field(default_factory=Counter)
    totals: dict[str, str] = field(default_factory=dict)


def of(trace: Trace) -> Facts:
    """Give what there is to be told of a run."""
    found = Facts(words.status(trace), trace.answer)
    found.totals = totals(words.tokens(trace.usage), words.spent(trace), words.duration(trace.seconds))
    branches: list[tuple[int, Branch]] = [(0, trace), *((child.depth, child) for child in trace.children)]
    for depth, branch in branches:
        for turn in branch.iterations:
            found.iterations[depth, turn.iteration] += 1
            for cell in turn.cells:
                found.codes[cell.code] += 1
                found.outputs.update(out.text.strip() for out in cell.outputs if not out.picture)
    found.pictures.update(f"{picture.width}x{picture.height}" for picture in trace.pictures.values())
    found.calls.update((call.state, call.prompt, call.reply, call.error) for call in trace.calls)
    found.children.update((child.status, child.question, child.answer, child.error) for child in trace.children)
    return found


def totals(tokens: str, cost: str, time: str) -> dict[str, str]:
    return {"tokens": tokens.partition(" ")[0], "cost": cost, "time": time.partition(" of ")[0]}


class Node:
    """An element of a page."""

    def __init__(self, tag: str, attributes: dict[str, str], above: Node | None) -> None:
        self.tag, self.attributes, self.above = tag, attributes, above
        self.inner: list[Node | str] = []

    @property
    def style(self) -> str:
        return self.attributes.get("style", "")

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.inner)

    def all(self, *tags: str) -> Iterator[Node]:
        for part in self.inner:
            if isinstance(part, Node):
                if part.tag in tags:
                    yield part
                yield from part.all(*tags)

    def first(self, tag: str) -> Node:
        return next(self.all(tag))

    def around(self) -> Iterator[Node]:
        node = self.above
        while node is not None:
            yield node
            node = node.above


class Document(html.parser.HTMLParser):
    """A page as a tree of elements."""

    VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self._at = Node("", {}, None)
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, self._at)
        self._at.inner.append(node)
        if tag not in self.VOID:
            self._at = node

    def handle_endtag(self, tag: str) -> None:
        for node in (self._at, *self._at.around()):
            if node.tag == tag and node.above is not None:
                self._at = node.above
                return

    def handle_data(self, data: str) -> None:
        self._at.inner.append(data)


def at_rest(source: str) -> Facts:
    """Read the page at rest, or one that has it somewhere within it."""
    found = Facts()
    told: dict[str, str] = {}
    roots = [node for node in Document(source).root.all("div") if "mathjax_ignore" in node.attributes.get("class", "")]
    found.status = roots[0].first("b").text
    for root in roots:
        for node in root.all("div", "pre", "img", "details", "span"):
            depth = sum(_is_child(above) for above in node.around())
            inside = any(above.tag == "details" for above in node.around())
            if node.tag == "pre" and node.style == markup.CODE:
                found.codes[node.text] += 1
            elif node.tag == "pre" and node.style in (markup.OUTPUT, markup.ERROR) and not _is_error_of_child(node):
                found.outputs[node.text.strip()] += 1
            elif node.tag == "img":
                found.pictures.update(re.findall(r"\d+x\d+", node.attributes["alt"]))
            elif node.tag == "div" and "border-left:3px" in node.style and not inside:
                found.answer = node.text
            elif node.tag == "span" and node.style == markup.LABEL:
                value = node.above.inner[1] if node.above else ""
                told[node.text] = value.text if isinstance(value, Node) else value
            elif node.tag == "details":
                _row(found, node, depth)
    found.totals = totals(told["tokens"], told["cost"], told["time"])
    return found


def _is_child(node: Node) -> bool:
    return node.tag == "details" and "question" in _terms(node)


def _is_error_of_child(node: Node) -> bool:
    return node.above is not None and node.above.above is not None and _is_child(node.above.above)


def _terms(row: Node) -> dict[str, str]:
    """Give the terms of a row's own list, and the error and the answer of a child."""
    body = row.inner[1] if len(row.inner) > 1 else None
    lists = [node for node in (row, body) if isinstance(node, Node) for node in node.inner if isinstance(node, Node)]
    terms = next((node for node in lists if node.tag == "dl"), None)
    if terms is None:
        return {}
    found = {name.text: value.text for name, value in zip(terms.all("dt"), terms.all("dd"), strict=True)}
    assert isinstance(body, Node)
    for node in body.inner if "question" in found else ():
        if isinstance(node, Node) and "border-left:3px" in node.style:
            found["answer"] = node.text
        elif isinstance(node, Node) and node.tag == "pre" and node.style == markup.ERROR:
            found["error"] = node.text
    return found


def _row(found: Facts, row: Node, depth: int) -> None:
    terms = _terms(row)
    summary = row.first("summary")
    if "question" in terms:
        asked = (summary.first("b").text, terms["question"], terms.get("answer", ""), terms.get("error", ""))
        found.children[asked] += 1
    elif "prompt" in terms:
        found.calls[summary.first("b").text, terms["prompt"], terms.get("reply", ""), terms.get("error", "")] += 1
    elif number := re.match(r"(\d+)\u2002", summary.text):
        found.iterations[depth, int(number[1])] += 1


BAR = re.compile(r"^((?: {4})*)  ([|!]) (.*)$")
TURN = re.compile(r"^((?: {4})*)(?:Iteration (\d+)|Set-up code) · ")
PERSON = re.compile(r"^(?:[\d,]+|rlm_query) (\w+) · \d+ iterations?")
CALL = re.compile(r"^[\d,]+ (ok|failed|running) · ")
PART = re.compile(r"^    (?:(prompt|reply): )?(.*)$")
QUESTION = re.compile(r"^ +(question|answer): (.*)$")


class Plain:
    """Reads the text of a run at rest, line by line."""

    def __init__(self, text: str) -> None:
        self.found = Facts(text.partition(" · ")[0])
        head, _, rest = text.partition("\nIteration ")
        self.found.answer = "\n".join(head.split("\n")[2:]).strip("\n")
        body, _, foot = rest.rpartition("\nquestion ")
        told = dict(re.findall(r"^(tokens|cost|time) +(.*)$", foot, re.MULTILINE))
        self.found.totals = totals(told["tokens"], told["cost"], told["time"])
        self._indent = ""
        self._code: list[str] = []
        self._output: list[str] = []
        self._asked: dict[str, str] = {}
        self._part = ""
        for line in f"Iteration {body}".split("\n"):
            self._line(line)
        self._flush()

    def _line(self, line: str) -> None:
        if turn := TURN.match(line):
            self._flush()
            self._indent = turn[1]
            self.found.iterations[len(turn[1]) // 4, int(turn[2] or 0)] += 1
        elif bar := BAR.match(line):
            self._bar(bar[2], bar[3])
        elif self._asked.get("kind") == "child" and (said := QUESTION.match(line)):
            self._asked[said[1]] = said[2]
        elif line.startswith(self._indent + "    ") and not self._asked:
            self._code.append(line.removeprefix(self._indent + "    "))
        else:
            self._flush()

    def _bar(self, sign: str, told: str) -> None:
        part = PART.match(told)
        if sign == "|" and (person := PERSON.match(told)):
            self._flush()
            self._asked = {"kind": "child", "state": person[1]}
        elif sign == "|" and (call := CALL.match(told)):
            self._flush()
            self._asked = {"kind": "call", "state": call[1]}
        elif self._asked.get("kind") == "call" and part:
            self._part = part[1] or self._part
            before = self._asked.get(self._part)
            self._asked[self._part] = part[2] if part[1] or before is None else f"{before}\n{part[2]}"
        elif sign == "!" and self._asked.get("state") == "failed":
            self._asked["error"] = told
        elif not re.match(r"^[\d,]+ (llm_query|rlm_query): ", told):
            if self._code or self._asked:
                self._flush()
            self._output.append(told)
        else:
            self._flush()

    def _flush(self) -> None:
        found, asked = self.found, self._asked
        if self._code:
            found.codes["\n".join(self._code)] += 1
        if self._output:
            told = "\n".join(self._output).strip()
            picture = re.fullmatch(r"\[a picture of (\d+x\d+)\]", told)
            (found.pictures if picture else found.outputs)[picture[1] if picture else told] += 1
        if asked.get("kind") == "call":
            found.calls[asked["state"], asked.get("prompt", ""), asked.get("reply", ""), asked.get("error", "")] += 1
        elif asked:
            found.children[asked["state"], asked.get("question", ""), asked.get("answer", ""), asked.get("error", "")] += 1
        self._code, self._output, self._asked, self._part = [], [], {}, ""


def plain(text: str) -> Facts:
    """Read the text of a run at rest."""
    return Plain(text).found


DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"
ROWS = """() => {
  const view = document.querySelector('.rlm-live'), tree = view.querySelector('.rlm-tree');
  const say = (node, name) => (node.querySelector(name) || {textContent: ''}).textContent;
  return {
    status: say(view, '.rlm-word'), answer: say(view, '.rlm-answer-text'),
    tokens: say(view, '.rlm-total-tokens'), cost: say(view, '.rlm-total-cost'), time: say(view, '.rlm-total-time'),
    rows: [...tree.querySelectorAll('.rlm-row')].map(row => ({
      level: Number(row.getAttribute('aria-level')), kind: row.classList[1].slice(4),
      label: row.getAttribute('aria-label') || '',
      name: say(row, '.rlm-name'), body: say(row, '.rlm-body'), state: say(row, '.rlm-state'),
      picture: (row.querySelector('img') || {alt: ''}).alt,
    })),
  };
}"""


def front(page: Page) -> Facts:
    """Read the live view, or a file that was exported: every row of its tree, opened."""
    page.wait_for_selector(".rlm-live .rlm-row")
    page.evaluate("() => { Object.assign(document.querySelector('.rlm-tree').style, {maxHeight: 'none', height: '60000px'}); }")
    page.get_by_role("button", name="Expand all").click()
    page.get_by_role("button", name="Collapse").wait_for()
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"
    )
    seen = page.evaluate(ROWS)
    found = Facts(seen["status"], seen["answer"])
    found.totals = totals(seen["tokens"], seen["cost"], seen["time"])
    above: list[tuple[int, str, dict[str, str]]] = []
    asked: list[tuple[str, dict[str, str]]] = []
    for row in seen["rows"]:
        above = [one for one in above if one[0] < row["level"]]
        parts = above[-1][2] if above else {}
        match row["kind"]:
            case "turn":
                number = re.match(r"Iteration (\d+|set-up)", row["label"])
                assert number is not None
                depth = sum(kind == "child" for _, kind, _ in above)
                found.iterations[depth, int(number[1]) if number[1].isdigit() else 0] += 1
            case "code":
                found.codes[row["body"]] += 1
            case "out":
                found.outputs[row["body"].strip()] += 1
            case "pic":
                found.pictures.update(re.findall(r"\d+x\d+", row["picture"]))
            case "text":
                parts[row["name"].partition(",")[0].lower()] = row["body"]
            case "call" | "child":
                asked.append((row["kind"], {"state": row["state"].partition(",")[0]}))
        above.append((row["level"], row["kind"], asked[-1][1] if row["kind"] in ("call", "child") else {}))
    for kind, parts in asked:
        first, second = ("prompt", "reply") if kind == "call" else ("question", "answer")
        (found.calls if kind == "call" else found.children)[
            parts["state"], parts.get(first, ""), parts.get(second, ""), parts.get("error", "")
        ] += 1
    return found

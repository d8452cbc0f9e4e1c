"""A run as one file: whole, with nothing to load, nothing that breaks out, and written where and when one said so."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlm_jupyter import events
from rlm_jupyter.trace import Trace
from rlm_jupyter.trace_file import trace_folder
from rlm_jupyter.widgets import export, html, listing, page, text, words
from rlm_jupyter.widgets.live import source
from tests.payloads import PAYLOADS, Page, run_of, unseen
from tests.runs import ANSWER, short_run
from tests.shells import Shell, open_shell
from tests.test_family import many_children

KNOWN = {"html", "head", "meta", "title", "style", "body", "main", "noscript", "pre", "dl", "dt", "dd", "script"}


class File(HTMLParser):
    """Reads an exported file as a browser would: its elements, their attributes, and what scripts and styles hold."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._within = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in KNOWN, tag
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self._within = True

    def handle_data(self, data: str) -> None:
        if self._within:
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._within = False

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def of(self, tag: str, **attributes: str) -> str:
        (found,) = [
            text
            for (name, held), text in zip(self.elements, self.texts, strict=True)
            if name == tag and attributes.items() <= held.items()
        ]
        return found


def shape(source: str) -> list[tuple[str, dict[str, str | None]]]:
    return [element for element in File(source).elements if element[0] not in ("dt", "dd")]


@pytest.mark.parametrize("name", PAYLOADS)
def test_p13_a_payload_in_every_field_changes_no_element_of_the_file(name: str) -> None:
    source = export.render(Trace.from_events(run_of(PAYLOADS[name])))
    assert shape(source) == shape(export.render(Trace.from_events(run_of("plain"))))
    source.encode("utf-8")
    assert json.loads(File(source).of("script", type="application/json"))


def test_the_policy_allows_this_code_and_this_style_and_nothing_else() -> None:
    file = File(export.render(Trace.from_events(short_run().end(answer=ANSWER).events)))
    (policy,) = [held["content"] for tag, held in file.elements if held.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    digests = {
        kind: "'sha256-" + base64.b64encode(hashlib.sha256(held.encode()).digest()).decode() + "'"
        for kind, held in (("script-src", file.of("script", type="module")), ("style-src", file.of("style")))
    }
    rest = {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert rules == rest | digests
    assert not re.search(r"https?://|//[a-z]", file.of("script", type="module").replace("// ", ""))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", file.of("script", type="module")
    )


def test_the_file_holds_the_whole_run() -> None:
    trace = Trace.from_events(many_children(300).end(answer=ANSWER).events)
    messages = json.loads(File(export.render(trace)).of("script", type="application/json"))
    kinds = [record["k"] for message in messages for record in message["records"]]
    assert kinds.count("child") == len(trace.children) == 300
    assert kinds.count("call") == kinds.count("got") == len(trace.calls)
    assert messages == json.loads(json.dumps(export.messages(trace)))


@pytest.fixture
def shell() -> Iterator[Shell]:
    with open_shell() as opened:
        yield opened


def test_export_writes_a_new_file_and_over_none_that_exists(shell: Shell, tmp_path: Path) -> None:
    trace = Trace.from_events(short_run().end(answer=ANSWER).events)
    (trace_folder() / "kept.jsonl").write_text(trace.to_jsonl(), encoding="utf-8")
    target = tmp_path / "a run.html"
    ran = shell.run(f"%rlm export kept '{target}'")
    assert ran.error is None
    assert f"{target.stat().st_size:,} bytes" in ran.output
    written = target.read_text(encoding="utf-8")
    assert written == export.render(Trace.from_jsonl(trace.to_jsonl()))
    assert target.stat().st_mode & 0o777 == 0o600
    target.write_text("mine", encoding="utf-8")
    ran = shell.run(f"%rlm export kept '{target}'")
    assert ran.output.startswith("UsageError: ")
    assert "exists; --force writes over it" in ran.output
    assert target.read_text(encoding="utf-8") == "mine"
    assert shell.run(f"%rlm export kept '{target}' --force").error is None
    assert target.read_text(encoding="utf-8") == written
    assert [path.name for path in tmp_path.iterdir()] == ["a run.html"]


def test_what_cannot_be_exported_is_one_line_and_writes_nothing(shell: Shell, tmp_path: Path) -> None:
    folder = trace_folder()
    (folder / "kept.jsonl").write_text(Trace.from_events(short_run().end().events).to_jsonl(), encoding="utf-8")
    (folder / "bad.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere.html")
    before = sorted(tmp_path.iterdir())
    for line, told in (
        ("", "type %rlm export ID file.html"),
        ("kept", "type %rlm export ID file.html"),
        ("kept x.html --what", "type %rlm export ID file.html"),
        (f"nobody {tmp_path}/x.html", "no run has the id nobody"),
        (f"../kept {tmp_path}/x.txt", "must end in .html"),
        (f"kept {tmp_path}/none/x.html", "there is no folder"),
        (f"kept {tmp_path}/folder.html", "that is a folder"),
        (f"kept {tmp_path}/link.html --force", "that is a link"),
        (f"bad {tmp_path}/x.html", "bad.jsonl cannot be exported"),
        ("kept ''", "'': the name of the file must end in .html"),
        (f"kept {tmp_path}/a\0b.html", "a\\x00b.html': the name of the file must end in .html"),
        (f"kept {tmp_path}/{'n' * 300}.html", "cannot be written: File name too long"),
        (f"kept {tmp_path}/{'n' * 300}.html --force", "cannot be written: File name too long"),
        (f"kept {tmp_path}/folder.html/{'n' * 300}/x.html", "there is no folder"),
        ("kept 'x.html", "cannot read the words"),
    ):
        ran = shell.run(f"%rlm export {line}")
        assert ran.output.startswith("UsageError: "), line
        assert told in ran.output, line
        assert ran.output.strip().count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before


def test_of_a_damaged_trace_file_what_can_be_read_is_shown_and_the_rest_is_counted(shell: Shell, tmp_path: Path) -> None:
    script = short_run(number=3).child("a child?").ask("deeper").answered("7").end(answer=ANSWER)
    lines = Trace.from_events(script.events).to_jsonl().encode().split(b"\n")[:-1]
    began = next(number for number, line in enumerate(lines) if b"ChildStarted" in line)
    child = sum(b'"node":"0.' in line for line in lines)
    lines[began] = lines[began][:40]
    lines[3:3] = [b"\xff\xfe", b"[" * 100_000, b'{"kind":"Notice","version":1}', b'{"kind":"Dreamt","version":9}']
    (trace_folder() / "torn.jsonl").write_bytes(b"\n".join(lines))
    ran = shell.run("%rlm show torn")
    assert ran.error is None
    assert ANSWER in ran.output
    assert "3 llm_query: 3 ok" in ran.output
    assert "a child?" not in ran.output
    told = f"this trace file is damaged: {4 + child} of its lines cannot be read and are left out"
    assert ran.output.count(told) == 1
    target = tmp_path / "torn.html"
    assert shell.run(f"%rlm export torn {target}").error is None
    totals = target.read_text(encoding="utf-8").partition('<dl id="totals">')[2]
    assert told in totals


def test_of_a_file_whose_first_line_is_lost_the_rest_is_shown(shell: Shell, tmp_path: Path) -> None:
    lines = Trace.from_events(short_run(number=3).end(answer=ANSWER).events).to_jsonl().split("\n")
    (trace_folder() / "headless.jsonl").write_text("\n".join(["{", *lines[1:]]), encoding="utf-8")
    ran = shell.run("%rlm show headless")
    assert ran.error is None
    assert ANSWER in ran.output
    assert "3 llm_query: 3 ok" in ran.output
    assert "1 of its lines cannot be read" in ran.output
    assert shell.run(f"%rlm export headless {tmp_path}/x.html").error is None
    (trace_folder() / "marked.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    ran = shell.run("%rlm show marked")
    assert ANSWER in ran.output
    assert "cannot be read" not in ran.output


STRANGE = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "numbers": b"1\n2\n3",
    "kind": json.dumps({"kind": "\x1b[2J" * 9_000, "version": 1}).encode(),
    "version": json.dumps({"kind": "Notice", "version": "\x1b]0;x\x07" * 9_000}).encode(),
    "field": json.dumps({"kind": "Notice", "version": 1, "\x1b[2J\n" * 9_000: 1}).encode(),
}


@pytest.mark.parametrize("name", [*STRANGE, "x" * 300, "nul\x00", "\x1b[2Jred"])
def test_what_holds_no_run_is_one_visible_line(shell: Shell, tmp_path: Path, name: str) -> None:
    if name in STRANGE:
        (trace_folder() / f"{name}.jsonl").write_bytes(STRANGE[name])
    for line in (f"%rlm show {name}", f"%rlm export {name} {tmp_path}/x.html"):
        ran = shell.run(line)
        assert ran.output.startswith("UsageError: ")
        assert len(ran.output) < 500
        assert ran.output.count("\n") == 1
        assert not unseen(ran.output)
    assert list(tmp_path.iterdir()) == []


ODD = (float("nan"), float("inf"), -1, 10**300, -(10**300), 10**4000, 1e308, True)
NAMES = ("version", "cell", "iteration", "kernel")


def oddly(fields: dict[str, Any], odd: float) -> dict[str, Any]:
    """Give an event, every figure of it `odd`, those that name something aside."""
    # A reader refuses a fraction where there can be none, and seconds of more digits than a float holds.
    kinds = (float,) if isinstance(odd, float) else (int,) if odd > 10**308 else (int, float)
    changed: dict[str, Any] = {name: odd for name, value in fields.items() if type(value) in kinds and name not in NAMES}
    if "usage" in fields:
        changed["usage"] = oddly(fields["usage"], odd)
    if "settings" in fields:
        changed["settings"] = dict.fromkeys(("max_cost", "max_calls", "timeout", "max_iterations", "model"), odd)
    return fields | changed


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:8])
def test_figures_that_nobody_measured_break_no_view(odd: float) -> None:
    stream = [oddly(event.to_dict(), odd) for event in run_of("x")]
    for last in (len(stream), -1):
        trace = Trace()
        for fields in stream[:last]:
            with contextlib.suppress(ValueError):
                trace.add(events.from_dict(fields))
        assert len(trace.events) > 8
        Page(html.render(trace))
        page.body(trace, page.LIVE_CAP, live=True)
        assert len(listing.render([trace])) < 600
        assert len(text.render(trace)) < 20_000
        assert len(" ".join([*words.progress(trace, 1.0), *words.opening(trace), words.state(trace)])) < 1_000
        export.render(trace)


@pytest.mark.parametrize(("name", "root"), [("live.css", ".rlm-live"), ("panel.css", ".rlm-panel")])
def test_every_rule_of_our_styles_is_within_our_own_root(name: str, root: str) -> None:
    style = re.sub(r"/\*.*?\*/|@keyframes[^{]*\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", source(name), flags=re.DOTALL)
    rules = [rule.strip() for rule in re.findall(r"([^{};]+)\{", style)]
    selectors = [one.strip() for rule in rules if not rule.startswith("@") for one in rule.split(",")]
    assert len(selectors) > 20
    assert [one for one in selectors if not re.match(re.escape(root) + r"(?![\w-])", one)] == []
    assert {rule.split()[0] for rule in rules if rule.startswith("@")} <= {"@media", "@container"}

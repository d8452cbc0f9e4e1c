"""Children in the views at rest: trees in the tree, batches as one row, the timeline; bounded whatever the family was."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable

import pytest

from rlm_jupyter import events
from rlm_jupyter.trace import DEPTH_CAP, Trace
from rlm_jupyter.widgets import export, fit, html, markup, page, text, timeline, words
from rlm_jupyter.widgets.terminal import TextView
from tests.payloads import Page, run_of
from tests.runs import ANSWER, Script, fenced

KIN = "rlm_query_batched(questions)"


def many_children(number: int = 500, turns: int = 2) -> Script:
    script = Script().ask(fenced("One each.", KIN)).run(KIN)
    for index in range(number):
        script.child(f"question {index} <&>", "b")
        for _ in range(turns):
            script.ask(fenced("Look.", "print(context)")).run("print(context)", ("stdout", "seen\n")).call(index).done()
        failed = index % 97 == 41
        script.answered("" if failed else f"answer {index}", "failed" if failed else "answered", "KernelDied" if failed else "")
    return script.done()


def many_families() -> Script:
    """Batches of two, each child with a child: more batches than may have a row."""
    script = Script().ask(fenced("Loop.", "loop()")).run("loop()")
    for batch in range(300):
        for _ in range(2):
            script.child("outer", f"b{batch}").ask("x").run("1").child("inner").ask("y").run(
                "2"
            ).done().answered().done().answered()
    return script.done()


def deep() -> Script:
    script = Script()
    for level in range(DEPTH_CAP):
        script.ask(f"level {level}").run("rlm_query(q)").child(f"question of level {level + 1}")
    script.ask("the bottom")
    for _ in range(DEPTH_CAP):
        script.answered("found").done()
    return script


FAMILIES = {"children": many_children, "families": many_families, "deep": deep}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ended", [True, False])
def test_a_page_and_a_text_are_bounded_whatever_the_family(name: str, ended: bool) -> None:
    script = FAMILIES[name]()
    trace = Trace.from_events(script.end(answer=ANSWER).events if ended else script.events)
    source = html.render(trace)
    parsed = Page(source)
    assert fit.weight(source) <= page.CAP
    assert parsed.details <= 500
    assert fit.weight(text.render(trace)) <= text.CAP + 64
    assert fit.weight(page.body(trace, page.LIVE_CAP, live=True)) <= page.LIVE_CAP
    if ended:
        assert ANSWER in parsed.text


def test_a_child_is_a_tree_in_the_tree() -> None:
    script = Script().ask(fenced("Ask a child.", "rlm_query(q)")).run("rlm_query(q)").child("Which lease?").ask("Let me see.")
    script.run("print(context)", ("stdout", "a lease\n")).call(7).child("And clause 14?").ask("I look.").run("14").done()
    script.answered("It is one.").done().answered("The lease of Acme.").done().end(answer=ANSWER)
    trace = Trace.from_events(script.events)
    plain = text.render(trace)
    shown = Page(html.render(trace)).text
    for told in (
        "rlm_query answered · Which lease?",
        "str, 48.2 KB: str of 48,211 characters",
        "Let me see.",
        "a lease",
        "It is one.",
    ):
        assert told in shown
    assert words.child_figures(trace.children[0]) == ["1 iteration", "1 request", "980 tokens", "$0.0123", "4.0 s", "gpt-5"]
    assert "1 iteration · 1 request · 980 tokens · $0.0123 · 4.0 s · gpt-5" in shown
    order = ["Ask a child.", "Which lease?", "The lease of Acme.", "Let me see.", "And clause 14?", "It is one.", "I look."]
    places = [shown.index(told) for told in order]
    assert places == sorted(places)
    assert "2 rlm_query: 2 answered; 2 levels below the root" in shown
    assert "\n    question: Which lease?\n" in plain
    assert "\n    Let me see.\n        print(context)\n" in plain
    assert "\n        question: And clause 14?\n" in plain
    assert "\n        I look.\n            14\n" in plain


def test_a_batch_of_children_is_one_row_and_what_failed_in_it_is_seen() -> None:
    trace = Trace.from_events(many_children().end(answer=ANSWER).events)
    shown = Page(html.render(trace)).text
    assert "500 rlm_query: 495 answered, 5 failed" in shown
    assert shown.count("KernelDied") >= 5
    rows = re.findall(r"[\d,]+ (answered|failed) · question [\d,]+ <&>", shown)
    left = re.search(r"and ([\d,]+) more without a row: ([\d,]+) rlm_query: ([\d,]+) answered(?!, \d+ failed)", shown)
    assert left is not None
    assert rows.count("failed") == 5
    assert len(rows) + int(left[1].replace(",", "")) == 500


def test_what_the_family_took_is_in_the_row_of_its_iteration() -> None:
    trace = Trace.from_events(many_children(3).end(answer=ANSWER).events)
    figures = words.iteration_figures(trace.iterations[0])
    assert figures[0] == "3 rlm_query: 3 answered"
    assert figures[1] == words.tokens(sum((child.usage for child in trace.children), trace.iterations[0].usage))


def long_lines() -> list[events.Event]:
    """Give a run with a line of 5 MB in a reply, a code, an output, a prompt, a child's answer and the answer."""
    line = "<é" * 2_500_000
    script = Script().ask(line).run(line, ("stdout", line)).call(prompt=line).child("q").ask("x").answered(line).done()
    return script.end(answer=line).events


@pytest.mark.parametrize(
    "stream",
    [pytest.param(long_lines, id="lines"), pytest.param(lambda: run_of("<é" * 2_500_000), id="all", marks=pytest.mark.matrix)],
)
def test_a_line_of_5_mb_is_cut_in_every_renderer(stream: Callable[[], list[events.Event]]) -> None:
    every = stream()
    trace = Trace.from_events(every)
    assert fit.weight(html.render(trace)) <= page.CAP
    assert fit.weight(text.render(trace)) <= text.CAP + 64
    assert len(export.render(trace)) < 30_000_000
    file, shown = io.StringIO(), Trace()
    view = TextView(file, lambda: 0.0)
    view.start(shown)
    for event in every:
        shown.add(event)
        view.update(event)
    view.finish()
    assert len(file.getvalue()) < 1_000_000
    for told in (html.render(trace), text.render(trace), file.getvalue()):
        assert "characters left out" in told


BAR = re.compile(r'<div style="(?:margin-left:([\d.]+)%;)?width:([\d.]+)%;border-top:7px solid (#\w{6})"></div>')


def bars(source: str) -> list[tuple[float, float, str]]:
    """Give the bars of each strip: where they begin and end, in per cent, and their colour."""
    found: list[tuple[float, float, str]] = []
    for strip in re.findall(r'<div style="display:flex;height:7px;margin:1px 0">(.*?)</div></div>', source):
        cursor = 0.0
        for gap, width, colour in BAR.findall(strip + "</div>"):
            begin = cursor + float(gap or 0)
            cursor = begin + float(width)
            found.append((round(begin), round(cursor), colour))
    return found


def test_the_timeline_shows_what_ran_when() -> None:
    script = Script()
    at = script.at
    trace = Trace.from_events(script.ask("x").run("go()").events)
    trace.started, trace.status, trace.seconds = at, "answered", 10.0
    turn, cell = trace.iterations[0], trace.iterations[0].cells[0]
    turn.reply, turn.started, turn.seconds = "x", at, 4.0
    cell.started, cell.seconds, cell.status = at + 5, 4.0, "ok"
    source = "".join(map(str, timeline.draw(trace)))
    assert bars(source) == [(0, 40, timeline.ASK), (50, 90, timeline.CODE)]
    assert "asking the model" in Page(source).text
    assert "sub-call" not in Page(source).text


def test_the_timeline_shows_many_at_once_as_their_number() -> None:
    source = "".join(map(str, timeline.draw(Trace.from_events(many_children(40).end(answer=ANSWER).events))))
    shown = Page(source).text
    for told in ("root", "children", "their sub-calls", "0 s"):
        assert told in shown
    crowd = Script().ask("x").run("go()")
    for number in range(30):
        crowd.call(number, "b", "failed" if number == 5 else "ok")
    trace = Trace.from_events(crowd.done().end(answer=ANSWER).events)
    source = "".join(map(str, timeline.draw(trace)))
    assert "sub-calls, 30 at once" in Page(source).text
    assert "failed" in Page(source).text
    assert source.count(f"border-top:2px solid {markup.BAD}") == 1


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1e300, 1e300, 0.0])
def test_odd_times_draw_nothing_outside_of_the_run(odd: float) -> None:
    stream = [
        dataclasses.replace(event, at=odd if number % 3 else event.at)
        for number, event in enumerate(many_children(3).end().events)
    ]
    trace = Trace.from_events(stream)
    for turn in trace.iterations:
        turn.seconds = odd
    source = "".join(map(str, timeline.draw(trace)))
    Page(source)
    assert all(0 <= begin <= end <= 101 for begin, end, _ in bars(source))


def test_a_transcript_tells_a_child_when_it_begins_and_whole_when_it_has_ended() -> None:
    file, trace = io.StringIO(), Trace()
    view = TextView(file, lambda: 0.0)
    view.start(trace)
    script = many_children(2, turns=1).end(answer=ANSWER)
    for event in script.events:
        trace.add(event)
        view.update(event)
        if isinstance(event, events.ChildStarted):
            assert file.getvalue().endswith(f"  | rlm_query: {event.question}\n")
        if isinstance(event, events.ChildEnded):
            assert f"    question: {trace.children[-1].question}\n    answer: {event.answer}\n" in file.getvalue()
    view.finish()
    shown = file.getvalue()
    assert shown.count("\n        print(context)\n") == shown.count("    answer: ") == 2
    assert shown.index("answer: answer 1") < shown.index("2 rlm_query: 2 answered")
    assert "seen" in shown

"""The page of a run: text only, bounded, truthful; and the live view: how much it sends, and when."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

import pytest

from rlm_jupyter import events
from rlm_jupyter.events import Event, Usage
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import fit, html, listing, page, text, words
from tests.browser.lab import notebook, output_cell
from tests.payloads import EVERYTHING, FORGED, PAYLOADS, Page, pictured, png, run_of, unseen
from tests.runs import ANSWER, SPLIT, Script, fenced, long_run, short_run

KB = 1000


def big_outputs() -> Script:
    script = Script()
    for number in range(30):
        code = f"print(pages[{number}])"
        script.ask(fenced("Read on.", code)).run(code, ("stdout", f'line {number} <"\\&\n' * 16_000)).done(omitted=1 << 30)
    return script


def many_calls(number: int = 10_000) -> Script:
    script = Script()
    script.ask(fenced("Ask about each.", "llm_query_batched(prompts)")).run("llm_query_batched(prompts)")
    return script.batch(number, failed=number // 97, running=20).done()


def many_iterations(number: int = 2_000) -> Script:
    script = Script()
    for index in range(number):
        script.ask(fenced(f"Step {index} <&>", "pass"), usage=Usage(10, 10)).run("pass").call(index).batch(2).done()
    return script


def many_batches() -> Script:
    script = Script()
    script.ask(fenced("Loop.", "loop()")).run("loop()")
    for _ in range(1_500):
        script.batch(2)
    return script.done()


def many_pieces() -> Script:
    """One reply of thousands of blocks, and a cell whose streams alternate."""
    script = Script()
    codes = [f"x = {number}" for number in range(3_000)]
    script.ask(fenced("Many.", *codes[:1_500]))
    for code in codes[:1_000]:
        script.run(code).done()
    script.run("mix()")
    for number in range(3_000):
        script.add(events.CellOutput, cell=script.cell, stream=("stdout", "stderr", "result")[number % 3], text=f"{number}\n")
    script.done()
    for number in range(3_000):
        script.add(events.Notice, text=f"notice {number} " * 40)
    return script


def picture_run(*numbers: int, side: int = 24, words: int = 0) -> Script:
    """A run of one turn for each number, whose cell makes so many pictures of about `side` * 16 bytes."""
    script = Script()
    for turn, number in enumerate(numbers, 1):
        script.ask(fenced(f"Plot {turn}. " + "word " * words, "plot()")).run("plot()", ("stdout", f"before {turn}\n"))
        for place in range(number):
            script.add(events.CellOutput, cell=script.cell, stream="display", text=f"[a picture of {side}x16]\n")
            made = pictured(script.cell, png(side, 16, bytes([turn, place])), width=side)
            script.events.append(dataclasses.replace(made, number=len(script.events)))
        script.add(events.CellOutput, cell=script.cell, stream="stdout", text=f"after {turn}\n").done()
    return script


def many_pictures() -> Script:
    return picture_run(*[7] * 40, side=2_000, words=2_000)


HUGE = {
    "outputs": big_outputs,
    "calls": many_calls,
    "iterations": many_iterations,
    "batches": many_batches,
    "pieces": many_pieces,
    "pictures": many_pictures,
    "long": long_run,
}


def saved_bytes(trace: Trace) -> int:
    """Give the size of a notebook that holds a run's output as the live view leaves it."""
    recorder = Recorder(trace)
    view = html.HtmlView(recorder, clock=lambda: 0.0)
    view.start(trace)
    view.finish()
    return len(notebook([output_cell(*(shown for shown in recorder.shown.values() if "text/html" in shown))]).encode())


class Recorder:
    """Receives what a view displays, as a front end would: by display id."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.shown: dict[str, dict[str, str]] = {}
        self.sent: list[tuple[str, dict[str, str]]] = []

    def __call__(self, bundle: dict[str, str], *, display_id: str, update: bool) -> None:
        assert update == (display_id in self.shown)
        self.shown[display_id] = bundle
        self.sent.append((display_id.rsplit("-", 1)[1], bundle))


@pytest.mark.parametrize("name", PAYLOADS)
def test_p13_a_payload_in_every_field_is_text(name: str) -> None:
    source = html.render(Trace.from_events(run_of(PAYLOADS[name])))
    assert not unseen(Page(source).text)
    source.encode("utf-8")


def test_p13_a_payload_in_every_field_is_text_while_running() -> None:
    stream = run_of(EVERYTHING)
    trace, now = Trace(), 0.0
    recorder = Recorder(trace)
    view = html.HtmlView(recorder, clock=lambda: now)
    view.start(trace)
    for event in stream:
        now += 1.0
        trace.add(event)
        view.update(event)
    view.finish()
    assert len(recorder.sent) > 10
    for _, bundle in recorder.sent:
        assert not unseen(Page(bundle["text/html"]).text)
        assert not unseen(bundle["text/plain"])


@pytest.mark.parametrize("name", FORGED)
def test_p13_a_forged_picture_is_words(name: str) -> None:
    forged = FORGED[name]
    script = Script().ask(fenced("Plot.", "1")).run("1").done().ask(fenced("Plot.", "plot()")).run("plot()")
    script.events += [pictured(2, png()), forged]
    script.done().ask(fenced("Go on.", "2")).run("2").done().end(answer="x")
    recorder, _ = live(script.events, step=1.0, finish=True)
    pages = [Page(bundle["text/html"]) for part, bundle in recorder.sent if part == "page"]
    assert [len(page_.pictures) for page_ in pages] == [0, 1, 1]
    assert pages[-1].pictures == [png()]
    assert ", not shown: " in pages[-1].text
    below = [bundle for bundle in recorder.shown.values() if "text/html" not in bundle]
    assert below == [{"image/png": pictured(2, png()).data, "text/plain": "picture of 24x16 made by cell 2"}]


def test_a_picture_stands_in_its_row_where_the_cell_made_it() -> None:
    trace = Trace.from_events(picture_run(0, 2, 1).end(answer=ANSWER).events)
    for shown in (trace, Trace.from_jsonl(trace.to_jsonl())):
        source = html.render(shown)
        parsed = Page(source)
        assert parsed.pictures == [png(24, 16, bytes([2, 0])), png(24, 16, bytes([2, 1])), png(24, 16, bytes([3, 0]))]
        places = [source.index(words_) for words_ in ("before 2", "made by cell 2", "after 2", "before 3", "made by cell 3")]
        assert places == sorted(places)
        assert "[a picture" not in parsed.text
        assert re.findall(r"\d pictures?", parsed.text) == ["2 pictures", "1 picture"]
        assert text.render(shown).count("[a picture of 24x16]") == 3


def test_pictures_that_do_not_fit_are_told_in_their_rows_and_shown_below() -> None:
    trace = Trace.from_events(picture_run(5, 5, side=2_000).end(answer=ANSWER).events)
    recorder, _ = live(trace.events, step=0.3, finish=True)
    body = Page([bundle["text/html"] for part, bundle in recorder.sent if part == "page"][-1])
    assert body.pictures == [png(2_000, 16, bytes([2, place])) for place in (1, 2, 3, 4)]
    assert body.text.count("a picture of 2000x16, shown below the run") == 6
    below = [bundle["text/plain"] for bundle in recorder.shown.values() if "image/png" in bundle]
    assert below == ["picture of 2000x16 made by cell 1"] * 5 + ["picture of 2000x16 made by cell 2"] * 5
    alone = Page(html.render(trace)).text
    assert alone.count("a picture of 2000x16, too large to be shown here") == 6


def test_pictures_leave_the_texts_their_part_of_the_page() -> None:
    script = big_outputs()
    plain = Page(html.render(Trace.from_events([*script.events])))
    script.events += [pictured(30, png(1_000, 16, bytes([place])), width=1_000) for place in range(10)]
    source = html.render(Trace.from_events(script.end(answer=ANSWER).events))
    parsed = Page(source)
    assert fit.weight(source) <= page.CAP
    assert len(parsed.pictures) == 2
    assert len(parsed.text) > len(plain.text) * 0.55
    assert ANSWER in parsed.text


def test_every_payload_is_shown_and_not_swallowed() -> None:
    shown = Page(html.render(Trace.from_events(run_of(EVERYTHING)))).text
    for name in ("script", "image", "link", "markdown image", "mathematics", "environment", "entity", "quotes", "closes pre"):
        assert PAYLOADS[name] in shown, name
    assert r"\x1b[31m" in shown
    assert r"\u202e" in shown
    assert r"\ud800" in shown
    assert r"a\x00b" in shown


def test_mathematics_finds_no_delimiters_in_one_piece_of_text() -> None:
    page_ = Page(html.render(Trace.from_events(run_of(PAYLOADS["mathematics"] + PAYLOADS["environment"]))))
    for piece in page_.pieces:
        assert piece.count("$") <= 1
        assert not re.search(r"\\[(\[]|\\begin|\\href", piece)


def test_joiners_stay_where_scripts_and_emoji_need_them() -> None:
    assert words.visible("می‌خواهم 👩‍🚀 क्‍ष") == "می‌خواهم 👩‍🚀 क्‍ष"
    assert words.visible("pay\u200dpal") == "pay\\u200dpal"
    assert words.visible("\u200d") == "\\u200d"


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("ended", [True, False])
def test_a_page_is_bounded_whatever_the_run_was(name: str, ended: bool) -> None:
    script = HUGE[name]()
    trace = Trace.from_events(script.end(answer=ANSWER).events if ended else script.events)
    source = html.render(trace)
    parsed = Page(source)
    assert fit.weight(source) <= page.CAP
    assert parsed.details <= 500
    assert saved_bytes(trace) < 256 * KB
    if ended:
        assert ANSWER in parsed.text


@pytest.mark.parametrize("cap", [3_000, 10_000, 50_000, 100_000])
def test_a_smaller_cap_holds_too(cap: int) -> None:
    trace = Trace.from_events(many_calls(500).end(answer=ANSWER).events)
    source = html.render(trace, cap)
    assert fit.weight(source) <= cap
    assert ANSWER in Page(source).text


def test_a_huge_answer_has_the_first_claim_and_says_what_is_left_out() -> None:
    answer = "\n".join(f"finding {number}: <&>" for number in range(20_000))
    source = html.render(Trace.from_events(big_outputs().end(answer=answer).events))
    parsed = Page(source)
    assert fit.weight(source) <= page.CAP
    assert "finding 0: <&>" in parsed.text
    assert "finding 19999: <&>" in parsed.text
    left = re.search(r"\[\.\.\. ([\d,]+) characters left out \.\.\.\]", parsed.text)
    assert left is not None
    assert parsed.text.count("finding ") > 2_000


def test_failed_calls_have_the_next_claim() -> None:
    script = Script().ask(fenced("Ask.", "go()")).run("go()")
    script.batch(600, failed=6)
    script.done().end(answer="x" * 1_000)
    trace = Trace.from_events(script.events)
    for call in trace.calls:
        call.prompt, call.reply = "long " * 3_000, "" if call.error else "long " * 3_000
        call.error = call.error and f"{call.error} " + "e" * 2_000
    shown = Page(html.render(trace)).text
    assert shown.count("e" * 2_000) == 6
    assert "600 llm_query: 594 ok, 6 failed" in shown
    assert re.search(r"and [\d,]+ more without a row: [\d,]+ llm_query: [\d,]+ ok", shown)


def test_calls_without_a_row_are_counted_with_their_states() -> None:
    shown = Page(html.render(Trace.from_events(many_calls().end(answer=ANSWER).events))).text
    assert "10,000 llm_query: 9,877 ok, 20 running, 103 failed" in shown
    rows = re.findall(r"(?<!, )(?<![\d,])[\d,]+ (ok|failed|running) · ", shown)
    left = re.search(r"and ([\d,]+) more without a row", shown)
    assert left is not None
    assert len(rows) + int(left[1].replace(",", "")) == 10_000
    assert rows.count("failed") == 103


def test_iterations_that_are_not_drawn_are_counted() -> None:
    shown = Page(html.render(Trace.from_events(many_iterations(400).end(answer=ANSWER).events))).text
    drawn = len(re.findall(r"Step \d+ <&>", shown)) // 2
    left = re.search(r"… ([\d,]+) more iterations not drawn: ([\d,]+) llm_query", shown)
    assert left is not None
    assert drawn + int(left[1]) == 400
    assert int(left[2].replace(",", "")) == 3 * int(left[1])
    assert "Step 0 <&>" in shown
    assert "Step 399 <&>" in shown


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"status": "answered", "answer": "42"}, ["Answered", "42"]),
        ({"status": "answered", "answer": ""}, ["Answered", "The answer is an empty text."]),
        ({"status": "answered", "answer": "[1]", "answer_type": "list"}, ["The answer is a list, shown as text.", "[1]"]),
        ({"status": "unmarked", "answer": "It is so."}, ["Answered in prose", "never called FINAL_VAR", "It is so."]),
        (
            {"status": "limit", "limit": "max_cost", "answer": "half"},
            ["Limit reached: max_cost", "not a marked answer", "half"],
        ),
        ({"status": "limit", "limit": "timeout"}, ["Limit reached: timeout", "There is no answer."]),
        ({"status": "stopped"}, ["Stopped", "You stopped the run. There is no answer."]),
        ({"status": "failed", "error": "LMRefused: no such model"}, ["Failed", "The run failed.", "LMRefused: no such model"]),
    ],
)
def test_both_views_say_truthfully_how_a_run_ended(fields: dict[str, str], told: list[str]) -> None:
    trace = Trace.from_events(short_run().end(**fields).events)
    for shown in (Page(html.render(trace)).text, text.render(trace)):
        for words_ in told:
            assert words_ in shown
        assert shown.index(told[-1]) < shown.index("Let me look at the shape")


@pytest.mark.parametrize("make", [short_run, long_run], ids=["short", "long"])
def test_both_views_tell_the_same_facts(make: type[Script]) -> None:
    script = make().add(events.Notice, text="no price is known for the model x").end(answer=ANSWER)
    trace = Trace.from_events(script.events)
    page_, plain = Page(html.render(trace)).text, text.render(trace, cap=200_000)
    for fact in [
        words.status(trace),
        ANSWER,
        *words.headline(trace),
        *(value for _, value in words.totals(trace)),
        *trace.notices,
    ]:
        assert fact in page_, fact
        assert fact in plain, fact
    assert len(re.findall(r"\nIteration \d+ · ", plain)) == len(trace.iterations) == len(re.findall(r"\u2002", page_))
    for iteration in trace.iterations:
        for cell in iteration.cells:
            assert cell.code in page_
            for line in cell.code.split("\n"):
                assert f"    {line}\n" in plain
        for figure in words.iteration_figures(iteration):
            assert figure in page_
            assert figure in plain


def test_code_that_ran_is_shown_once_and_code_that_did_not_is_said_so() -> None:
    script = Script().ask(fenced("First two, then one that never ran.", "a = 1", "raise ValueError(a)", "never = 2"))
    script.run("a = 1").done().run("raise ValueError(a)").done("error", "ValueError: 1").end()
    trace = Trace.from_events(script.events)
    for shown in (Page(html.render(trace)).text, text.render(trace)):
        assert shown.count("a = 1") == 1
        assert shown.count("raise ValueError(a)") == 1
        assert "```" not in shown
        assert shown.index("did not run") < shown.index("never = 2")


def test_fences_that_are_not_code_stay_in_the_prose() -> None:
    trace = Trace.from_events(Script().ask("A table:\n```json\n{}\n```\ndone").end().events)
    assert "A table:\n\n```json\n{}\n```\n\ndone" in Page(html.render(trace)).text


def test_a_batch_row_opens_into_its_calls() -> None:
    trace = Trace.from_events(short_run(number=256, failed=2, running=3).events)
    shown = Page(html.render(trace)).text
    assert "256 llm_query: 251 ok, 3 running, 2 failed" in shown
    assert "LMUnavailable: 429 Too Many Requests, after 5 attempts" in shown
    assert "5 attempts" in shown
    assert "876 tokens" in shown
    assert "gpt-5-mini" in shown


def test_estimates_have_a_tilde_and_unknown_prices_are_told() -> None:
    script = Script().ask("x", usage=Usage(1000, 234, 0, True), cost=None)
    script.end(status="unmarked", answer="x")
    trace = Trace.from_events(script.events)
    trace.cost = None
    for shown in (Page(html.render(trace)).text, text.render(trace)):
        assert "~1,234 tokens" in shown
        assert "no price known" in shown


def test_an_odd_trace_is_drawn_all_the_same() -> None:
    odd = Trace.from_events(short_run(running=30).events)
    odd.settings = {"model": None, "max_cost": "much", "max_calls": float("nan"), "timeout": -3}
    odd.seconds, odd.cost, odd.requests, odd.usage = float("inf"), float("nan"), -1, Usage(-5, 0)
    odd.iterations[0].seconds = float("nan")
    odd.iterations[1].cells[0].status = "unheard of"
    odd.iterations[2].cells[0].calls.append(dataclasses.replace(odd.calls[0], state="lost", call="other"))
    for trace in (odd, Trace(), Trace.from_events(Script().events), Trace.from_events([events.Notice(text="alone")])):
        Page(html.render(trace))
        assert text.render(trace)
        assert saved_bytes(trace) < 256 * KB


def live(stream: list[Event], step: float, ticks: int = 0, finish: bool = False) -> tuple[Recorder, list[tuple[float, str]]]:
    """Feed a view with `stream`, the clock moving by `step` seconds with each event and by 0.25 with each tick."""
    trace, now = Trace(), 100.0
    recorder = Recorder(trace)
    view = html.HtmlView(recorder, clock=lambda: now)
    times: list[tuple[float, str]] = []
    view.start(trace)
    for event in [*stream, *[None] * ticks]:
        now += 0.25 if event is None else step
        if event is not None:
            trace.add(event)
        view.update(event)
        times += [(now, part) for part, _ in recorder.sent[len(times) + 1 :]]
    if finish:
        view.finish()
    return recorder, times


def test_the_status_line_is_sent_at_most_four_times_a_second() -> None:
    stream = many_calls(2_000).events
    _, times = live(stream, step=0.01)
    status = [at for at, part in times if part == "status"]
    assert len(status) > 100
    assert all(later - earlier >= 0.25 - 1e-9 for earlier, later in itertools.pairwise(status))


def test_the_status_line_is_not_sent_when_nothing_changed() -> None:
    recorder, _ = live(Script().events, step=0.0, ticks=40)
    status = [bundle["text/html"] for part, bundle in recorder.sent if part == "status"]
    assert len(status) <= 12
    assert all(before != after for before, after in itertools.pairwise(status))


@pytest.mark.parametrize("stream", [run_of(EVERYTHING), run_of("漢" * 5_000), run_of("$" * 5_000), many_calls(300).events])
def test_the_status_line_takes_at_most_2_kb(stream: list[Event]) -> None:
    recorder, _ = live(stream, step=1.0)
    lines = [bundle for part, bundle in recorder.sent if part == "status"]
    assert lines
    for bundle in lines:
        assert sum(len(content.encode()) for content in bundle.values()) <= 2_048


def test_the_status_line_tells_what_is_going_on() -> None:
    stream = short_run(number=256, failed=2, running=3).events
    cut = next(
        n for n, event in enumerate(stream) if isinstance(event, events.CellOutput) and event.stream == "stderr" and n > 200
    )
    recorder, _ = live(stream[:cut], step=0.3)
    shown = Page(recorder.sent[-1][1]["text/html"]).text
    for fact in (
        "Waiting for sub-calls",
        "iteration 4 of 30",
        "256 llm_query: 251 ok, 3 running, 2 failed",
        "tokens",
        "of $2.00",
        "gpt-5",
    ):
        assert fact in shown
        assert fact in recorder.sent[-1][1]["text/plain"]


def test_the_reply_that_streams_in_is_seen_by_its_last_line() -> None:
    script = Script()
    script.add(events.IterationStarted, iteration=1, of=30)
    script.add(events.ReplyPart, iteration=1, text="first line\nnow the <second>")
    recorder, _ = live(script.events, step=0.3)
    shown = Page(recorder.sent[-1][1]["text/html"]).text
    assert shown.endswith("now the <second>")
    assert "first line" not in shown


def test_the_page_is_sent_when_an_iteration_ends_and_only_then() -> None:
    recorder, _ = live(long_run().events, step=0.3)
    assert sum(part == "page" for part, _ in recorder.sent) == 29


def test_pages_sent_while_running_are_capped() -> None:
    recorder, _ = live(big_outputs().events, step=0.3)
    sizes = [fit.weight(bundle["text/html"]) for part, bundle in recorder.sent if part == "page"]
    assert len(sizes) == 29
    assert max(sizes) <= page.LIVE_CAP
    for part, bundle in recorder.sent:
        if part == "page":
            assert Page(bundle["text/html"]).details <= 2


def test_pages_sent_while_running_show_the_pictures_of_the_last_turn_only() -> None:
    recorder, _ = live(many_pictures().events, step=0.3)
    pages = [bundle["text/html"] for part, bundle in recorder.sent if part == "page"]
    assert len(pages) == 39
    for turn, source in enumerate(pages, 1):
        parsed = Page(source)
        assert 4 <= len(parsed.pictures) < 7
        assert parsed.pictures == [png(2_000, 16, bytes([turn, place])) for place in range(7)][-len(parsed.pictures) :]
        told = parsed.text.count("a picture of 2000x16, too large to be shown while the run goes on")
        assert told == 7 - len(parsed.pictures)
        assert fit.weight(source) <= page.LIVE_CAP + page.LIVE_PICTURES


def test_what_is_shown_before_the_first_event_says_only_that_it_starts() -> None:
    recorder = Recorder(Trace())
    html.HtmlView(recorder, clock=lambda: 0.0).start(recorder.trace)
    (status,) = recorder.shown.values()
    assert "Starting" in status["text/plain"]
    assert "model" not in status["text/plain"]


def test_the_end_replaces_both_displays_and_says_no_more() -> None:
    stream = short_run().end(answer=ANSWER).events
    trace = Trace()
    recorder = Recorder(trace)
    view = html.HtmlView(recorder, clock=lambda: 0.0)
    view.start(trace)
    for event in stream:
        trace.add(event)
        view.update(event)
    view.finish()
    sent = len(recorder.sent)
    view.update(None)
    view.finish()
    assert len(recorder.sent) == sent
    assert len(recorder.shown) == 2
    status, body = recorder.shown.values()
    assert Page(status["text/html"]).text.startswith("Answered · 5 iterations")
    assert Page(status["text/html"]).text + Page(body["text/html"]).text == Page(html.render(trace)).text
    assert ANSWER in body["text/plain"]
    assert "progress" not in status["text/html"] + body["text/html"]


def test_the_page_names_no_address_and_needs_no_style_sheet() -> None:
    source = html.render(Trace.from_events(short_run().end(answer=ANSWER).events))
    assert not re.search(r"https?:|url\(|<style|<script|<svg|src=|href=|aria-|role=", source)
    assert json.loads(json.dumps({"text/html": source}))["text/html"] == source
    assert SPLIT in Page(source).text


FIGURE = re.compile(r"(?<![\d,.])(~?)(?:[\d,]+ tokens?\b|\$[\d.]+)")


@pytest.mark.parametrize("estimated", [True, False])
def test_p26_an_estimate_is_marked_in_every_view_and_nothing_else_is(estimated: bool) -> None:
    script = Script().ask("I ask.").run("llm_query('x')").call()
    script.child("What is x?").ask("I know.").run("1").call().done().answered("2").done()
    told = []
    for event in script.end(answer="7").events:
        usage = getattr(event, "usage", None)
        fields: dict[str, Any] = {"usage": dataclasses.replace(usage, estimated=estimated)} if usage is not None else {}
        told.append(dataclasses.replace(event, **fields))
    for until in (len(told), len(told) - 1):  # the end, and a run that goes on
        trace = Trace.from_events(told[:until])
        for shown in (Page(html.render(trace)).text, text.render(trace), listing.render([trace])):
            figures = [
                match for match in FIGURE.finditer(shown) if shown[: match.start()][-3:] != "of "
            ]  # a cap is no estimate
            assert figures
            assert {match[1] for match in figures} == ({"~"} if estimated else {""})

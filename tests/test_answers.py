"""The face of an answer: tables, pictures and markdown are seen as such, and are never more than text and checked pictures."""

from __future__ import annotations

import datetime
import decimal
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from rlm_jupyter.pictures import check
from rlm_jupyter.testing import Reply, ScriptedServer
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import fit, html, listing, markdown, page
from rlm_jupyter.widgets.grid import COLUMNS, ROWS, grid
from rlm_jupyter.widgets.view import Face
from tests.models import answer, code, scripted
from tests.notebooks import Notebook, notebook
from tests.payloads import ATTRIBUTES, EVERYTHING, PAYLOADS, TAGS, Page, png, run_of, unseen
from tests.runs import Script, short_run

SMALL = {"name": ["acme", "globex"], "share": [0.5, 0.25]}
TABLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.table,
}


def ended(answer_type: str = "DataFrame", text: str = "  name share") -> Trace:
    return Trace.from_events(short_run(number=3).end(answer=text, answer_type=answer_type).events)


class Table(HTMLParser):
    """Reads the first table of a page: a list of rows, each a list of cells."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self._in = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in = True

    def handle_endtag(self, tag: str) -> None:
        self._in = self._in and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_shown_as_a_table(kind: str) -> None:
    source = html.render(ended(), face=Face(TABLES[kind](SMALL)))
    rows = Table(source).rows
    wanted = [["name", "share"], ["acme", "0.5"], ["globex", "0.25"]]
    assert [row[-2:] for row in rows] == wanted
    assert "of 2 rows, 2 columns." in Page(source).text
    assert "shown as text" not in Page(source).text


def test_series_indexes_and_odd_cells() -> None:
    series = pd.Series([1, 2], index=pd.Index(["a", "b"], name="key"), name="n")
    assert grid(series) is not None
    assert Table(html.render(ended(), face=Face(series))).rows == [["key", "n"], ["a", "1"], ["b", "2"]]
    held = [10**5000, None, {"a": [1] * 100_000}, decimal.Decimal("1.50"), datetime.date(2026, 1, 2), np.float32(0.5), pd.NaT]
    frame = pd.DataFrame({"odd": pd.Series(held, dtype=object)})
    frame.index = pd.MultiIndex.from_arrays([range(7), list("abcdefg")])
    cells = [row[-1] for row in Table(html.render(ended(), face=Face(frame))).rows[1:]]
    assert cells[0] == "a int"
    assert cells[2].startswith("{'a': [1, 1, 1,")
    assert cells[3:] == ["1.50", "2026-01-02", "0.5", "NaT"]
    assert all(len(cell) <= 60 for cell in cells)
    assert Table(html.render(ended(), face=Face(pl.Series("s", [1])))).rows == [["s"], ["1"]]
    empty = html.render(ended(), face=Face(pd.DataFrame()))
    assert "of 0 rows, 0 columns" in Page(empty).text


@pytest.mark.parametrize("kind", TABLES)
def test_a_large_table_is_shown_by_its_ends(kind: str) -> None:
    frame = TABLES[kind]({f"c{number}": range(10_000) for number in range(40)})
    source = html.render(ended(), face=Face(frame))
    rows = Table(source).rows
    assert len(rows) == 1 + ROWS + 1
    assert {len(row) for row in rows} <= {COLUMNS + 1, COLUMNS + 2}
    assert rows[-1][-1] == "9999"
    assert rows[0][-1] == "c39"
    assert "10,000 rows, 40 columns; the first and the last are shown" in Page(source).text
    assert fit.weight(source) <= page.CAP


@pytest.mark.parametrize("kind", TABLES)
def test_p13_a_payload_in_every_cell_is_text(kind: str) -> None:
    texts = [text.encode("utf-8", "replace").decode() for name, text in PAYLOADS.items()]
    frame = TABLES[kind]({EVERYTHING.encode("utf-8", "replace").decode(): texts, "second": texts})
    source = html.render(ended(), face=Face(frame))
    shown = Page(source)
    assert not unseen(shown.text)
    assert PAYLOADS["image"] in shown.text
    if kind == "pandas":
        surrogates = pd.DataFrame({"x": pd.Series([PAYLOADS["surrogate"], EVERYTHING], dtype=object)})
        assert r"\ud800" in Page(html.render(ended(), face=Face(surrogates))).text


def test_a_picture_as_answer_is_a_checked_picture() -> None:
    picture = check(png())
    source = html.render(ended("Picture", repr(picture)), face=Face(picture))
    assert Page(source).pictures == [png()]
    assert "The answer is a picture of 24x16." in Page(source).text
    large = check(png(2_000, 400))
    source = html.render(ended("Picture", repr(large)), face=Face(large))
    assert Page(source).pictures == [png(2_000, 400)]
    assert fit.weight(source) - len(source.partition("<img ")[2].partition(">")[0]) <= page.CAP


MARKDOWN = """# Findings

Two *kinds* of **clause**, `14.2` and 3 < 4:

1. first
2. second

| who | share |
|:----|------:|
| acme | 50 % |

```python
print("<b>")
```

> quoted ~~not~~
"""


def test_markdown_is_drawn_where_it_is_asked_for() -> None:
    trace = Trace.from_events(short_run(number=3).end(answer=MARKDOWN).events)
    plain, drawn = html.render(trace), html.render(trace, face=Face(MARKDOWN, "markdown"))
    assert "# Findings" in Page(plain).text
    assert "# Findings" not in drawn
    for source in (
        "<p><b>Findings</b></p>",
        "<strong>clause</strong>",
        "<em>kinds</em>",
        "<li>second</li>",
        "<td>50 %</td>",
        "<s>not</s>",
        "3 &lt; 4",
        'print("&lt;b&gt;")',
        "<blockquote>",
    ):
        assert source in drawn.replace("&#10;", "\n"), source
    assert len(drawn) - len(plain) < 500


class Bare(HTMLParser):
    """Collects tags, attributes and text of what was drawn."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.pieces: list[str] = []
        self.feed(source)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


@pytest.mark.parametrize("name", PAYLOADS)
def test_p13_markdown_of_a_payload_holds_no_attribute_and_no_tag_but_ours(name: str) -> None:
    text = PAYLOADS[name]
    for made in (text, f"# {text}", f"- {text}\n- {text}", f"| a |\n|---|\n| {text[:500]} |", f"```\n{text}\n```", f"> {text}"):
        shown = Bare(markdown.render(made))
        assert shown.tags <= markdown.TAGS
        assert not unseen(shown.text)
        for piece in shown.pieces:
            assert piece.count("$") <= 1
            assert not re.search(r"\\[(\[]|\\begin|\\href", piece)


def test_links_and_pictures_of_markdown_stay_as_they_were_written() -> None:
    written = "[x](http://evil.example) ![y](http://evil.example/a.png) <http://evil.example> [z]: http://evil.example"
    shown = Bare(markdown.render(written))
    assert shown.tags == {"p"}
    assert shown.text.strip() == written


def test_p13_a_whole_run_whose_answer_is_drawn_is_text() -> None:
    stream = run_of(EVERYTHING)
    trace = Trace.from_events(stream)
    trace.answer_type = "str"
    source = html.render(trace, face=Face(EVERYTHING, "markdown"))
    for name, attributes in re.findall(r"<(\w+)([^>]*)>", source):
        assert name in TAGS | markdown.TAGS
        assert all(part in ATTRIBUTES for part in re.findall(r'(\w+)="', attributes))


def test_the_list_is_a_table_with_the_state_of_what_runs() -> None:
    runs = [short_run(number=3).end(answer="x"), Script(question=EVERYTHING).ask("Hm").run("go()").call(ends="running")]
    traces = [Trace.from_events(script.events) for script in runs]
    shown = listing.bundle(traces)
    rows = Table(shown["text/html"]).rows
    assert rows[0] == list(listing.HEAD)
    assert rows[1][1:3] == ["answered", "5"]
    assert rows[2][1:3] == ["running: waiting for sub-calls", "1 of 30"]
    Page(shown["text/html"])
    assert not unseen(shown["text/plain"])
    for row in rows[1:]:
        assert all(cell in shown["text/plain"] for cell in row)
    many = listing.bundle(traces[:1] * 500)
    assert len(Table(many["text/html"]).rows) == 201
    assert "and 300 earlier ones" in Page(many["text/html"]).text
    assert Page(listing.bundle([])["text/html"]).text == listing.NONE_YET


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with notebook(tmp_path_factory.mktemp("book"), RLM_JUPYTER_TRACES=str(tmp_path_factory.mktemp("traces"))) as opened:
        yield opened


def cell(server: ScriptedServer, options: str = "") -> str:
    return f"%%rlm --base-url {server.url} --model root --out result {options}\nWhich is first?"


def test_a_table_and_markdown_are_seen_in_a_notebook(book: Notebook) -> None:
    frame = "import pandas as pd\nFINAL_VAR(pd.DataFrame({'who': ['<img src=x>', 'globex'], 'n': [1, 2]}))"
    with ScriptedServer(models={"root": [code(frame), answer(repr("**so** <b onclick=x>it</b>"))]}) as server:
        ran = book.run(cell(server))
        assert ran.status == "ok", ran.traceback
        assert Table(ran.html).rows == [["", "who", "n"], ["0", "<img src=x>", "1"], ["1", "globex", "2"]]
        assert Table(book.run("result").html).rows == Table(ran.html).rows
        assert Table(book.run("%rlm show").html).rows == Table(ran.html).rows
        ran = book.run(cell(server, "--format markdown"))
        assert "<strong>so</strong> &lt;b onclick=x&gt;it&lt;/b&gt;" in ran.html
        (listed,) = book.run("%rlm list").displays
    assert [row[1] for row in Table(listed["data"]["text/html"]).rows] == ["status", "answered", "answered"]
    refused = book.run("%%rlm --model demo --format html\nq")
    assert "UsageError" in refused.streams + refused.traceback
    assert "markdown" in refused.streams + refused.traceback


def test_results_that_hold_tables_can_be_compared_and_put_into_a_set() -> None:
    with scripted([code("import pandas as pd\nFINAL_VAR(pd.DataFrame({'n': [1, 2]}))")] * 2) as (rlm, _):
        first, second = rlm.completion("what?"), rlm.completion("what?")
    pd.testing.assert_frame_equal(first.value, second.value)
    assert first in [second, first]
    assert first != second
    assert len({first, second, first}) == 2


def test_a_run_under_way_shows_itself(tmp_path: Path) -> None:
    with scripted([code("print('seen it')"), Reply(answer("41 + 1"), hold=True)]) as (rlm, server):
        run = rlm.start("what?")
        server.wait_for(2)
        shown = run._repr_mimebundle_()
        assert "seen it" in Page(shown["text/html"]).text
        assert shown["text/plain"].startswith(f"Run({run.id!r}): running; .status, .wait(), await, .stop()")
        assert f"Run({run.id!r}): running" in Page(shown["text/html"]).text
        server.release()
        result = run.wait()
        assert run._repr_mimebundle_() == result._repr_mimebundle_()
        assert "Answered" in json.dumps(run._repr_mimebundle_())

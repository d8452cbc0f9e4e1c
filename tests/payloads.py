"""Texts that want to be more than text, and what must not be left of them on a page or a terminal."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
import struct
import unicodedata
import zlib
from collections.abc import Set

from rlm_jupyter import events
from rlm_jupyter.events import CellPicture, Event, Usage
from rlm_jupyter.pictures import check
from tests.runs import DIGEST

PWN = "window.__pwned=1"
PAYLOADS: dict[str, str] = {
    "script": f"<script>{PWN}</script>",
    "image": f"<img src=x onerror={PWN}>",
    "svg": f"<svg/onload={PWN}>",
    "details": f"<details open ontoggle={PWN}><summary>s</summary></details>",
    "iframe": f'<iframe srcdoc="<script>parent.{PWN}</script>"></iframe>',
    "link": f'<a href="javascript:{PWN}">x</a>',
    "closes pre": f"</pre></dd></dl></details></div></bdi></span><script>{PWN}</script>",
    "closes style": f'";--><style>@import "http://pwned.invalid/a.css";</style><script>{PWN}</script>',
    "comment": f"<!--><img src=x onerror={PWN}>-->",
    "cdata": f"<![CDATA[<script>{PWN}</script>]]>",
    "entity": f"&lt;script&gt;{PWN}&lt;/script&gt; &#60;img src=x onerror={PWN}&#62; &amp; &nbsp",
    "markdown image": "![x](http://pwned.invalid/a.png)",
    "markdown link": f"[x](javascript:{PWN}) <javascript:{PWN}> [x]: http://pwned.invalid",
    "mathematics": f"$\\href{{javascript:{PWN}}}{{x}}$ \\(\\href{{javascript:{PWN}}}{{x}}\\) $$x$$ \\[y\\]",
    "environment": f"\\begin{{equation}}\\href{{javascript:{PWN}}}{{x}}\\end{{equation}}",
    "template": "{{constructor.constructor('window.__pwned=1')()}} ${window.__pwned=1} {% raw %} %s %(x)s {0}",
    "rich markup": "[bold red]x[/bold red] [link=http://pwned.invalid]x[/link] [/] :smile:",
    "ansi": "\x1b[31mr\x1b[0m \x1b]0;title\x07 \x1b]8;;http://pwned.invalid\x1b\\link\x1b]8;;\x1b\\ \x9b2J \x1b[2J\x1b[H\x1bc",
    "controls": "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "bidi": "abc\u202egnp.exe\u202c \u2066x\u2069 \u200fy\u200e \u061c",
    "zero width": "pay\u200bpal \u2060x\ufeff \u00ad a\u200db a\u200cb \U000e0041\U000e0042 \u2028new\u2029line",
    "surrogate": "\ud800 \udfff \udc80",
    "nul": "a\x00b",
    "fences": "```repl\nnever closed <script>window.__pwned=1</script>\n~~~\n````",
    "carriage": "first\rsecond\r\nthird",
    "long line": "x" * 20_000,
    "long lines": "<y>\n" * 20_000,
    "quotes": "\"'`\\\" onmouseover=window.__pwned=1 x='",
    "empty": "",
    "blank": " \n\t\n ",
    "wide": "漢字" * 300 + "👩‍🚀 हिन्दी می‌خواهم " + "e" + "\u0301" * 50,
}
EVERYTHING = "\n".join(text for name, text in PAYLOADS.items() if not name.startswith("long"))


def png(width: int = 24, height: int = 16, seed: bytes = b"\x07", said: tuple[int, int] | None = None) -> bytes:
    """Give a grey PNG, of other dimensions by its header if `said`. It compresses badly: 1 byte a pixel."""
    rows = b"".join(b"\0" + _noise(seed + bytes([row % 251, row // 251]), width) for row in range(height))
    header = struct.pack(">IIBBBBB", *(said or (width, height)), 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    sums = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sums)


def _noise(seed: bytes, size: int) -> bytes:
    return hashlib.shake_128(seed).digest(size)


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def pictured(cell: int, data: bytes | str, media_type: str = "image/png", width: int = 24, height: int = 16) -> CellPicture:
    """Give an event that says that a cell made a picture; `data` that is a text is taken for base64."""
    return CellPicture(
        cell=cell, media_type=media_type, width=width, height=height, data=data if isinstance(data, str) else coded(data)
    )


SVG = f"<svg xmlns='http://www.w3.org/2000/svg' onload='{PWN}'><image href='http://pwned.invalid/a.png'/></svg>".encode()
HTML = f"<img src=x onerror={PWN}><script>{PWN}</script>".encode()
BREAK_OUT = f'" onerror="{PWN}" x="'
FORGED: dict[str, CellPicture] = {
    "an SVG": pictured(2, SVG, "image/svg+xml"),
    "an SVG that says PNG": pictured(2, SVG),
    "HTML that says PNG": pictured(2, HTML),
    "HTML": pictured(2, HTML, "text/html"),
    "an address": pictured(2, "http://pwned.invalid/a.png"),
    "a data address": pictured(2, f"data:text/html;base64,{coded(HTML)}"),
    "a way out of the attribute": pictured(2, BREAK_OUT),
    "a way out after a picture": pictured(2, coded(png()) + BREAK_OUT),
    "base64 with lines": pictured(2, coded(png()).replace("a", "a\n")),
    "base64 that is cut off": pictured(2, coded(png())[:-5]),
    "base64 that is not ASCII": pictured(2, coded(png())[:-5] + "\u202eé"),
    "a PNG that is cut off": pictured(2, png()[:-9]),
    "a PNG that says JPEG": pictured(2, png(), "image/jpeg"),
    "a PNG with a type to break out": pictured(2, png(), "image/png" + BREAK_OUT),
    "a PNG that says HTML": pictured(2, png(), "text/html"),
    "a PNG of other dimensions than are said": pictured(2, png(), width=10**9, height=-1),
    "a PNG of enormous dimensions": pictured(2, png(said=(2**31 - 1, 2**31 - 1)), width=2**31 - 1, height=2**31 - 1),
    "dimensions of many digits": pictured(2, png(), width=10**4000, height=10**4000),
    "a GIF": pictured(2, b"GIF89a" + bytes(40), "image/gif"),
    "nothing": pictured(2, ""),
}


STREAMS = ("stdout", "stderr", "result", "display", "error")


def run_of(text: str) -> list[Event]:
    """Give a run in which every field of every event that is a text is `text`."""
    usage = Usage(1, 1)
    stream: list[Event] = [
        events.RunStarted(
            run=text, question=text, settings={"model": text, "sub_model": text, "environment": text, text: text},
            context_type=text, context_size=5, context_digest=DIGEST, context_description=text, isolation=text,
        ),
        events.KernelStarted(kernel=1, how=text, seconds=0.1),
        events.CellStarted(iteration=0, cell=1, code=text),
        events.CellEnded(cell=1, status=text, error=text, omitted=7, seconds=0.1),
        events.IterationStarted(iteration=1, of=2),
        events.ReplyPart(iteration=1, text=text),
        events.ReplyRestarted(iteration=1),
        events.ReplyPart(iteration=1, text=text),
        events.RequestRetried(call="", attempt=1, error=text, wait=0.5),
        events.ReplyEnded(
            iteration=1, text=f"{text}\n```repl\n{text}\n```\n{text}\n```python\nnever ran\n{text}\n```\n", finish_reason=text,
            usage=usage, cost=0.1, attempts=1, seconds=1.0,
        ),
        events.CellStarted(iteration=1, cell=2, code=text),
        *(events.CellOutput(cell=2, stream=stream, text=text) for stream in STREAMS),
        events.CellOutput(cell=2, stream=text, text=text),
        CellPicture(cell=2, media_type=text, width=1, height=2, data=text),
        CellPicture(cell=2, media_type=text, width=24, height=16, data=coded(png())),
        events.CallStarted(call=text + "1", batch="", cell=2, model=text, prompt=text),
        *(events.CallStarted(call=f"{text}{n}", batch=text + "b", cell=2, model=f"{text}{n}", prompt=text) for n in (2, 3, 4)),
        events.CallEnded(call=text + "1", cell=2, reply=text, error="", usage=usage, cost=None, attempts=1, seconds=1.0),
        events.CallEnded(call=text + "2", cell=2, reply=text, error=text, usage=usage, cost=0.1, attempts=3, seconds=1.0),
        events.CallEnded(call=text + "3", cell=2, reply=text, error="", usage=usage, cost=0.1, attempts=1, seconds=1.0),
        *child_of(text),
        events.CellEnded(cell=2, status="error", error=text, omitted=0, seconds=0.1),
        events.StepTold(text=text),
        events.SandboxStarted(machine=text, seconds=1.5),
        events.SandboxEnded(seconds=4.2),
        events.Notice(text=text),
        events.IterationStarted(iteration=2, of=2),
        events.ReplyEnded(iteration=2, text=text, finish_reason=text, usage=usage, cost=None, attempts=1, seconds=1.0),
        events.RunEnded(
            status="limit", limit=text, answer=text, answer_type=text, error=text, calls=6, usage=usage, cost=0.4, seconds=9.0,
        ),
    ]  # fmt: skip
    return stream


def child_of(text: str) -> list[Event]:
    """Give a child RLM, begun by the cell 2 of the run that `run_of` gives."""
    node, usage = text + "c", Usage(1, 1)
    return [
        events.ChildStarted(
            node=node, parent="0", cell=2, call=text + "5", batch=text, model=text, question=text,
            context_type=text, context_size=5, context_description=text,
        ),
        events.KernelStarted(node=node, kernel=2, how=text, seconds=0.1),
        events.IterationStarted(node=node, iteration=1, of=2),
        events.ReplyPart(node=node, iteration=1, text=text),
        events.ReplyEnded(
            node=node, iteration=1, text=text, finish_reason=text, usage=usage, cost=0.1, attempts=1, seconds=1.0
        ),
        events.CellStarted(node=node, iteration=1, cell=1, code=text),
        events.CellOutput(node=node, cell=1, stream="stdout", text=text),
        events.CallStarted(node=node, call=text + "1", batch="", cell=1, model=text, prompt=text),
        events.CallEnded(
            node=node, call=text + "1", cell=1, reply=text, error=text, usage=usage, cost=0.1, attempts=1, seconds=1.0
        ),
        events.CellEnded(node=node, cell=1, status="ok", error="", omitted=0, seconds=0.1),
        events.ChildEnded(
            node=node, status=text, limit=text, answer=text, answer_type=text, error=text, calls=2, usage=usage, cost=0.2,
            seconds=2.0,
        ),
    ]  # fmt: skip


TAGS = {
    "div", "span", "b", "bdi", "pre", "details", "summary", "dl", "dt", "dd", "progress", "img", "table", "thead", "tbody",
    "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {
    "style": re.compile(r"[-a-z0-9#%().,:; ]*"),
    "class": re.compile("mathjax_ignore tex2jax_ignore"),
    "dir": re.compile("auto"),
    "open": re.compile(""),
    "value": re.compile(r"\d+"),
    "max": re.compile(r"\d+"),
    "src": re.compile(r"data:(image/png|image/jpeg);base64,([A-Za-z0-9+/]+=?=?)"),
    "alt": re.compile(r"picture of (\d+)x(\d+) (?:made by cell -?\d{1,12}|given as the answer)"),
}


def drawn(source: str, alt: str) -> bytes:
    """Give the bytes of an `<img>` of ours, which must be a checked picture, told truly, with nothing beside it."""
    found, told = ATTRIBUTES["src"].fullmatch(source), ATTRIBUTES["alt"].fullmatch(alt)
    assert found is not None, f"src={source[:100]!r}"
    assert told is not None, f"alt={alt[:100]!r}"
    data = base64.b64decode(found[2], validate=True)
    picture = check(data)
    assert picture.data == data
    assert (picture.media_type, str(picture.width), str(picture.height)) == (found[1], told[1], told[2])
    return data


class Page(html.parser.HTMLParser):
    """Reads a page as a browser would, refusing every tag (those in `more` aside) and attribute that our pages do not need."""

    def __init__(self, source: str, more: Set[str] = frozenset()) -> None:
        super().__init__(convert_charrefs=True)
        self._tags = TAGS | more
        self.pieces: list[str] = []
        self.details = 0
        self.pictures: list[bytes] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], f"left open: {self._open}"

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self._tags, f"<{tag}> is not a tag of ours"
        for name, value in attrs:
            assert name in ATTRIBUTES, f"{name}={value!r} is not an attribute of ours"
            assert ATTRIBUTES[name].fullmatch(value or ""), f"{name}={value!r}"
            assert name == "src" or "url" not in (value or "")
        self.details += tag == "details"
        if tag in ("br", "hr"):
            return
        if tag == "img":
            values = dict(attrs)
            assert values.keys() == {"src", "alt", "style"}
            self.pictures.append(drawn(values["src"] or "", values["alt"] or ""))
            return
        assert not {"src", "alt"} & dict(attrs).keys()
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl!r}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"a processing instruction: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data!r}")


def unseen(text: str) -> set[str]:
    """Give the characters of `text` that hide, move or reorder others; joiners count only between Latin letters."""
    found = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t"}
    joined = set(re.findall("(?<=[^\x00-\u02ff])[\u200c\u200d](?=[^\x00-\u02ff])", text))
    return found - joined

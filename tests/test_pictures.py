"""Pictures are checked, cleaned and bounded; nothing else that looks like one is taken (P14)."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.utils.capture import capture_output
from PIL import Image, PngImagePlugin

from rlm_jupyter.events import CellPicture
from rlm_jupyter.kernels.cell import Output
from rlm_jupyter.pictures import NoPicture, check
from rlm_jupyter.trace import Trace
from tests.conformance.driving import session
from tests.models import answer, code, scripted
from tests.payloads import Page
from tests.shells import open_shell

pytestmark = pytest.mark.anyio

SECRET = b"a text that nobody should see"


def png(mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> bytes:
    out, note = io.BytesIO(), PngImagePlugin.PngInfo()
    note.add_text("Comment", SECRET.decode())
    Image.effect_noise(size, 50).convert(mode).save(out, "PNG", pnginfo=note)
    return out.getvalue()


def jpeg(*, progressive: bool = False) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((30, 20), 50).convert("RGB").save(out, "JPEG", progressive=progressive, comment=SECRET)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("data", [png(), png("RGBA"), png("P"), png("1"), jpeg(), jpeg(progressive=True)])
def test_a_picture_keeps_its_pixels_and_loses_the_rest(data: bytes) -> None:
    assert SECRET in data
    picture = check(data + b"<script>")
    assert (picture.width, picture.height) == (30, 20)
    assert SECRET not in picture.data
    assert b"<script>" not in picture.data
    assert (
        Image.open(io.BytesIO(picture.data)).convert("RGBA").tobytes() == Image.open(io.BytesIO(data)).convert("RGBA").tobytes()
    )
    assert check(picture.data) == picture


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg onload=alert(1)>",
        b"GIF89a" + bytes(20),
        png()[:40],
        png()[:-6],
        png().replace(b"IDAT", b"IDAX"),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31, 1, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        jpeg()[:100],
        jpeg()[:-2],
        b"\xff\xd8\xff\xd9",
        bytes(9 * 1024 * 1024),
    ],
)
def test_anything_else_is_no_picture(data: bytes) -> None:
    with pytest.raises(NoPicture):
        check(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([png(), jpeg(), jpeg(progressive=True)]), st.data())
def test_p14_a_damaged_picture_is_a_picture_or_an_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(NoPicture):
        check(bytes(damaged[: draw.draw(st.integers(0, len(damaged)))]))


PLOT = """
import matplotlib.pyplot as plt
print("before")
plt.plot([1, 3, 2]); plt.show()
print("after")
from IPython.display import HTML, SVG, display
display(SVG("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"), HTML("<b>bold</b>"))
display({"image/svg+xml": "<svg/>", "image/gif": "R0lGODlh", "text/html": "<i/>"}, raw=True)
display({"image/png": "bm90IGEgcGljdHVyZQ==", "text/plain": "forged"}, raw=True)
"""


async def test_p14_a_plot_comes_as_a_checked_picture_in_its_place_and_nothing_else_does() -> None:
    async with session() as opened:
        ran = await opened.ok(PLOT)
        shown = [output for output in ran.outputs if output.picture is not None]
        assert len(shown) == 1
        picture = shown[0].picture
        assert picture is not None
        assert shown[0].text == f"[a picture of {picture.width}x{picture.height}]\n"
        assert Image.open(io.BytesIO(picture.data)).size == (picture.width, picture.height)
        texts = [output.text for output in ran.outputs]
        assert texts.index("before\n") < texts.index(shown[0].text) < texts.index("after\n")
        assert "[a picture is not shown: neither PNG nor JPEG]\n" in texts
        assert "<svg" not in "".join(texts)
        many = await opened.ok(
            "from IPython.display import Image\nfor _ in range(30): display(Image(data=" + repr(png()) + "))"
        )
        assert len([output for output in many.outputs if output.picture is not None]) == 20


def test_a_run_of_an_earlier_session_is_shown_with_its_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_JUPYTER_TRACES", str(tmp_path))
    with scripted([code(PLOT), answer()]) as (rlm, _):
        run = rlm.completion("x").trace.run
    (event,) = [event for event in Trace.from_file(tmp_path / f"{run}.jsonl").events if isinstance(event, CellPicture)]
    with open_shell() as shell, capture_output() as shown:
        shell.run('%config RLMMagics.view = "html"')
        assert shell.run(f"%rlm show {run}").error is None
    pages = [Page(output.data["text/html"]) for output in shown.outputs if "text/html" in output.data]
    assert [len(page.pictures) for page in pages] == [0, 0, 1]
    below = [output.data for output in shown.outputs if "text/html" not in output.data]
    told = f"picture of {event.width}x{event.height} made by cell 1"
    assert below == [{"image/png": event.data, "text/plain": told}]
    assert check(pages[-1].pictures[0]) == check(base64.b64decode(event.data))


def test_a_trace_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_JUPYTER_TRACES", str(tmp_path))
    (tmp_path / "odd.jsonl").write_bytes(b"{}\n\xff")
    with open_shell() as shell:
        assert shell.run("%rlm show odd").output == (
            "UsageError: odd.jsonl cannot be shown: the trace is not UTF-8 at byte 3\n"
        )


def test_pictures_are_told_to_the_lm_as_text() -> None:
    from rlm_jupyter import prompts

    ran = prompts.Ran((Output("display", "[a picture of 3x2]\n", check(png())),), "ok")
    assert "[a picture of 3x2]" in prompts.outputs_message([ran], 0, prompts.Left(1, 2, 3, 4))

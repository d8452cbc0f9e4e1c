"""The HTML that the views at rest are made of: styles, and text of any origin as text.

Styles are written at each element and with fixed colours, since a notebook that is not trusted loses every style sheet, every
background with a variable, every role and every drawing. Of a model, a kernel or a user nothing ever comes into an attribute.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.fit import Part

LINE = "rgba(128,128,128,.3)"
GOOD, BAD, WARN, PLAIN = "#4a9f50", "#e25050", "#d99020", "rgba(128,128,128,.3)"
"""Legible on light and on dark; JupyterLab's own colours come before them in `ink`, where a notebook is trusted."""
VARIABLES = {GOOD: "--jp-success-color1", BAD: "--jp-error-color1", WARN: "--jp-warn-color1"}
TONES = {"answered": GOOD, "running": PLAIN, "failed": BAD}

COLOURS = {
    "Comment": "var(--jp-mirror-editor-comment-color, gray)",
    "String": "var(--jp-mirror-editor-string-color, indianred)",
    "Keyword": "var(--jp-mirror-editor-keyword-color, seagreen)",
    "Operator.Word": "var(--jp-mirror-editor-keyword-color, seagreen)",
}
HIGHLIGHT_CAP = 8 * 1024
"""Characters of the longest code that is coloured."""

ROOT = "line-height:1.5;font-variant-numeric:tabular-nums;padding:0 0 .3em 0"
MUTED = "opacity:.7"
SMALL = "opacity:.7;font-size:.9em"
PROSE = "white-space:pre-wrap;word-wrap:break-word;margin:0 0 .7em 0"
BLOCK = (
    "font-family:var(--jp-code-font-family,monospace);font-size:.92em;line-height:1.45;white-space:pre-wrap;"
    "word-wrap:break-word;margin:0 0 .6em 0;max-height:32em;overflow:auto;"
)
CODE = BLOCK + "padding:.6em .8em;border-radius:4px;background-color:rgba(128,128,128,.12)"
OUTPUT = BLOCK + f"padding:.1em .8em;border-left:2px solid {LINE};background-color:transparent"
ERROR = BLOCK + f"padding:.1em .8em;border-left:2px solid {BAD};background-color:transparent"
SUMMARY = "cursor:pointer;padding:.3em 0"
ROW = "display:inline-flex;flex-wrap:wrap;justify-content:space-between;align-items:baseline;column-gap:1.5em;width:96%"
LEFT = "flex:1 1 12em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
MIDDLE = "max-width:100%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-size:.9em"
RIGHT = "max-width:100%;font-size:.9em;opacity:.7"
SECOND = "display:block;padding:0 0 .2em 1.1em;opacity:.7;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
IMAGE = "display:block;max-width:100%;max-height:36em;width:auto;height:auto;margin:.2em 0 .7em 0;background-color:#fff"
"""Light under transparent plots, whose text is dark."""
CALLS = (
    f"margin:.2em 0 .4em .4em;padding-left:.8em;border-left:2px solid {LINE};font-size:.92em;white-space:pre-wrap;"
    "word-wrap:break-word;max-height:36em;overflow:auto"
)
LABEL = "display:inline-block;width:8em;opacity:.7;vertical-align:top"
VALUE = "display:inline-block;max-width:calc(100% - 9em);word-wrap:break-word"


def escape(text: str) -> str:
    """Give visible text as HTML text."""
    return guard(html.escape(text, quote=False))


def guard(source: str) -> str:
    """Give HTML without attributes as it is to be saved.

    Newlines become references, since a saved notebook indents each line of a text. Dollars and backslashes are followed by
    an empty element: notebooks typeset mathematics wherever a text has two dollars or a `\\(`, and MathJax has an `\\href`.
    """
    return source.translate(_TRANSLATION)


_TRANSLATION = str.maketrans({"\n": "&#10;", "$": "$<b></b>", "\\": "\\<b></b>"})


def ink(colour: str) -> str:
    """Give the style of a colour of ours: fixed where variables are stripped, the theme's own elsewhere."""
    return f"color:{colour};color:var({VARIABLES[colour]},{colour})" if colour in VARIABLES else "color:inherit"


def page(*inner: Part) -> list[Part]:
    """Give the outermost element, whose classes tell typesetters of mathematics to leave it alone."""
    return [f'<div class="mathjax_ignore tex2jax_ignore" style="{ROOT}">', *inner, "</div>"]


def tag(name: str, style: str, *inner: Part) -> list[Part]:
    return [f'<{name} style="{style}">' if style else f"<{name}>", *inner, f"</{name}>"]


def highlight(code: str) -> str:
    """Give visible Python code as HTML with its keywords, strings and comments in the theme's colours."""
    from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]

    found: list[tuple[str, str]] = []
    for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(code):
        colour = next((colour for name, colour in COLOURS.items() if name in repr(kind)), "")
        if found and (found[-1][0] == colour or not text.strip()):
            found[-1] = (found[-1][0], found[-1][1] + text)
        else:
            found.append((colour, text))
    return "".join(f'<span style="color:{colour}">{escape(text)}</span>' if colour else escape(text) for colour, text in found)


def say(text: str) -> str:
    """Give a short text of any origin as HTML, isolated so that its direction moves nothing else."""
    return f"<bdi>{escape(words.visible(text))}</bdi>"


def dotted(parts: Iterable[str]) -> str:
    return " · ".join(say(part) for part in parts if part)

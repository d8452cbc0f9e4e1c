"""An answer's markdown as HTML, for those who ask for it: headings, lists, tables, code and emphasis, and nothing else.

Text of a model runs scripts in a trusted notebook if a front end renders its markdown. Here markdown-it-py reads it with raw
HTML, links and images switched off, so that all three are shown as they were written, and nh3 lets through bare tags of a short
list: no attribute at all, so no address, class or style.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.markup import escape, guard

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

CAP = 32 * 1024
"""Characters of the longest text that is read as markdown."""
TAGS = {
    "b", "blockquote", "br", "code", "em", "hr", "li", "ol", "p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead",
    "tr", "ul",
}  # fmt: skip
_HEADING = re.compile(r"<(/?)h[1-6]>")


def render(text: str) -> str:
    """Give visible markdown as HTML; a text that is too long for it as it is."""
    import nh3

    if len(text) > CAP:
        return escape(text)
    drawn = _HEADING.sub(lambda found: "</b></p>" if found[1] else "<p><b>", _reader().render(words.visible(text)))
    return guard(nh3.clean(drawn, tags=TAGS, attributes={}, clean_content_tags=set(), strip_comments=True))


@functools.cache
def _reader() -> MarkdownIt:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": 20})
    reader.enable(["table", "strikethrough"])
    return reader.disable(["html_block", "html_inline", "link", "image", "autolink", "reference"])

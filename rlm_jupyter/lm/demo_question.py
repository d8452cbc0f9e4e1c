"""A question -> what the demo stand-in searches for: the kind of question, its terms, and rules from strict to loose.

It reads plain English by a few patterns, for any text: it knows question words and how definitions and assignments are
commonly written, and nothing of any particular file, module or name. What it cannot read becomes a search for the
question's own words. Part of `demo.py`; it makes nothing up and looks nothing up.
"""

from __future__ import annotations

import dataclasses
import re

LONGEST = 4_000
"""Characters of a question that are read."""

Rule = tuple[str, str]
"""A literal that a text must hold ("" for none), and a regular expression that is then tried in it."""
Group = tuple[Rule, ...]
"""Rules that are equally good."""
Level = tuple[Group, ...]
"""What one search tries: groups in order of preference, the first with hits counts."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SORTS = {
    **dict.fromkeys(("class", "exception", "enum", "dataclass", "type"), "class"),
    **dict.fromkeys(("function", "method", "coroutine", "generator", "decorator", "property"), "def"),
    **dict.fromkeys(("constant", "variable", "attribute", "global", "flag", "setting", "field", "member"), "name"),
    **dict.fromkeys(("symbol", "name", "object", "identifier", "named", "called"), ""),
}
_FILES = _set("module modules file files package library script submodule source folder directory")
_NO_NAMES = _set("""
    a an the it this that them which what where how is are was in of do does has have define defined declared implemented
    located set value
""")
_GENERAL = _set("""
    a about all also am an and any are as assigned async at be been being but by can come comes contain containing contains
    context could created declaration declare declared declares default define defined defines defining definition did do
    does doing done each equal equals exact exactly find for from get gets give given gives got had has have having held
    hold holds how i if implement implementation implemented implements in inside into introduced is it its just kept let
    line lines live lives locate located look looking many may me much must my no nor not of off on once only or other our
    out own path please provide provided provides python s same say says search see set sets should show so some standard stdlib
    stored string such tell text than that the their them then there these they this those through to too under up us use
    used uses value values was we were what when where which while who whom whose why will with within would written you
    your
""")
_WORDS = r"(?:text|string|line|phrase|snippet|words?|sentence|comment|message|code|passage|literal|substring)"
_LABEL = rf"(?:(?:the|this|a|an|following|exact|string)\s+)*{_WORDS}(?:\s+(?:that\s+)?(?:says|reads))?\b"
_CONTAINS = re.compile(
    r"\b(?:contain\w*|includ\w+|mention\w*|(?:file|module|source|script|one|which|that)\s+(?:has|have|holds?|with|says|reads)"
    rf"|(?:the|this|exact|following)\s+(?:exact\s+)?{_WORDS})\b",
    re.IGNORECASE,
)
_APPEARS = re.compile(r"\b(?:appears?|occurs?|found|shows? up|present|exists?|written)\b", re.IGNORECASE)
_DEFINES = re.compile(r"\b(?:defin|declar|implement|introduc|located|lives?\b|provid|creat|comes?\b)\w*", re.IGNORECASE)
_VALUE = re.compile(r"\b(?:values?|set|sets|assigned|equals?|initiali[sz]ed|default|stored|holds?)\b", re.IGNORECASE)
_WHAT = re.compile(r"\bwhat(?:'s|\s+is|\s+does)\b(?!\s+the\s+(?:file|module))", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)(?:`([^`]+)`|'(.+?)'(?!\w)|\"(.+?)\"(?!\w)|“(.+?)”|‘(.+?)’|«(.+?)»)", re.DOTALL)
_TOKEN = re.compile(r"(?<![\w]['’])[\w$#@%-]+(?:[.:/\\-]+\w+)*(?:\(\))?")
_ASKS_PLACE = re.compile(r"\b(?:where|(?:which|what) (?:\S+ )?(?:file|module|source|script)|find|locate)\b", re.IGNORECASE)
_ASKED = re.compile(r"\b(?:defin(?:es?|ing|ition of)|values? of)\s*$")
_ABOUT = re.compile(r"\b(?:value|is|are|does|sets?|equal|find|for|locate|where's|what's)\s*$")
_INSIDE = re.compile(
    rf"\b(?:(?:in|from|inside|within|by|{'|'.join(_FILES)})(?:\s+(?:the\s+)?class)?|of\s+(?:the\s+)?class)\s*$"
)
_OWNS = re.compile(rf"'s\b|\W*\s(?:{'|'.join(_FILES)}|defines?|declares?|implements?)\b", re.IGNORECASE)
_SORT = re.compile(rf"\W?\s+({'|'.join(_SORTS)})\b")
_CODE = re.compile(r"_|\d|\w\.\w|[a-z][A-Z]|^[A-Z]{2,}|\(\)$|/")


@dataclasses.dataclass(frozen=True, slots=True)
class Quest:
    """What a question asks for. `kind`: define, value, contain or other; `places`: files, modules or classes it may name."""

    kind: str
    wanted: str
    places: tuple[str, ...]
    terms: tuple[str, ...]
    levels: tuple[Level, ...]


def read(question: str) -> Quest:
    """Read a question, of which only the beginning counts if it is very long."""
    question = question.strip()[:LONGEST]
    texts, quoted = _texts(question), _quoted(question)
    kind = _kind(question)
    terms = tuple(dict.fromkeys([*quoted, *sorted(_tokens(question), key=lambda word: not _CODE.search(word))]))[:20]
    name, sort = _name(texts[-1] if kind == "contain" and _asks_definition(texts) else question)
    if kind == "contain" and texts and not _asks_definition(texts):
        wanted = max(quoted, key=len, default=texts[0])
        places = tuple(_tokens(question.replace(wanted, " ")))
        return Quest(kind, wanted, places, terms, (_texts_level(texts), _loose_level(texts)))
    if not name or kind == "other":
        return Quest("other", " ".join(terms), (), terms, ())
    places = tuple(token for token in _tokens(question) if token.removesuffix("()") != name)
    owner, _, last = name.rpartition(".")
    levels = _name_levels(last, sort, "value" if kind == "value" else "define", texts if kind == "contain" else ())
    return Quest("value" if kind == "value" else "define", last, (*places, owner) if owner else places, terms, levels)


def _kind(question: str) -> str:
    """The kind whose words come first, outside of quotes."""
    masked = _QUOTED.sub(lambda match: "\x00" * len(match[0]), question)
    found = {"define": _DEFINES.search(masked), "contain": _CONTAINS.search(masked), "value": _VALUE.search(masked)}
    starts = {kind: match.start() for kind, match in found.items() if match}
    if "define" not in starts and any(not re.fullmatch(r"[\w./-]+", text) for text in _quoted(question)):
        return "contain"
    if starts:
        return min(starts, key=starts.__getitem__)
    if _APPEARS.search(masked):
        return "contain"
    if not _ASKS_PLACE.search(masked) and not any(_CODE.search(token) for token in _tokens(question)) and " " in question:
        return "other"
    return "value" if _WHAT.search(masked) else "define"


def _quoted(question: str) -> list[str]:
    return [text for match in _QUOTED.finditer(question) for text in match.groups() if text]


def _tokens(question: str) -> list[str]:
    """The words that are no general question words, in their order."""
    words = (re.sub(r"'s$", "", match[0]) for match in _TOKEN.finditer(question))
    return [word for word in words if not _is_general(word)]


def _is_general(word: str) -> bool:
    return _is_no_name(word) or (word.lower() in _GENERAL | _FILES and not (word.isupper() and len(word) > 1))


def _is_no_name(word: str) -> bool:
    return word in _SORTS or word in _NO_NAMES or (word.istitle() and word.lower() in _NO_NAMES)


def _texts(question: str) -> tuple[str, ...]:
    """Every way to read the text that a question quotes, with or without quotation marks: the longest first."""
    rests = [question[match.end() :] for match in [_CONTAINS.search(question)] if match]
    rests += [question[match.start() :] for match in [_QUOTED.search(question)] if match]
    before = rf"(?:.*?\b(?:does|do|is|can|find|could)\s+)(?:{_LABEL}\s+)?(.+?)\s+(?:be\s+)?{_APPEARS.pattern}"
    rests += [match[1] for match in [re.match(before, question, re.IGNORECASE | re.DOTALL)] if match]
    forms = [rest.strip() for rest in rests]
    for pattern in (
        r"^:\s*",
        rf"^{_LABEL}\s*:?\s+",
        r"^:\s*",
        r"\W*\b(?:in|inside) (?:it|them|the \w+)\W*$",
        r"\s*[?.]$",
        r"\s*[?.]$",
    ):
        forms += [re.sub(pattern, "", form, flags=re.IGNORECASE) for form in forms]
    for form in list(forms):
        close = {"“": "”", "‘": "’", "«": "»"}.get(form[:1], form[:1])
        if form[:1] in tuple("\"'`“‘«") and form.rfind(close) > 0:
            forms.append(form[1 : form.rfind(close)])
    found = {text.strip("\n") for text in (*forms, *_quoted(question)) if text.strip()}
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _asks_definition(texts: tuple[str, ...]) -> bool:
    """`contains the class Foo`, and `contains Foo`, ask for a definition rather than for that text."""
    sorts, quote = f"(?:{'|'.join(_SORTS)})", "[`'\"]?"
    name = rf"{quote}[^\W\d][\w.]*{quote}"
    definition = r"(?:the\s+)?(?:definition|declaration|implementation)\s+(?:of|for)\b.*"
    sorted_name = rf"(?:the\s+)?{sorts}\s+{name}|the\s+{name}\s+{sorts}(?:\s+(?:of|in)\s+\S+)?"
    rule = rf"(?:{definition}|{sorted_name}|{quote}[^\W\d]\w*{quote})\??"
    return bool(re.fullmatch(rule, texts[0], re.IGNORECASE))


def _name(question: str) -> tuple[str, str]:
    """Choose the name that is asked for, and the sort of thing it is said to be: by its looks and by the words around it."""
    best, sort, most = "", "", -99
    for match in _TOKEN.finditer(question):
        word, start = match[0].removesuffix("()"), match.start()
        words = re.findall(r"[\w.]+", re.sub(r"\b(?:named|called)\W*$", "", question[:start]))
        said = words[-1].lower() if words and not words[-1].isupper() else ""
        if said not in _SORTS and (after := _SORT.match(question, match.end())):
            said = after[1]
        before = re.sub(r"\b(?:the|a|an)\s*$", "", question[:start].rstrip("\"'`“‘ ").lower())
        asked, quoted = bool(_ASKED.search(before)), question[start - 1 :][:1] in tuple("`'\"“")
        if (
            _is_no_name(word)
            or (start == 0 and word.lower() in _SORTS)
            or (_is_general(word) and not (said in _SORTS or asked or quoted))
        ):
            continue
        score = 6 * (said in _SORTS) + 3 * bool(_CODE.search(match[0])) + (word.isupper() and len(word) > 1)
        score += 2 * (asked or bool(_ABOUT.search(before)))
        score -= 8 * bool(_INSIDE.search(before))
        score -= 10 * bool(_OWNS.match(question, match.end()) or "/" in word or word.endswith(".py"))
        score -= ("." in word) + 2 * (before.endswith(" of") and not asked)
        if score > most:
            best, sort, most = word, _SORTS.get(said, ""), score
    return best, sort


def _name_levels(name: str, sort: str, kind: str, texts: tuple[str, ...]) -> tuple[Level, ...]:
    """Rules for a name: as it is defined or assigned, as a word, in any case."""
    word = re.escape(name)
    modifiers = r"^[ \t]*(?:(?:async|export|default|public|private|protected|static|abstract|final|pub|inline|data)[ \t]+)*"
    cls = rf"{modifiers}(?:class|struct|interface|enum|trait|type|namespace)[ \t]+{word}[ \t]*(?:[(:{{<\[=;\\]|$)"
    function = rf"{modifiers}(?:def|fn|func|function|sub|macro)[ \t]+{word}[ \t]*(?:[({{<\[\\]|$)"
    assigned = (
        rf"^[ \t]*(?:(?:export|const|let|var|static|final)[ \t]+)*(?:[\w.]+[ \t]*[,=][ \t]*|\([ \t]*)*"
        rf"{word}\b(?:[ \t]*,[ \t]*[\w.]+)*,?[ \t]*\)?[ \t]*(?::[^=\n]+)?=(?!=)"
    )
    other = rf"^[ \t]*(?:#[ \t]*define[ \t]+{word}\b|[\"']?{word}[\"']?[ \t]*:(?!=)|(?:self|this|cls)\.{word}[ \t]*=(?!=))"
    strict = {"class": (cls,), "def": (function,), "name": (assigned,)}.get(sort, (cls, function, assigned))
    groups = dict.fromkeys([(assigned,) if kind == "value" else strict, (cls, function, assigned), (other,)])
    defined = tuple(tuple((name, rule) for rule in group) for group in groups)
    written = (_texts_level(texts),) if texts else ()
    return (defined, *written, (((name, rf"\b{word}\b"),), (("", rf"(?i){word}"),)))


def _texts_level(texts: tuple[str, ...]) -> Level:
    return tuple(((text, re.escape(text)),) for text in texts)


def _loose_level(texts: tuple[str, ...]) -> Level:
    """The same texts in any case, with any white space and any quotation marks."""
    rules = (r"\s+".join(re.escape(word) for word in text.split()) for text in texts)
    return tuple((("", "(?i)" + re.sub(r"['\"`]", "['\"`]", rule)),) for rule in rules)

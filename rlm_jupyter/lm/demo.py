"""The demo stand-in: no language model, no key, no network, and yet the whole loop runs for real.

It plays one honest strategy. As the root it sees what a model would see (the question, the context's description, what its
code printed) and writes code that probes the context, searches it for the question's terms, cuts pieces around the hits, asks
extractive questions about the pieces in a batch, lets the replies be voted on and finishes with FINAL_VAR. As the sub-LM it
gets a question and a numbered excerpt, or candidates, and gives back the line that answers. It is deterministic, never opens
a file, holds no answers, and says in its first reply what it is. How a question is read: `demo_question.py`.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Sequence

import anyio.lowlevel

from rlm_jupyter.events import Usage
from rlm_jupyter.lm import demo_question
from rlm_jupyter.lm.client import Completion, Message, text_of
from rlm_jupyter.lm.demo_question import Quest

SAYS = "I am the demo stand-in, not a language model: I search by fixed rules. First, what is in `context`?"
NOT_FOUND = "NOT FOUND"
ROWS, WIDTH, PIECE = 2_000, 2_000, 100_000
"""Bounds of what the sub-LM reads of a prompt, which code in a kernel wrote: rows, characters of a row and of a statement."""

# The code of the turns: it runs in the kernel, on what earlier turns left there; `_turn` puts the values it needs before it.

PROBE = """
def flatten(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{path}/{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from flatten(item, f"{path}[{place}]")
    else:
        yield path or "context", value if isinstance(value, str) else str(value)

texts = dict(flatten(context))
print(f"{type(context).__name__} of {len(texts):,} texts, {sum(map(len, texts.values())):,} characters")
for path in list(texts)[:5]:
    print(f"  {path}: {len(texts[path]):,} characters, begins {texts[path][:60]!r}")
"""

READ_TASK = r"""
print("The task may be in here:", str(context)[:500], "...", str(context)[-500:], sep="\n")
"""

SEARCH = r"""
import re

def fit(path, text, start, indent):  # how well a hit fits the places that the question may name: module, folder, class
    stem, total = "/" + re.sub(r"(/__init__)?[.][^./]*$", "", path), 0
    for place in places:
        want = "/" + place.replace(".", "/").strip("/")
        near = stem.endswith(want) or f"/{path}".endswith(f"/{place}")
        total += 8 if stem == want or path == place else 4 if near else 2 if f"{want}/" in stem else 0
        if indent:
            classes = re.findall(r"^([ ]*)class (\w+)", text[:start], re.M)
            total += [name for lead, name in classes if len(lead) < indent][-1:] == [place.split(".")[-1]]
    return total

def search(rules):  # hits in order: what fits the places best, no tests, outermost, the better rule
    found = {}
    for order, (literal, rule) in enumerate(rules):
        for path, text in texts.items():
            number, counted = 1, 0
            for match in re.finditer(rule, text, re.M) if literal in text else ():
                begin = text.rfind("\n", 0, match.start()) + 1
                number, counted = number + text.count("\n", counted, begin), begin
                line = text[begin : begin + 400].split("\n")[0]
                indent, test = len(line) - len(line.lstrip()), bool(re.search("(^|/)_*tests?", path))
                rank = -fit(path, text, match.start(), indent), test, indent > 0, order, indent, path.count("/")
                if not (task and task in line):
                    found.setdefault((path, number), (rank, line))
    best = min((rank[0] for rank, _ in found.values()), default=0)
    return sorted((rank, *key, line) for key, (rank, line) in found.items() if rank[0] == best)

hits = next(filter(None, map(search, groups)), [])
"""

WEIGH = r"""
import collections, math

where = {term: [] for term in terms}
for path, text in texts.items():
    for number, line in enumerate(text.lower().split("\n"), 1):
        for term in terms:
            if term.lower() in line and not (task and task.lower() in line):
                where[term].append((path, number))
score = collections.Counter()
for term, lines in where.items():
    print(f"  {term!r}: in {len(lines):,} lines")
    for path, number in lines[:20000]:
        for step in (-2, -1, 0, 1, 2):  # rare terms weigh more, and also help the lines around them
            score[path, number + step] += (0.3 if step else 1) / (1 + math.log(1 + len(lines)))
best = max(score.values(), default=0)
keys = [key for key, value in score.most_common(100) if value > 0.6 * best and key in set().union(*where.values())]
hits = [(0, path, number, texts[path].split("\n")[number - 1][:400]) for path, number in keys]
"""

SHOW = r"""
print(f"{len(hits)} hits in {len({path for _, path, _, _ in hits})} texts")
for _, path, number, line in hits[:10]:
    print(f"  {path}:{number}: {line.strip()[:120]}")
"""

ASK = r"""
import re

after = 40 if len(hits) > 5 else 400

def cut(path, number, before=4):
    lines, first = texts[path].split("\n"), max(1, number - before)
    rows = enumerate(lines[first - 1 : number + after], first)
    body = "\n".join(f"{n:>7}{'>' if n == number else '|'} {line[:2000]}" for n, line in rows if not (task and task in line))
    return f"Question: {question}\n\nExcerpt of {path}:\n{body}\n\n{form}"

form = "Reply with the line that answers, and nothing else, as `path:line: text` (`>` marks a hit); if none does, NOT FOUND."
replies = llm_query_batched([cut(path, number) for _, path, number, _ in hits[:24]])
candidates = {}
for reply in replies:
    found = re.match(r"(.+?:\d+): ", reply)
    if found and not getattr(reply, "error", ""):
        candidates.setdefault(found[1], reply)
print(f"{len(candidates)} candidates")
for reply in candidates.values():
    print("  " + reply.split("\n")[0][:160])
"""

ONE = """
winner = next(iter(candidates))
"""

VOTE = r"""
rows = [reply.split("\n")[0][:500] for reply in candidates.values()]
ballots = [rows[turn:] + rows[:turn] for turn in sorted({0, len(rows) // 3, 2 * len(rows) // 3})]
form = "Reply with the one candidate that answers best, unchanged."
replies = llm_query_batched([f"Question: {question}\n\nCandidates:\n" + "\n".join(rows) + f"\n\n{form}" for rows in ballots])
votes = [found[1] for found in (re.match(r"(.+?:\d+): ", reply) for reply in replies) if found]
winner = max(candidates, key=votes.count)
print(f"{votes.count(winner)} of {len(ballots)} votes for {winner}")
"""

FINISH = r"""
others = [place for place in candidates if place != winner]
more = f" and {len(others) - 5} more" if len(others) > 5 else ""
answer = candidates[winner] + (f"\n(also: {', '.join(others[:5])}{more})" if others else "")
FINAL_VAR(answer)
"""

GIVE_UP = """
answer = f"Not found: nothing in the {len(texts):,} texts of the context answers this. Searched for: {', '.join(terms)}."
FINAL_VAR(answer)
"""


class DemoLM:
    """The stand-in as an LM: root or sub-LM, told apart by the prompt alone."""

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_output_tokens: int,
        timeout: float,  # noqa: ASYNC109 - the contract's; nothing here takes time
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Reply at once; the usage is an estimate of four characters a token."""
        text = next_turn(messages) if len(messages) > 1 else extract(text_of(messages[0]))
        cut = text[: 4 * max_output_tokens]
        for start in range(0, len(cut) if on_text else 0, 80):
            assert on_text is not None
            on_text(cut[start : start + 80])
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        size = sum(len(text_of(message)) for message in messages)
        usage = Usage(input_tokens=size // 4 + 1, output_tokens=len(cut) // 4 + 1, estimated=True)
        return Completion(cut, usage, "stop" if cut == text else "length", "demo")

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""


def next_turn(messages: Sequence[Message]) -> str:
    """Write the root's next reply, chosen from the conversation so far."""
    question, task = _question(messages)
    quest = demo_question.read(question)
    mine = [text_of(message) for message in messages if message["role"] == "assistant"]
    if not mine:
        return _turn(SAYS, PROBE + ("" if question else READ_TASK))
    searched = "hits = " in mine[-1]
    told = re.search(r"\b(\d{1,9}) (?:hits in \d+ texts|candidates)\b", text_of(messages[-1]))
    count = int(told[1]) if told else 0
    if told is None and (searched or "candidates = " in mine[-1]):
        return _turn("That did not work, so I have no answer.", GIVE_UP, terms=quest.terms)
    if count == 0:
        return _search(quest, sum("hits = " in text for text in mine), question=question, task=task)
    if searched:
        return _turn(f"{count} hits. I cut a piece around the first ones and ask which line answers.", ASK)
    if count == 1:
        return _turn("One candidate: that is the answer.", ONE + FINISH)
    return _turn(f"{count} candidates: I put them to a vote, in different orders.", VOTE + FINISH)


def _search(quest: Quest, searched: int, **asked: str) -> str:
    """Write the next search, looser than the last."""
    if searched < len(quest.levels):
        says = "Now I search for" if searched == 0 else "That answers nothing; I search more loosely for"
        return _turn(f"{says} {quest.wanted!r}.", SEARCH + SHOW, **asked, places=quest.places, groups=quest.levels[searched])
    if searched == len(quest.levels) and quest.terms:
        return _turn("I search for the question's own words, rare ones first.", WEIGH + SHOW, **asked, terms=quest.terms)
    return _turn("There is nothing left to try.", GIVE_UP, terms=quest.terms)


def _turn(says: str, code: str, **values: object) -> str:
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    return f"{says}\n\n```repl\n{given}{code.strip()}\n```"


def _question(messages: Sequence[Message]) -> tuple[str, str]:
    """Give the first user message's question and ""; where it holds none, twice the task that the probed context showed."""
    first = next(text_of(message) for message in messages if message["role"] == "user")
    if match := re.match(r"Question:\n(.*?)\n\nContext:\n", first, re.DOTALL):
        return match[1].strip(), ""
    shown = text_of(messages[3]).partition("The task may be in here:")[2] if len(messages) > 3 else ""
    asked = re.findall(r"[^.!?\n]*\?", shown[:2000]) or [""]
    return asked[-1].strip(), asked[-1].strip()


def extract(prompt: str) -> str:
    """Reply as the sub-LM: the line of an excerpt, or the one candidate, that answers the question best."""
    match = re.match(r"Question: (.*?)\n\n(?:Excerpt of ([^\n]+)|Candidates):\n", prompt, re.DOTALL)
    if match is None:
        return "I am the demo stand-in, not a language model: I only find lines in excerpts, so I cannot answer this."
    quest = demo_question.read(match[1])
    body = prompt[match.end() :].rpartition("\n\n")[0].split("\n")[:ROWS]
    if match[2] is None:
        return max(body, key=lambda row: _score(quest, row.partition(": ")[2]) - 30 * _is_test(row))
    rows = [row.groups() for line in body if (row := re.match(r" *(\d{1,12})([|>]) (.*)", line[:WIDTH]))]
    scores = [_score(quest, line) + 30 * (mark == ">") for _, mark, line in rows]
    place = scores.index(max(scores)) if rows else 0
    if not rows or not _answers(quest, rows[place][2]):
        return NOT_FOUND
    number, _, line = rows[place]
    text = _statement([line for _, _, line in rows[place:]]) if quest.kind == "value" else line
    return f"{match[2]}:{number}: {text}"


def _score(quest: Quest, line: str) -> float:
    """Tell how well a line answers: the stricter the rule that it fits the better, less if it is indented."""
    indent = 0 if quest.kind == "contain" else min(len(line) - len(line.lstrip()), 20)
    return _fit(quest, line) + _share(quest, line) * 5 - 10 * (indent > 0) - indent / 4


def _answers(quest: Quest, line: str) -> bool:
    """Tell whether a line fits a rule, or else holds enough of the question's words to be shown as an answer."""
    return _fit(quest, line) > 0 or _share(quest, line) >= (0.5 if quest.kind == "other" else 0.7)


def _fit(quest: Quest, line: str) -> float:
    groups = (group for level in quest.levels for group in level)
    rules = ((place, order, rule) for place, group in enumerate(groups) for order, (_, rule) in enumerate(group))
    return next((60 + 60 / (1 + place) - 3 * order for place, order, rule in rules if re.search(rule, line[:WIDTH])), 0)


def _share(quest: Quest, line: str) -> float:
    return sum(term.lower() in line.lower() for term in quest.terms) / max(1, len(quest.terms))


def _is_test(row: str) -> bool:
    return bool(re.search(r"(?:^|/)_*tests?", row.partition(":")[0]))


def _statement(lines: Sequence[str]) -> str:
    """Give the whole statement that begins on the first line, or that line where it cannot be read as one."""
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines).lstrip()[:PIECE]).readline):
            if token.type == tokenize.NEWLINE:
                return "\n".join([lines[0].lstrip(), *lines[1 : token.end[0]]])
    except (tokenize.TokenError, SyntaxError) as error:
        if "EOF in multi-line" in str(error):
            return f"{lines[0].strip()} ... (it goes on beyond the excerpt)"
    return lines[0].strip()

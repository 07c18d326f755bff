"""The answer in a response: what stands behind its thoughts in the last boxes, tags or announcement."""

from __future__ import annotations

import json
import re

from evaluation.graders.announcements import SETTLED, any_of

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Between the boxes of one answer: "$\boxed{1}$ and $\boxed{2}$", "x = \boxed{1}, \quad y = \boxed{2}". A line end or a
# sentence alone parts two answers, of which the last counts.
GAP = r"(?:[\s$.]|\\q?quad|\\[,;: ()\[\]])*"
JOIN = r"(?:(?:,|;)\s*(?:and\b|or\b)?|\band\b|\bor\b|,?\s*\\text\s*\{[^{}]{0,60}\b(?:and|or)\s*\}|\\text\s*\{\s*,\s*\})"
LABEL = r"(?:[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=\s*)?"
BOX_SEPARATOR = re.compile(rf"{GAP}{JOIN}{GAP}{LABEL}{GAP}")
ANSWER_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
ANSWER_PHRASE = re.compile(rf"(?i:answer)[*_ ]*(?:(?i:{any_of(SETTLED)})\b\s*:?|:)[*_]*\s*(.+)")
THOUGHT_END, THOUGHT_START = "</think>", "<think>"


def after_thoughts(response: str) -> str:
    """A response without its thoughts; of one that was cut off within them nothing."""
    kept = response.rpartition(THOUGHT_END)[2]
    return kept if THOUGHT_START not in kept else kept.partition(THOUGHT_START)[0]


def boxes(response: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every closed box, of boxes within each other the inner one."""
    spans: list[tuple[int, int, str]] = []
    position = 0
    while (match := BOX.search(response, position)) is not None:
        depth, end = 1, match.end()
        while end < len(response) and depth:
            if response[end] == "\\":
                end += 1
            elif response[end] == "{":
                depth += 1
            elif response[end] == "}":
                depth -= 1
            end += 1
        if depth:
            break
        content = response[match.end() : end - 1].strip()
        inner = BOX.match(content)
        while inner is not None and content.endswith("}"):
            content = content[inner.end() : -1].strip()
            inner = BOX.match(content)
        spans.append((match.start(), end, content))
        position = end
    return spans


def extract_boxed(response: str) -> list[str]:
    r"""Contents of the last \boxed{...} of a response, or of the last few where "and", "or", commas join them."""
    run: list[tuple[int, int, str]] = []
    for span in reversed(boxes(response)):
        if run and not BOX_SEPARATOR.fullmatch(response, span[1], run[-1][0]):
            break
        run.append(span)
    return [content for _, _, content in reversed(run)]


def extract_tagged(response: str) -> str | None:
    """Content of the last <answer>...</answer>; of a JSON object there its field "answer". None without tags."""
    tagged = ANSWER_TAGS.findall(response)
    return None if not tagged else _field(tagged[-1].strip()) or tagged[-1].strip()


def _field(text: str) -> str | None:
    """The field "answer" of a JSON object."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    named = {str(key).lower(): value for key, value in found.items()}
    return str(named["answer"]) if "answer" in named else None


def extract_answer(response: str) -> str | None:
    r"""The final answer as text, or None: the last \boxed{...} or <answer>...</answer>, whichever is later; else the
    field "answer" of a response that is a JSON object; else what follows the last "answer is" or "Answer:"."""
    response = after_thoughts(response)
    tagged = extract_tagged(response)
    boxed = extract_boxed(response)
    if tagged is not None and (not boxed or response.lower().rindex("<answer>") > boxes(response)[-1][0]):
        return tagged
    if boxed:
        return ", ".join(boxed)
    field = _field(response)
    if field is not None:
        return field
    phrases = ANSWER_PHRASE.findall(response)
    return phrases[-1].strip().strip("*_").strip().rstrip(".").strip() if phrases else None

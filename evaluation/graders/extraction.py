"""The answer in a response: its last boxes, tags or announcement."""

from __future__ import annotations

import json
import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Between the boxes of one answer: "$\boxed{1}$ and $\boxed{2}$", "x = \boxed{1}, \quad y = \boxed{2}".
GAP = r"(?:[\s$,;.]|\\q?quad|\\[,;: ()\[\]])*"
BOX_SEPARATOR = re.compile(
    rf"{GAP}(?:\\text\s*\{{\s*)?(?:and|or)?(?:\s*\}})?{GAP}"
    rf"|{GAP}\\text\s*\{{[^{{}}]{{0,60}}\b(?:and|or)\s*\}}{GAP}"
    rf"|{GAP}(?:\\text\s*\{{\s*)?(?:and|or|,)(?:\s*\}})?{GAP}[A-Za-z](?:_\{{?\w{{1,3}}\}}?)?\s*=\s*"
)
ANSWER_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
ANSWER_PHRASE = re.compile(r"(?i:answer)\s*(?:(?i:is)\s*:?|:)\s*(.+)")


def extract_boxed(response: str) -> list[str]:
    r"""Contents of the last \boxed{...} of a response, or of the last few where only "and", "or", commas part them."""
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
        spans.append((match.start(), end, response[match.end() : end - 1].strip()))
        position = end
    run: list[tuple[int, int, str]] = []
    for span in reversed(spans):
        if run and not BOX_SEPARATOR.fullmatch(response, span[1], run[-1][0]):
            break
        run.append(span)
    return [content for _, _, content in reversed(run)]


def extract_answer(response: str) -> str | None:
    r"""The final answer as text, or None: the last \boxed{...}; else the last <answer>...</answer>, of which the field
    "answer" where it is a JSON object; else what follows the last "answer is" or "Answer:"."""
    boxed = extract_boxed(response)
    if boxed:
        return ", ".join(boxed)
    tagged = ANSWER_TAGS.findall(response)
    if tagged:
        try:
            found = json.loads(tagged[-1])
        except ValueError:
            found = None
        return str(found["answer"]) if isinstance(found, dict) and "answer" in found else tagged[-1].strip()
    phrases = ANSWER_PHRASE.findall(response)
    return phrases[-1].strip().rstrip(".").strip() if phrases else None

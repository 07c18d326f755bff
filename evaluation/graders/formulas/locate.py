"""Where an answer stands in text without a box, tags or an announcement that stands alone.

math-verify's patterns say where ("the final answer is ...", "Answer: ...", the last formula or number of the text); what
stands there is read by this package and by nothing that evaluates text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.structure import Group, Term, Value, Words, read

_EXPONENT = re.compile(
    r"\s*(?:[eE][-+]?\d+|(?:\\times|\\cdot|[×x*·])\s*10\s*(?:\^\s*(?:\{\s*[-+]?\d+\s*\}|\(?[-+]?\d+\)?)|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))"
)
_FRACTION = re.compile(r"\s*/\s*\d+(?![\d.])")
# A sign before a number; stars and underlines that print it bold.
_PLUS = re.compile(r"(?<![\w)\]}$^.])\+(?=\$?\.?\d)")
_BOLD = re.compile(r"\*\*|(?<![A-Za-z0-9\\])__|__(?![A-Za-z0-9])")


def locate(text: str) -> Value | None:
    """The value that a text ends in or announces; None where there is none."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    text = _PLUS.sub("", _BOLD.sub(" ", text))
    for found in _candidates(text):
        value = read(found)
        if readable(value):
            return value
    return None


def readable(value: Value) -> bool:
    """Whether a value is more than text."""
    if isinstance(value, Words):
        return "\\text" in value.text
    if isinstance(value, Group):
        return all(readable(item) or isinstance(item, Words) for item in value.items)
    return not isinstance(value, Term) or value.number is not None or symbolic.expression(value.body) is not None


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[int, list[re.Pattern[str]]]]:
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig, get_extraction_regexes

    kinds = get_extraction_regexes([LatexExtractionConfig(boxed_match_priority=-1), ExprExtractionConfig()])
    ranked = sorted(
        ((priority, pattern) for patterns, _ in kinds for pattern, priority in patterns), key=lambda pair: pair[0]
    )
    return [(rank, [pattern for _, pattern in group]) for rank, group in groupby(ranked, key=lambda pair: pair[0])]


def _candidates(text: str) -> Iterator[str]:
    """What the patterns find: the most telling first, of equals the last in the text."""
    for _, patterns in _patterns():
        matches = [match for pattern in patterns for match in pattern.finditer(text)]
        for match in sorted(matches, key=lambda m: (m.end(), -m.start()), reverse=True):
            found = _content(match, text)
            if found:
                yield found


def _content(match: re.Match[str], text: str) -> str:
    groups = {name: value for name, value in match.groupdict().items() if value}
    formulas = [(name, value) for name, value in groups.items() if "_latex" in name]
    if formulas:
        parts = []
        for name, value in formulas:
            percent = f"{name.partition('_')[0]}_percent"
            parts.append(f"{value}\\%" if percent in groups else value)
        return " , ".join(parts)
    names = [name for name in groups if name.rstrip("123") in ("expr", "integer", "decimal")]
    if not names:
        return ""
    start, end = min(match.start(name) for name in names), max(match.end(name) for name in names)
    found = text[start:end]
    for more in (_EXPONENT, _FRACTION):
        behind = more.match(text, end)
        if behind is not None:
            return found + behind[0]
    return f"{found}%" if "percent" in groups else found.strip()

"""Where an answer stands in text without a box, tags or an announcement that stands alone.

math-verify's patterns say where ("the final answer is ...", "Answer: ...", the last formula or number of the text);
what stands there is read by this package and by nothing that evaluates text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from evaluation.graders.announcements import DENIABLE, STATED, any_of
from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.structure import Group, Term, Value, Words, read

_EXPONENT = re.compile(
    r"\s*(?:[eE][-+]?\d+|(?:\\times|\\cdot|[\u00d7x*·])\s*10\s*(?:\^\s*(?:\{\s*[-+]?\d+\s*\}|\(?[-+]?\d+\)?)|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))"
)
# What math-verify's patterns for numbers leave out behind one.
_BEHIND = (_EXPONENT, re.compile(r"\s*/\s*\d+(?![\d.])|:\d\d(?:\s*[ap]\.?m\b\.?)?|_\{?\w{1,3}\}?"))
_DENIED = re.compile(rf"(?i)\banswer\s+(?={any_of(DENIABLE)}\s+not\b)")
_ANNOUNCED = re.compile(rf"(?i:\banswer(?:\s+{any_of(STATED)}\b(?!\s+not\b)\s*:?|\s*:))\s*")
# Where the words behind an announced formula begin.
_PROSE = re.compile(
    r"[,;.]\s|[.,;]?\s+\(?(?:because|since|as|so|which|for|in|that|where|when|with|if|by|per|i\.e|I)\b|\.?$"
)
_WORD = re.compile(r"(?<!\\)\b(?!sqrt|sin|cos|tan|log|ln|pi|and|or|infinity)[A-Za-z]{2,}")
_SUFFIX = re.compile(r"(?:^|\s)(?=[(\[\\]|[A-Za-z]\b)")
SHORT = 80
# A sign before a number; stars and underlines that print it bold.
_PLUS = re.compile(r"(?<![\w)\]}$^.])\+(?=\$?\.?\d)")
_BOLD = re.compile(r"\*\*|(?<![A-Za-z0-9\\])__|__(?![A-Za-z0-9])")


def locate(text: str) -> Value | None:
    """The value that a text ends in or announces; None where there is none."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    text = _DENIED.sub("", _PLUS.sub("", _BOLD.sub(" ", text)))
    for found in (*_pure(text), *_candidates(text)):
        value = read(found)
        if readable(value):
            return value
    return None


def announced_words(text: str) -> Iterator[str]:
    """What follows the last announcement, as words; the whole of a short text."""
    text = _BOLD.sub(" ", text).strip()
    rest = _announced(text)
    if rest:
        yield rest.rstrip(".")
        yield rest[: match.start()] if (match := _PROSE.search(rest)) else rest
    elif len(text) <= SHORT:
        yield text


def _announced(text: str) -> str:
    """The line behind the last announcement of an answer."""
    found = list(_ANNOUNCED.finditer(text))
    return text[found[-1].end() :].partition("\n")[0].strip() if found else ""


def _pure(text: str) -> Iterator[str]:
    """Formulas without delimiters: announced, behind the words of the last line, or all that the text is."""
    rest = _announced(text)
    if rest:
        match = _PROSE.search(rest)
        for found in (rest, rest[: match.start()] if match else ""):
            if _is_formula(found):
                yield found
        return
    line = text.strip().rpartition("\n")[2].strip()
    if len(line) <= SHORT and line == text.strip() and "=" in line and _is_formula(line):
        yield line
        return
    line = line[-SHORT:]
    for start in _SUFFIX.finditer(line):
        suffix = line[start.end() :]
        if re.search(r"[\\\[(^]", suffix) and _is_formula(suffix):
            yield suffix
            return


def _is_formula(text: str) -> bool:
    """Whether a text is a formula and nothing else, and one that a pattern for numbers would cut."""
    text = text.strip().rstrip(".")
    if not text or "$" in text or _WORD.search(re.sub(r"\\(?:text|mathrm|operatorname)\{[^{}]*\}", "", text)):
        return False
    return readable(read(text)) and not isinstance(read(text), Words)


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
    for more in _BEHIND:
        behind = more.match(text, end)
        if behind is not None:
            return found + behind[0]
    return f"{found}%" if "percent" in groups else found.strip()

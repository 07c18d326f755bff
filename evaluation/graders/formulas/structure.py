"""The structure of a formula: lists, tuples, intervals, sets, relations, ratios and matrices around single terms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from evaluation.graders.formulas.clean import AND, OR, clean, closing, folded
from evaluation.graders.formulas.scalars import Scalar, scalar, unit_of


@dataclass(frozen=True)
class Term:
    """One number or expression. body: its cleaned text without the unit; number: where it is a single number."""

    text: str
    body: str
    unit: str
    number: Scalar | None


@dataclass(frozen=True)
class Words:
    """Prose. text: as it was cleaned; marked: inside of \\text{...}."""

    text: str
    marked: bool


@dataclass(frozen=True)
class Group:
    """Values in brackets ("(" ")", "[" ")", "\\{" "\\}", ...) or, without brackets, in a row.

    joint: what parts them: ",", ";", the sign for and, the one for or.
    """

    text: str
    opened: str
    closed: str
    items: tuple[Value, ...]
    joint: str = ","


@dataclass(frozen=True)
class Relation:
    """sides[0] signs[0] sides[1] ...; signs: = < > \\le \\ge \\ne \\approx \\in \\notin."""

    text: str
    sides: tuple[Value, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class SetTerm:
    """A union, intersection or difference of sets. sign: \\cup, \\cap or \\setminus."""

    text: str
    sign: str
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Builder:
    """{variable in domain | conditions}."""

    text: str
    variable: str
    domain: Value | None
    conditions: tuple[Value, ...]


@dataclass(frozen=True)
class Ratio:
    """a : b : c."""

    text: str
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Matrix:
    text: str
    rows: tuple[tuple[Value, ...], ...]


Value = Term | Words | Group | Relation | SetTerm | Builder | Ratio | Matrix

# Characters; the longest reference of public data sets has some hundreds.
LONGEST = 20_000
_SIGNS = re.compile(r"\\(?:le|ge|ne|approx|in|notin)(?![A-Za-z])|<|>|=")
_SET_SIGNS = ("\\cup", "\\cap", "\\setminus")
_BUILDER = re.compile(r"\s*([A-Za-z])\s*(?:\\in\s+([^|:]*?))?\s*(?:\\mid(?![A-Za-z])|:|\|)(.*)", re.DOTALL)
_PAIRS = {"(": ")]", "[": ")]", "\\{": ("\\}",), "\\langle": ("\\rangle",), "]": "[]", "{": "}"}
_WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019.-]*(?:[ -]+[A-Za-z'\u2019.-]+)*")
_LEAD = re.compile(r"(?:\\text\{[^{}]*\}\s*)+(?=[^\s^_=<>\\}]|\\(?!text|le|ge|ne|in))")
_SAYS = re.compile(
    r"\b(?:is|are|be|equals?|answer|value|total|about|approximately|exactly|x)\b\s*:?\s*\}\s*$|[:=]\s*\}\s*$"
)


@lru_cache(maxsize=8192)
def read(text: str) -> Value:
    """The structure of a formula as it was written; a text beyond any answer's length is only text."""
    return structure(clean(text)) if len(text) <= LONGEST else Words(text, False)


def structure(text: str) -> Value:
    """The structure of a cleaned formula."""
    text = text.strip()
    lead = _LEAD.match(text)
    if lead is not None and _SAYS.search(lead[0].strip()):
        text = text[lead.end() :].strip()
    whole = _term(text)
    if whole.number is not None:
        return whole
    words = _words(text)
    if words is not None:
        return words
    for reader in (_list, _relation, _sets, _ratio, _bracketed, _matrix, _plus_minus):
        found = reader(text)
        if found is not None:
            return found
    return whole


def _term(text: str) -> Term:
    number = scalar(text)
    if number is not None:
        return Term(text, text, "", number)
    body, unit = unit_of(text)
    return Term(text, body, unit, scalar(body))


def _words(text: str) -> Words | None:
    """Prose; letters of a product ("abc") are not, words of three letters and more are."""
    parts = re.findall(r"\\text\{([^{}]*)\}", text)
    if parts:
        rest = re.sub(r"\\text\{[^{}]*\}", " ", text)
        if not re.search(r"[\d\\=<>+|]", rest) and not any(mark in rest for mark in (AND, OR, ",", ";", "_", "^")):
            return Words(text, True)
        return None
    if text == "":
        return Words(text, False)
    if (_WORD.fullmatch(text) and max(map(len, re.findall(r"[A-Za-z]+", text))) >= 3) or folded(text) in ("no", "up"):
        return Words(text, False)
    return None


def split(text: str, marks: Sequence[str]) -> list[str]:
    """The parts of a text between marks that stand outside of brackets."""
    return [part for part, _ in _pieces(text, marks)]


def _pieces(text: str, marks: Sequence[str]) -> list[tuple[str, str]]:
    """(part, the mark behind it) of a text; marks are found outside of brackets and environments."""
    found, depth, start, index = [], 0, 0, 0
    while index < len(text):
        if text.startswith(("\\begin", "\\langle"), index):
            depth += 1
            index += 6
            continue
        if text.startswith(("\\end", "\\rangle"), index):
            depth -= 1
            index += 4
            continue
        if text[index] == "\\" and index + 1 < len(text) and text[index + 1] in "{}":
            depth += 1 if text[index + 1] == "{" else -1
            index += 2
            continue
        if text[index] in "([{":
            depth += 1
        elif text[index] in ")]}":
            depth -= 1
        elif depth == 0:
            mark = next((m for m in marks if text.startswith(m, index) and not _longer(text, index, m)), None)
            if mark is not None:
                found.append((text[start:index].strip(), mark))
                index += len(mark)
                start = index
                continue
        index += 1
    return [*found, (text[start:].strip(), "")]


def _longer(text: str, index: int, mark: str) -> bool:
    """Whether a command of which `mark` is the beginning stands there: \\int is not \\in."""
    end = index + len(mark)
    return mark[0] == "\\" and mark[-1].isalpha() and end < len(text) and text[end].isalpha()


def _list(text: str) -> Group | None:
    if len(split(text, (";",))) > 1:
        return _row(text, (";",), ";")
    # "p = 5, q = 2 and p = 7, q = 2": groups of the same length. "19, 46, and 82", "x = 1, x = 2 or x = 3": one list.
    joined = [part for part in split(text, (AND, OR)) if part]
    if len(joined) > 1:
        sizes = {len([part for part in split(part, (",",)) if part]) for part in joined}
        if len(sizes) == 1 and sizes != {1} and all("=" in part for part in joined):
            return _row(text, (AND, OR), ";")
    marks = (AND, OR, ",")
    if re.search(r"\d,\d{3}(?!\d)", text) and re.search(r", ", text):
        marks = (AND, OR, ", ")  # 1,234, 5,678
    used = {mark for _, mark in _pieces(text, marks)} - {""}
    if not used:
        return None
    return _row(text, marks, OR if OR in used else AND if AND in used else ",")


def _row(text: str, marks: Sequence[str], joint: str) -> Group | None:
    parts = [part for part in split(text, marks) if part]
    if not parts:
        return None
    return Group(text, "", "", tuple(structure(part) for part in parts), joint)


def _relation(text: str) -> Relation | None:
    marks = ("\\le", "\\ge", "\\ne", "\\approx", "\\notin", "\\in", "<", ">", "=")
    pieces = _pieces(text, marks)
    if len(pieces) < 2:
        return None
    if not pieces[0][0]:  # "= 5"
        pieces = pieces[1:]
        if len(pieces) == 1:
            return None if not pieces[0][0] else Relation(text, (structure(pieces[0][0]),), ())
    if any(not part for part, _ in pieces):
        return None
    return Relation(text, tuple(structure(part) for part, _ in pieces), tuple(mark for _, mark in pieces[:-1]))


def _sets(text: str) -> SetTerm | None:
    for sign in ("\\setminus", "\\cup", "\\cap"):
        parts = split(text, (sign,))
        if len(parts) > 1 and all(parts):
            return SetTerm(text, sign, tuple(structure(part) for part in parts))
    match = re.fullmatch(r"(\\mathbb\{[RCZNQ]\})\s*-\s*(\\\{.*\\\})", text)
    return SetTerm(text, "\\setminus", (structure(match[1]), structure(match[2]))) if match else None


def _ratio(text: str) -> Ratio | None:
    parts = split(text, (":",))
    return Ratio(text, tuple(structure(part) for part in parts)) if len(parts) > 1 and all(parts) else None


def _bracketed(text: str) -> Value | None:
    opened = next((mark for mark in ("\\{", "\\langle", "(", "[", "]", "{") if text.startswith(mark)), None)
    if opened is None:
        return None
    closed = next((mark for mark in _PAIRS[opened] if text.endswith(mark)), None)
    if closed is None or len(text) < len(opened) + len(closed):
        return None
    inner = text[len(opened) : -len(closed)]
    if opened == "\\{":
        end = closing(text, 0)
        if end != len(text) - 1:
            return None
        built = _BUILDER.fullmatch(inner)
        if built is not None and _SIGNS.search(built[3]):
            domain = structure(built[2]) if built[2] else None
            found = structure(built[3])
            conditions = found.items if isinstance(found, Group) and not found.opened else (found,)
            return Builder(text, built[1], domain, conditions)
    elif opened != "\\langle" and opened != "]" and closing(text, 0) != len(text) - 1:
        return None
    if not inner.strip():
        return Group(text, opened, closed, ())
    content = structure(inner)
    if isinstance(content, Group) and not content.opened:
        return Group(text, opened, closed, content.items, content.joint)
    if opened == "]":
        return None
    if opened == "(" or opened == "{":
        return content
    return Group(text, opened, closed, (content,))


def _matrix(text: str) -> Matrix | None:
    match = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text, re.DOTALL)
    if match is None or "\\begin" in match[1]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[1].replace("\\hline", "")) if row.strip()]
    return Matrix(text, tuple(tuple(structure(cell) for cell in row.split("&")) for row in rows))


def _plus_minus(text: str) -> Group | None:
    """1 \\pm \\sqrt{5} as both values."""
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return None
    signs = []
    for plus, minus in (("+", "-"), ("-", "+")):
        one = re.sub(r"\\pm(?![A-Za-z])", plus, text)
        signs.append(re.sub(r"\\mp(?![A-Za-z])", minus, one).strip())
    return Group(text, "", "", tuple(structure(part) for part in signs))


def spread(value: Value) -> tuple[Value, ...]:
    """The values of a row, rows within it (1 \\pm 2) spread; one value as a row of one."""
    if isinstance(value, Group) and not value.opened and value.joint != ";":
        return tuple(one for item in value.items for one in spread(item))
    return (value,)

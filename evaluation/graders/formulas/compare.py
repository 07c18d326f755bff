"""Whether an answer's value is the reference's."""

from __future__ import annotations

import re
from typing import Any

from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.clean import folded
from evaluation.graders.formulas.sets import as_set, describes_set, equal_sets
from evaluation.graders.formulas.structure import (
    Builder,
    Group,
    Matrix,
    Ratio,
    Relation,
    SetTerm,
    Term,
    Value,
    Words,
    spread,
    structure,
)
from evaluation.graders.formulas.terms import equal_terms, parts_of

_DECIMAL_COMMA = re.compile(r"([-+]?)(?:(\d+),(\d\d)|(0),(\d+))")
_SYMBOL = (
    r"(?:[kcmMGnpµ]?(?:m|s|g|L|l|N|J|W|V|A|K|C|F|T|H|S|Hz|Pa|eV|mol|rad)|h|hr|min|yr|AU|pc|atm|M)"
    r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
)
_SYMBOLS = rf"{_SYMBOL}(?:\s*(?:/|\\cdot|\s)\s*{_SYMBOL})*"
_LETTER_UNIT = re.compile(rf"(.*\d\}}?)(?: {_SYMBOLS}| ?\\frac\{{{_SYMBOLS}\}}\{{{_SYMBOLS}\}})")


def equal(reference: Value, found: Value) -> bool:
    """Whether `found` answers as `reference` does; names and units that only one of them writes do not count."""
    if folded(reference.text) == folded(found.text) and _same_text(reference, found):
        return True
    if isinstance(reference, Words) or isinstance(found, Words):
        return _equal_words(reference, found)
    if isinstance(reference, Relation) or isinstance(found, Relation):
        return _equal_relations(reference, found)
    if describes_set(reference) or describes_set(found):
        if _same_sets(_united(reference, found), _united(found, reference)):
            return True
        if isinstance(reference, SetTerm | Builder) or isinstance(found, SetTerm | Builder):
            return False
    if isinstance(reference, Matrix) or isinstance(found, Matrix):
        return _equal_matrices(reference, found)
    if isinstance(reference, Ratio) or isinstance(found, Ratio):
        return _equal_ratios(reference, found)
    if isinstance(reference, Group) or isinstance(found, Group):
        return _equal_groups(reference, found) or _equal_readings(reference, found)
    assert isinstance(reference, Term) and isinstance(found, Term)
    return equal_terms(reference, found) or _equal_readings(reference, found)


def _same_sets(reference: Value, found: Value) -> bool:
    if not describes_set(reference) and not describes_set(found):
        return False
    sets = as_set(reference), as_set(found)
    return sets[0] is not None and sets[1] is not None and equal_sets(sets[0], sets[1])


def _united(value: Value, other: Value) -> Value:
    """Intervals in a row, "(0, 1) and (2, 3)", as their union where the other side writes one."""
    if not isinstance(value, Group) or value.opened or len(value.items) < 2:
        return value
    united = isinstance(other, SetTerm) and other.sign == "\\cup" and all(map(describes_set, value.items))
    return SetTerm(value.text, "\\cup", value.items) if united else value


def _same_text(reference: Value, found: Value) -> bool:
    """Folding takes brackets and spaces away, which matter to values: the same text is also the same without it."""
    if isinstance(reference, Words) and isinstance(found, Words):
        return True
    return _close_up(reference.text) == _close_up(found.text)


def _close_up(text: str) -> str:
    """Without spaces that part nothing; "2 2/3" is not "22/3"."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)


def _equal_words(reference: Value, found: Value) -> bool:
    if isinstance(reference, Group) or isinstance(found, Group):
        return _equal_groups(reference, found)
    texts = [folded(value.text) for value in (reference, found)]
    if isinstance(reference, Relation) and not isinstance(found, Relation):
        return equal(reference.sides[-1], found)
    if isinstance(found, Relation) and not isinstance(reference, Relation):
        return equal(reference, found.sides[-1])
    return texts[0] == texts[1] != ""


# --- readings


def _equal_readings(reference: Value, found: Value) -> bool:
    """What else a text may be: 1,22 a decimal, 32,349 two numbers, "5 m" a length."""
    for one, other in ((reference, found), (found, reference)):
        for reading in _readings(one, other):
            if equal(reading, found) if one is reference else equal(reference, reading):
                return True
    return False


def _readings(value: Value, other: Value) -> list[Value]:
    comma = _DECIMAL_COMMA.fullmatch(value.text.replace(" ", "")) if isinstance(value, Group) else None
    if comma is not None and isinstance(other, Term):
        return [structure(value.text.replace(",", "."))]
    if isinstance(value, Term) and value.number is not None and isinstance(other, Group) and "," in value.text:
        parts = value.text.split(",")
        if len(parts) > 1 and not any(len(part) > 1 and part.startswith("0") for part in parts):
            return [Group(value.text, "", "", tuple(structure(part) for part in parts))]
    if isinstance(value, Term) and value.number is None and isinstance(other, Term) and other.number is not None:
        letter = _LETTER_UNIT.fullmatch(value.text)
        if letter is not None:
            return [structure(letter[1])]
    return []


# --- relations


def _name_first(value: Value) -> Value:
    """7 = x as x = 7."""
    if not isinstance(value, Relation) or value.signs != ("=",):
        return value
    number, name = value.sides
    if not re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", name.text) or not _constant(number):
        return value
    return Relation(value.text, (name, number), value.signs)


def _equal_relations(reference: Value, found: Value) -> bool:
    reference, found = _name_first(reference), _name_first(found)
    if isinstance(reference, Relation) and isinstance(found, Relation):
        return _both_relations(reference, found)
    if isinstance(reference, Relation):
        if _names(reference, of_reference=True):
            return equal(_meant(reference), found)
        return _same_sets(reference, found)
    assert isinstance(found, Relation)
    if _names(found, of_reference=False):
        return equal(reference, _meant(found))
    return _same_sets(reference, found)


def _meant(relation: Relation) -> Value:
    """The value of "x = 5", "x = 2 + 3 = 5", "x = 1/3 \\approx 0.33"."""
    sides = list(relation.sides)
    signs = list(relation.signs)
    while signs and signs[-1] == "\\approx" and (len(signs) > 1 or _constant(sides[0])):
        sides.pop()
        signs.pop()
    return sides[-1]


def _constant(value: Value) -> bool:
    """Whether a value is a number, however it is written."""
    if not isinstance(value, Term):
        return False
    found = parts_of(value)[0]
    return found is not None and not found.free_symbols


def _names(relation: Relation, of_reference: bool) -> bool:
    """Whether a relation only names a value, "x = 5", "f(2) = 3", "x \\in S"; an equation to be solved does not."""
    if not relation.signs:
        return True
    if any(sign not in ("=", "\\approx", "\\in") for sign in relation.signs):
        return False
    if relation.signs[0] == "\\approx":
        return True
    named = any(_is_name(side, of_reference) for side in relation.sides[:-1])
    return named or all(_constant(side) for side in relation.sides)


def _is_name(value: Value, of_reference: bool) -> bool:
    if isinstance(value, Words):
        return True
    if isinstance(value, Group):
        return bool(value.items) and all(_is_name(item, True) for item in value.items)
    if isinstance(value, Ratio):
        return all(_is_name(part, True) for part in value.parts)
    if not isinstance(value, Term) or value.number is not None:
        # 6 * 7 = 42: what was computed, then the value.
        return isinstance(value, Term) and not of_reference
    text = value.text
    # Subscripts, what a function is of and what stands between bars are part of the name.
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|\\?\w)", "", text)
    bare = re.sub(r"(?<=[A-Za-z}])'*\s*\([^()]*\)", "", bare)
    bare = re.sub(r"\|[^|]*\|", "N", bare)
    bare = re.sub(r"\\(?:angle|triangle|overline|text|operatorname|mathbb|vec|hat|measuredangle|Delta)", "", bare)
    if of_reference:
        bare = re.sub(r"\\frac\{([A-Za-z\s]*)\}\{([A-Za-z\s]*)\}", r"\1\2", bare)
        return not re.search(r"\d|\\(?:frac|sqrt|sin|cos|tan|log|ln)", bare)
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", bare)) and not re.search(
        r"\\(?:alpha|beta|gamma|theta)", bare
    ):
        return True
    # a^2 + b^2 = 25 names a value, x^2 - 12 = 0, 3x + 4y = 14 and 2x = 10 are equations.
    bare = re.sub(r"\^\s*(?:\{\s*-?\d+\s*\}|\d)", "", bare)
    return not re.search(r"\d", bare)


def _both_relations(reference: Relation, found: Relation) -> bool:
    if _names(reference, True) and _names(found, True):
        first, second = reference.sides[0], found.sides[0]
        values = _meant(reference), _meant(found)
        if len(reference.sides) > 1 and len(found.sides) > 1 and _same_name(first, second) and equal(*values):
            return True
        if len(reference.sides) < 2 or len(found.sides) < 2:
            return equal(*values)
        if all(_constant(side) for side in (*reference.sides, *found.sides)):
            return equal(*values)
        if "\\in" in (*reference.signs, *found.signs) and equal(first, second):
            return equal(*values)
    expressions = [_difference(relation) for relation in (reference, found)]
    if expressions[0] is not None and expressions[1] is not None:
        return _same_relation(reference.signs[0], expressions[0], found.signs[0], expressions[1])
    if len(reference.signs) == len(found.signs):
        pairs = list(zip(reference.sides, found.sides, strict=True))
        if reference.signs == found.signs and all(equal(a, b) for a, b in pairs):
            return True
        turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
        back = list(zip(reference.sides, reversed(found.sides), strict=True))
        if [turned.get(s, s) for s in reversed(found.signs)] == list(reference.signs) and all(
            equal(a, b) for a, b in back
        ):
            return True
    return _same_sets(reference, found)


def _same_name(first: Value, second: Value) -> bool:
    """W(x) and W(n) are one function."""
    if equal(first, second):
        return True
    called = [re.fullmatch(r"([A-Za-z])\s*\([a-z]\)", value.text) for value in (first, second)]
    return called[0] is not None and called[1] is not None and called[0][1] == called[1][1]


def _difference(relation: Relation) -> Any:
    """left - right of a relation of two expressions."""
    if len(relation.sides) != 2 or relation.signs[0] in ("\\in", "\\notin", "\\approx"):
        return None
    import sympy

    sides: list[Any] = [parts_of(side)[0] if isinstance(side, Term) else None for side in relation.sides]
    if any(side is None or isinstance(side, sympy.MatrixBase) or side.has(sympy.oo) for side in sides):
        return None
    return sides[0] - sides[1]


def _same_relation(sign: str, first: Any, other: str, second: Any) -> bool:
    import sympy

    turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
    if first.free_symbols != second.free_symbols:
        return False
    factor = symbolic.proportional(first, second)
    if factor is None and sign in ("=", "\\ne") and sign == other:
        tops = [sympy.fraction(sympy.together(symbolic.evaluated(value)))[0] for value in (first, second)]
        factor = symbolic.proportional(*tops)
    if factor is None:
        return False
    if sign in ("=", "\\ne"):
        return sign == other
    return sign == (other if factor > 0 else turned.get(other, other))


# --- several values


def _equal_groups(reference: Value, found: Value) -> bool:
    reference, found = _alone(reference), _alone(found)
    expected, given = (_items(value) for value in (reference, found))
    ordered = any(_is_tuple(value) for value in (reference, found))
    brackets = [_ends(value) for value in (reference, found)]
    # [0, 1) is not (0, 1), nor the set of 0 and 1.
    if any("[" in ends or "]" in ends for ends in brackets) and brackets[0] != brackets[1] and len(expected) == 2:
        return False
    if ordered and isinstance(reference, Group) and reference.joint == ";" != "" and not _is_tuple(found):
        ordered = reference.opened != ""
    if ordered:
        return len(expected) == len(given) and all(equal(a, b) for a, b in zip(expected, given, strict=True))
    names = [_name(value) for value in expected]
    if all(names) and len(set(names)) == len(names) > 1 and not any(_name(value) for value in given):
        # x = 1, y = 2 against 1, 2.
        return len(expected) == len(given) and all(equal(a, b) for a, b in zip(expected, given, strict=True))
    return _matched(_distinct(expected), _distinct(given))


def _alone(value: Value) -> Value:
    """The tuple of a set that holds nothing else."""
    if not isinstance(value, Group) or value.opened != "\\{" or len(value.items) != 1:
        return value
    return value.items[0] if _is_tuple(value.items[0]) else value


def _items(value: Value) -> tuple[Value, ...]:
    if not isinstance(value, Group):
        return (value,)
    if value.joint == ";" and not value.opened:
        # Rows within rows are tuples: "p = 5, q = 2; p = 7, q = 2".
        return tuple(
            Group(item.text, "(", ")", item.items) if isinstance(item, Group) and not item.opened else item
            for item in value.items
        )
    return tuple(one for item in value.items for one in spread(item))


def _is_tuple(value: Value) -> bool:
    return isinstance(value, Group) and value.opened in ("(", "\\langle") and len(value.items) > 1


def _ends(value: Value) -> str:
    if not isinstance(value, Group) or len(value.items) != 2 or value.opened in ("\\{", "{"):
        return ""
    # ]0, 1[ is (0, 1).
    return {"]": "("}.get(value.opened, value.opened) + {"[": ")"}.get(value.closed, value.closed)


def _name(value: Value) -> str:
    """What a value is called, x_1 and x_2 alike."""
    if isinstance(value, Relation) and value.signs[:1] == ("=",) and _names(value, True):
        return re.sub(r"_.*", "", value.sides[0].text).strip()
    return ""


def _distinct(values: tuple[Value, ...]) -> list[Value]:
    kept: list[Value] = []
    for value in values:
        if not any(equal(value, other) for other in kept):
            kept.append(value)
    return kept


def _matched(expected: list[Value], given: list[Value]) -> bool:
    if len(expected) != len(given):
        return False
    rest = list(given)
    for value in expected:
        index = next((i for i, other in enumerate(rest) if equal(value, other)), None)
        if index is None:
            return False
        rest.pop(index)
    return True


def _equal_matrices(reference: Value, found: Value) -> bool:
    if isinstance(reference, Matrix) and isinstance(found, Matrix):
        shapes = [[len(row) for row in matrix.rows] for matrix in (reference, found)]
        return shapes[0] == shapes[1] and all(
            equal(a, b) for rows in zip(reference.rows, found.rows, strict=True) for a, b in zip(*rows, strict=True)
        )
    matrix, other = (reference, found) if isinstance(reference, Matrix) else (found, reference)
    assert isinstance(matrix, Matrix)
    if isinstance(other, Term):
        values = symbolic.expression(matrix.text), symbolic.expression(other.body)
        return values[0] is not None and values[1] is not None and symbolic.same(*(value.doit() for value in values))
    if not isinstance(other, Group) or other.opened not in ("(", "\\langle", "["):
        return False
    # A column or a row against (1, 2, 3).
    flat = [cell for row in matrix.rows for cell in row]
    if len(matrix.rows) != 1 and any(len(row) != 1 for row in matrix.rows):
        return False
    items = other.items
    return len(flat) == len(items) and all(equal(a, b) for a, b in zip(flat, items, strict=True))


def _equal_ratios(reference: Value, found: Value) -> bool:
    if isinstance(reference, Ratio) and isinstance(found, Ratio):
        first, second = reference.parts, found.parts
        if len(first) != len(second):
            return False
        if any(isinstance(part, Term) and part.number and part.number.value == 0 for part in (*first, *second)):
            return all(equal(a, b) for a, b in zip(first, second, strict=True))  # 12:00
        # a : b is c : d if a d = b c.
        return all(_equal_products(first[0], second[i], second[0], first[i]) for i in range(1, len(first)))
    ratio, other = (reference, found) if isinstance(reference, Ratio) else (found, reference)
    assert isinstance(ratio, Ratio)
    if len(ratio.parts) != 2 or not isinstance(other, Term):
        return False
    quotient = structure(f"\\frac{{{ratio.parts[0].text}}}{{{ratio.parts[1].text}}}")
    return equal(quotient, other)


def _equal_products(a: Value, b: Value, c: Value, d: Value) -> bool:
    found: list[Any] = [parts_of(value)[0] if isinstance(value, Term) else None for value in (a, b, c, d)]
    if any(value is None for value in found):
        return False
    return symbolic.same(found[0] * found[1], found[2] * found[3])

"""Sets of real numbers, however they are given: intervals, unions, inequalities, set-builder notation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.clean import AND, OR
from evaluation.graders.formulas.structure import Builder, Group, Relation, SetTerm, Term, Value, spread


def describes_set(value: Value) -> bool:
    """Whether a value is written as a set of more than a few numbers."""
    if isinstance(value, SetTerm | Builder):
        return True
    if isinstance(value, Relation):
        return any(sign in ("<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\notin") for sign in value.signs)
    if isinstance(value, Group):
        if value.opened in ("", "(") and value.items and all(_condition(item) for item in value.items):
            return True
        return _interval(value)
    return isinstance(value, Term) and (value.text == "\\emptyset" or value.text.startswith("\\mathbb{"))


def _condition(value: Value) -> bool:
    return isinstance(value, Relation) and describes_set(value)


def _interval(value: Group) -> bool:
    return len(value.items) == 2 and value.opened in ("(", "[", "]") and value.closed in (")", "]", "[")


def _signed(*marks: str) -> list[str]:
    """How the positive or the negative real numbers are written."""
    return [f"\\mathbb{{R}}{at}{mark}" for mark in marks for at in "^_"] + [
        f"\\mathbb{{R}}{at}{{{mark}}}" for mark in marks for at in "^_"
    ]


@lru_cache(maxsize=2048)
def as_set(value: Value) -> Any:
    """The sympy set of a value; None where it is no set of real numbers."""
    import sympy

    try:
        return _as_set(value)
    except (TypeError, ValueError, NotImplementedError, AttributeError, sympy.SympifyError):
        return None  # sympy cannot solve it


def _as_set(value: Value) -> Any:
    import sympy

    if isinstance(value, Term):
        named = {
            "\\emptyset": sympy.S.EmptySet, "\\mathbb{R}": sympy.S.Reals, "\\mathbb{Z}": sympy.S.Integers,
            "\\mathbb{N}": sympy.S.Naturals, "\\mathbb{Q}": sympy.S.Rationals,
            **dict.fromkeys(_signed("+", ">0"), sympy.Interval.open(0, sympy.oo)),
            **dict.fromkeys(_signed("-", "<0"), sympy.Interval.open(-sympy.oo, 0)),
            **dict.fromkeys(_signed("\\ge 0"), sympy.Interval(0, sympy.oo)),
            **dict.fromkeys(("\\mathbb{Z}^+", "\\mathbb{Z}^{+}", "\\mathbb{Z}_{>0}"), sympy.S.Naturals),
        }  # fmt: skip
        return named.get(value.text)
    if isinstance(value, SetTerm):
        parts = [_as_set(part) for part in value.parts]
        if any(part is None for part in parts):
            return None
        if value.sign == "\\cup":
            return sympy.Union(*parts)
        if value.sign == "\\cap":
            return sympy.Intersection(*parts)
        found = parts[0]
        for part in parts[1:]:
            found = sympy.Complement(found, part)
        return found
    if isinstance(value, Builder):
        found = sympy.S.Reals if value.domain is None else _as_set(value.domain)
        conditions = [_solutions(condition, value.variable) for condition in value.conditions]
        if found is None or any(condition is None for condition in conditions):
            return None
        joined = sympy.Intersection(*conditions) if conditions else sympy.S.Reals
        if OR in value.text:
            joined = sympy.Union(*conditions)
        return sympy.Intersection(found, joined)
    if isinstance(value, Relation):
        return _solutions(value, None)
    if isinstance(value, Group):
        return _of_group(value)
    return None


def _of_group(value: Group) -> Any:
    import sympy

    if not value.opened and value.items and all(_condition(item) for item in value.items):
        variables = {variable for item in value.items for variable in _variables(item)}
        parts = [_solutions(item, None) for item in value.items]
        if len(variables) != 1 or any(part is None for part in parts):
            return None
        if value.joint == OR:
            return sympy.Union(*parts)
        if value.joint == AND or value.joint == ",":
            both = sympy.Intersection(*parts)
            # "x < -1, x > 1": what no number fulfils together was meant as either.
            return sympy.Union(*parts) if value.joint == "," and both is sympy.S.EmptySet else both
        return None
    if value.opened in ("\\{", "{"):
        elements = [_number(item) for one in value.items for item in spread(one)]
        return None if any(element is None for element in elements) else sympy.FiniteSet(*elements)
    if not _interval(value):
        return None
    low, high = (_number(item) for item in value.items)
    # (3, pi/2) is a point.
    if low is None or high is None or not bool(low < high):
        return None
    return sympy.Interval(low, high, left_open=value.opened != "[", right_open=value.closed != "]")


def _number(value: Value) -> Any:
    import sympy

    if not isinstance(value, Term):
        return None
    text = value.body.replace(" ", "")
    infinite = {"\\infty": sympy.oo, "+\\infty": sympy.oo, "-\\infty": -sympy.oo}
    if text in infinite:
        return infinite[text]
    if value.number is not None:
        return symbolic.to_sympy(value.number.value)
    found = symbolic.expression(value.body)
    if found is None or found.free_symbols or isinstance(found, sympy.MatrixBase):
        return None
    found = symbolic.evaluated(found)
    return found if found.is_real or found.is_infinite else None


def _variables(relation: Value) -> set[str]:
    if not isinstance(relation, Relation):
        return set()
    found = set()
    for side in relation.sides:
        if isinstance(side, Term) and _number(side) is None:
            expr = symbolic.expression(side.body)
            found |= {symbol.name for symbol in expr.free_symbols} if expr is not None else {side.text}
    return found


def _solutions(value: Value, variable: str | None) -> Any:
    """The numbers that fulfil a relation in one variable, or in one name: 0 < f(x) < 1."""
    import sympy

    if isinstance(value, Group) and not value.opened:
        return _of_group(value)
    if not isinstance(value, Relation) or not value.signs:
        return None
    if "\\in" in value.signs or "\\notin" in value.signs:
        if len(value.signs) != 1:
            return None
        found = _as_set(value.sides[1])
        return found if found is None or value.signs[0] == "\\in" else sympy.Complement(sympy.S.Reals, found)
    unknown = sympy.Symbol("x", real=True)
    sides = [_side(side, unknown) for side in value.sides]
    if any(side is None for side in sides) or not any(side.has(unknown) for side in sides):
        return None
    kinds = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "\\ne": sympy.Ne, "=": sympy.Eq}
    found = sympy.S.Reals
    for index, sign in enumerate(value.signs):
        if sign not in kinds:
            return None
        relation = kinds[sign](sides[index], sides[index + 1])
        if relation in (sympy.true, sympy.false):
            part = sympy.S.Reals if relation == sympy.true else sympy.S.EmptySet
        elif sides[index] == unknown or sides[index + 1] == unknown:
            part = _ray(sign, sides[index], sides[index + 1], unknown)
        else:
            part = sympy.solveset(relation, unknown, sympy.S.Reals)
        found = sympy.Intersection(found, part)
    return found


def _ray(sign: str, left: Any, right: Any, unknown: Any) -> Any:
    import sympy

    turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
    if right == unknown:
        left, right, sign = right, left, turned.get(sign, sign)
    if right.has(unknown):
        return sympy.solveset({"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "\\ne": sympy.Ne,
                               "=": sympy.Eq}[sign](left, right), unknown, sympy.S.Reals)  # fmt: skip
    if sign == "=":
        return sympy.FiniteSet(right)
    if sign == "\\ne":
        return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(right))
    if sign in (">", "\\ge"):
        return sympy.Interval(right, sympy.oo, left_open=sign == ">")
    return sympy.Interval(-sympy.oo, right, right_open=sign == "<")


def _side(value: Value, unknown: Any) -> Any:
    """A side as an expression in `unknown`; a name such as f(x) or a_1 counts as the variable."""
    import sympy

    number = _number(value)
    if number is not None:
        return number
    if not isinstance(value, Term):
        return None
    found = symbolic.expression(value.body)
    if found is None or isinstance(found, sympy.MatrixBase):
        return None
    from sympy.core.function import AppliedUndef

    if isinstance(found, AppliedUndef):
        return unknown
    if len(found.free_symbols) != 1:
        return None
    return symbolic.evaluated(found.xreplace({next(iter(found.free_symbols)): unknown}))


def equal_sets(first: Any, second: Any) -> bool:
    """Whether two sets of real numbers are the same, ends compared exactly."""
    if first == second:
        return True
    parts = [_parts(value) for value in (first, second)]
    if parts[0] is None or parts[1] is None:
        return False
    if len(parts[0]) != len(parts[1]):
        return False
    return all(
        a.left_open == b.left_open
        and a.right_open == b.right_open
        and (a.start == b.start or symbolic.same(a.start, b.start))
        and (a.end == b.end or symbolic.same(a.end, b.end))
        for a, b in zip(parts[0], parts[1], strict=True)
    )


def _parts(value: Any) -> list[Any] | None:
    """The intervals of a set, single numbers as closed ones, in order."""
    import sympy

    found = []
    for part in value.args if isinstance(value, sympy.Union) else (value,):
        if isinstance(part, sympy.Interval):
            found.append(part)
        elif isinstance(part, sympy.FiniteSet):
            found += [_Point(number, number) for number in part.args]
        else:
            return None
    return sorted(found, key=lambda interval: (float(interval.start.evalf()), float(interval.end.evalf())))


class _Point:
    """One number, as an interval that is closed."""

    left_open = right_open = False

    def __init__(self, start: Any, end: Any) -> None:
        self.start, self.end = start, end

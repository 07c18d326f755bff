"""Whether two single terms, numbers or expressions, are the same value."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.scalars import Scalar, ratio_of_units
from evaluation.graders.formulas.structure import Term

# A decimal of fewer places or digits is no rounding of an exact value.
PLACES, SIGNIFICANT = 6, 4
_DEGREES_INSIDE = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![A-Za-z]).*\d\s*°")


def equal_terms(reference: Term, found: Term) -> bool:
    factor = ratio_of_units(found.unit, reference.unit)
    if factor is None:
        return False
    if reference.number is not None and found.number is not None:
        return _equal_numbers(reference.number, found.number, factor)
    a, b = (parts_of(term) for term in (reference, found))
    if a[0] is None or b[0] is None:
        return False
    first, second = a[0], b[0]
    if factor != 1:
        second = second * symbolic.to_sympy(factor)
    return any(symbolic.same(x, y) for x, y in _scaled(first, a[1], second, b[1])) or _rounded(
        reference, found, first, second
    )


@lru_cache(maxsize=4096)
def parts_of(term: Term) -> tuple[Any, str]:
    """The expression of a term, and "%", "°" or "" for what stands behind it."""
    number = term.number
    if number is not None:
        return symbolic.to_sympy(number.value), "%" if number.percent else "°" if number.degrees else ""
    body, mark = term.body, ""
    if _DEGREES_INSIDE.search(body):
        body = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\\frac{\1\\pi}{180})", body)
    if body.endswith(("%", "°")):
        body, mark = body[:-1].strip(), body[-1]
    body = body.replace("°", "")
    return symbolic.expression(body), mark


def _scaled(first: Any, mark: str, second: Any, other: str) -> list[tuple[Any, Any]]:
    """10% is 10 and 0.1; 180° is 180 and pi."""
    import sympy

    pairs = [(first, second)]
    if mark != other:
        for sign, unit in (("%", sympy.Rational(1, 100)), ("°", sympy.pi / 180)):
            if mark == sign:
                pairs.append((first * unit, second))
            if other == sign:
                pairs.append((first, second * unit))
    return pairs


def _equal_numbers(reference: Scalar, found: Scalar, factor: Fraction) -> bool:
    if reference.clock and found.clock:
        return reference.value == found.value
    if reference.clock or found.clock:
        # 6 answers 6 p.m., as it does 6 cm.
        return reference.digits == found.digits != ""
    if reference.base is not None and found.base is None:
        # 2516 answers 2516_8: the question names the base.
        return reference.digits == found.digits
    value = found.value * factor
    if reference.value == value:
        return True
    if reference.percent != found.percent:
        percent, other = (reference.value, value) if reference.percent else (value, reference.value)
        if percent == 100 * other:
            return True
    if reference.degrees != found.degrees:
        return False
    return _rounds(reference, found, value) or _rounds(found, reference, reference.value)


def _rounds(exact: Scalar, decimal: Scalar, value: Fraction) -> bool:
    """Whether a decimal is a fraction, rounded: never an integer or another decimal."""
    if exact.places is not None or exact.digits or not _long(decimal):
        return False
    assert decimal.places is not None
    return exact.value.denominator != 1 and symbolic.rounds(exact.value, value, decimal.places)


def _long(number: Scalar) -> bool:
    return number.places is not None and number.places >= PLACES and number.significant >= SIGNIFICANT


def _rounded(reference: Term, found: Term, first: Any, second: Any) -> bool:
    for term, value in ((reference, second), (found, first)):
        if term.number is not None and _long(term.number) and not value.free_symbols:
            assert term.number.places is not None
            return symbolic.close(value, term.number.value, term.number.places)
    return False

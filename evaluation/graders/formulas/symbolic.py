"""Expressions, by math-verify's LaTeX parser, and whether two of them are the same.

No rounding decides: rational values are compared as fractions; other constants until they differ or a thousand digits
agree; functions at rational points, each of them a comparison of constants. The parser builds sympy objects from
tokens; text reaches no `sympify` and no `eval`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

# A whole number of more bits is not written out.
BITS = 1 << 18
DIGITS = 1_000
LONGEST = 2_000
# Of more bits before the point nothing is computed: such values are equal where they are written alike.
SIZE = 1e9
# Values of the variables where two functions are compared, for the first, second, ... variable by name.
_POINTS = (
    (Fraction(1009, 311), Fraction(-577, 101), Fraction(2003, 733), Fraction(-89, 97), Fraction(353, 1013)),
    (Fraction(-733, 211), Fraction(1361, 499), Fraction(-47, 131), Fraction(523, 59), Fraction(-1511, 401)),
    (Fraction(83, 619), Fraction(131, 907), Fraction(61, 1103), Fraction(151, 761), Fraction(211, 677)),
    (Fraction(7919, 13), Fraction(6101, 17), Fraction(9973, 19), Fraction(5003, 23), Fraction(8087, 29)),
    (Fraction(17, 7), Fraction(29, 11), Fraction(41, 13), Fraction(53, 17), Fraction(67, 19)),
    (Fraction(-5, 13), Fraction(-7, 17), Fraction(-11, 19), Fraction(-13, 23), Fraction(-17, 29)),
)
_UNREADABLE = re.compile(
    r"\d\s+\d"  # the parser adds "1 2"
    r"|\d\s*_"  # it drops the base of 12_7
    r"|__|[\"`@#?]|[A-Za-z_]\.\w*[A-Za-z]|\d\.[A-Za-z_]|[A-Za-z]\("  # a call: looked at again, f(x) is a formula
)


@lru_cache(maxsize=4096)
def expression(text: str) -> Any:
    """The sympy expression or matrix of a cleaned formula, its decimals exact; None where it is none."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import latex2sympy

    if not text or len(text) > LONGEST or _suspicious(text):
        return None
    try:
        found: Any = latex2sympy(_for_parser(text), is_real=True, normalization_config=None)
    except RecursionError:
        raise
    except Exception:  # the parser raises bare exceptions for what it cannot read
        return None
    if isinstance(found, sympy.MatrixExpr):
        try:
            found = found.doit().as_explicit()
        except (TypeError, ValueError, AttributeError):
            return None  # shapes that do not fit
    if not isinstance(found, sympy.Expr | sympy.MatrixBase):
        return None
    exact = {number: sympy.Rational(str(number)) for number in found.atoms(sympy.Float)}
    if exact:
        found = found.xreplace(exact)
    repeated: Any = found.atoms(sympy.Sum, sympy.Product)
    bound = {symbol for part in repeated for symbol in part.bound_symbols}
    imaginary = {s: sympy.I for s in found.free_symbols if str(s) == "i" and s not in bound}
    return found.xreplace(imaginary) if imaginary else found


def _suspicious(text: str) -> bool:
    for match in _UNREADABLE.finditer(text):
        if not re.fullmatch(r"[A-Za-z]\(", match[0]):
            return True
        before = text[: match.start()]
        # f(x) and a(b+c) are formulas, a call of a longer name is not.
        name = re.search(r"(?<!\\)[A-Za-z]{2,}$", before + match[0][0])
        if name is not None and not re.search(r"\\[A-Za-z]+$", before):
            return len(name[0]) > 3
    return False


def _for_parser(text: str) -> str:
    text = re.sub(r"\\text\{([^{}]*)\}", lambda m: "\\text{" + re.sub(r"[^A-Za-z]", "", m[1]) + "}", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    # An improper "mixed" number is a product.
    return re.sub(r"(?<=\d)\s*(?=\\frac\{(\d+)\}\{(\d+)\})", _product_if_improper(text), text)


def _product_if_improper(text: str):
    def replacement(match: re.Match[str]) -> str:
        above, below = int(match[1]), int(match[2])
        return " " if above < below else "\\cdot "

    return replacement


def rational(expr: Any) -> Fraction | None:
    """The exact value of an expression of rational numbers; None where it is none or not worth writing out."""
    import sympy

    if isinstance(expr, sympy.Rational):
        return Fraction(int(expr.p), int(expr.q))
    if not isinstance(expr, sympy.Basic) or expr.free_symbols or not expr.args:
        return None
    kind = expr.func
    known = (sympy.Add, sympy.Mul, sympy.Pow, sympy.factorial, sympy.binomial, sympy.Abs, sympy.floor, sympy.ceiling,
             sympy.UnevaluatedExpr, sympy.Max, sympy.Min)  # fmt: skip
    if not issubclass(kind, known):
        return None
    found = [rational(argument) for argument in expr.args]
    if any(value is None for value in found):
        return None
    values = [value for value in found if value is not None]
    return _apply(kind, values)


def _apply(kind: Any, values: list[Fraction]) -> Fraction | None:
    import math

    import sympy

    first = values[0]
    if issubclass(kind, sympy.Add):
        return sum(values, Fraction(0))
    if issubclass(kind, sympy.Mul):
        return None if sum(map(_bits, values)) > BITS else math.prod(values, start=Fraction(1))
    if issubclass(kind, sympy.Pow):
        exponent = values[1]
        if exponent.denominator != 1 or abs(exponent.numerator) * _bits(first) > BITS or (first == 0 and exponent < 0):
            return None
        return first**exponent.numerator
    if issubclass(kind, sympy.factorial):
        return Fraction(math.factorial(int(first))) if first.denominator == 1 and 0 <= first <= 10_000 else None
    if issubclass(kind, sympy.binomial):
        whole = all(value.denominator == 1 and 0 <= value <= 50_000 for value in values)
        return Fraction(math.comb(int(first), int(values[1]))) if whole else None
    if issubclass(kind, sympy.Abs):
        return abs(first)
    if issubclass(kind, sympy.floor):
        return Fraction(math.floor(first))
    if issubclass(kind, sympy.ceiling):
        return Fraction(math.ceil(first))
    if issubclass(kind, sympy.Max | sympy.Min):
        return max(values) if issubclass(kind, sympy.Max) else min(values)
    return first


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def to_sympy(value: Fraction) -> Any:
    import sympy

    return sympy.Rational(value.numerator, value.denominator)


def evaluated(expr: Any) -> Any:
    """An expression simplified as sympy does on construction; numbers too long to write out are left as they are."""
    return _evaluated(expr)[0]


def _evaluated(expr: Any) -> tuple[Any, bool]:
    """The expression, and whether it holds a number too long to write out."""
    import sympy

    if not isinstance(expr, sympy.Basic) or not expr.args:
        return expr, False
    value = rational(expr)
    if value is not None:
        return to_sympy(value), False
    if isinstance(expr, sympy.Sum | sympy.Product | sympy.Integral | sympy.Limit | sympy.Derivative):
        return expr.doit(), False
    kind: Any = expr.func
    parts = [_evaluated(argument) for argument in expr.args]
    arguments = [part for part, _ in parts]
    long = any(flag for _, flag in parts) or (
        expr.func in (sympy.Pow, sympy.factorial, sympy.binomial)
        and all(isinstance(argument, sympy.Rational) for argument in arguments)
        and (expr.func is not sympy.Pow or arguments[1].is_Integer)
        and arguments[0] != 0
    )
    if isinstance(expr, sympy.UnevaluatedExpr):
        return arguments[0], long
    return (kind(*arguments, evaluate=False) if long else kind(*arguments)), long


def same(first: Any, second: Any) -> bool:
    """Whether two expressions are equal wherever both are real."""
    import sympy

    if first == second:
        return True
    if isinstance(first, sympy.MatrixBase) or isinstance(second, sympy.MatrixBase):
        return _same_matrices(first, second)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if not symbols:
        return _same_constants(first, second)
    if _opaque(first) or _opaque(second):
        return bool(sympy.simplify(evaluated(first) - evaluated(second)) == 0)
    return _same_functions(first, second, symbols)


def _same_matrices(first: Any, second: Any) -> bool:
    import sympy

    if not (isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase)):
        return False
    return first.shape == second.shape and all(same(a, b) for a, b in zip(first.flat(), second.flat(), strict=True))


def _opaque(expr: Any) -> bool:
    import sympy
    from sympy.core.function import AppliedUndef

    return expr.has(AppliedUndef, sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit)


def _same_constants(first: Any, second: Any) -> bool:
    import sympy

    values = rational(first), rational(second)
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1]
    a, b = evaluated(first), evaluated(second)
    if a == b:
        return True
    infinite = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
    if any(value.has(*infinite) for value in (a, b)):
        return False
    # Each to forty correct digits: a value as small as 1/2006! keeps them.
    near = [_numeric(value, 40) for value in (a, b)]
    if near[0] is None or near[1] is None:
        return False
    size = max(abs(near[0]), abs(near[1]))
    if abs(near[0] - near[1]) > size * sympy.Float("1e-35"):
        return False
    from sympy.core.evalf import PrecisionExhausted

    difference = a - b
    if difference == 0:
        return True
    try:
        return bool(difference.evalf(5, maxn=DIGITS, strict=True) == 0)
    except PrecisionExhausted:
        return True


def _numeric(value: Any, digits: int) -> Any:
    """A value to so many digits; None where it is none, or one of such a size that no digits of it can be found."""
    import sympy

    if _size(value) > SIZE:
        return None
    found = value.evalf(digits)
    finite = found.is_number and not found.has(sympy.nan, sympy.zoo)
    return found if isinstance(found, sympy.Number) or finite else None


def _size(expr: Any) -> float:
    """Bits that the largest part of a constant may have before its point; without computing any of them."""
    import math

    import sympy

    if isinstance(expr, sympy.Rational):
        return float(max(int(expr.p).bit_length(), int(expr.q).bit_length()))
    if not isinstance(expr, sympy.Basic) or not expr.args:
        return 4.0
    sizes = [_size(argument) for argument in expr.args]
    largest = max(sizes)
    if largest > SIZE:
        return math.inf
    if isinstance(expr, sympy.Pow):
        exponent: Any = expr.args[1]
        power = abs(exponent.p / exponent.q) if isinstance(exponent, sympy.Rational) and sizes[1] < 64 else None
        return max(largest, sizes[0] * (_two_to(sizes[1]) if power is None else power))
    if isinstance(expr, sympy.exp | sympy.sinh | sympy.cosh):
        return 2 * _two_to(largest)
    if isinstance(expr, sympy.factorial | sympy.binomial | sympy.gamma):
        return largest * _two_to(largest)
    return sum(sizes) if isinstance(expr, sympy.Add | sympy.Mul) else largest


def _two_to(bits: float) -> float:
    return 2.0**bits if bits < 64 else float("inf")


def _points(symbols: list[Any]) -> Iterator[dict[Any, Any]]:
    for row in _POINTS:
        yield {symbol: to_sympy(row[index % len(row)] + index // len(row)) for index, symbol in enumerate(symbols)}


def _same_functions(first: Any, second: Any, symbols: list[Any]) -> bool:
    """Equal at points with positive and negative, large and small values; ones where either is not real do not count,
    unless there is none where both are."""
    real, other = 0, 0
    for point in _points(symbols):
        values = [value.xreplace(point) for value in (first, second)]
        exact = [rational(value) for value in values]
        if exact[0] is not None and exact[1] is not None:
            if exact[0] != exact[1]:
                return False
            real += 1
            continue
        values = [evaluated(value) for value in values]
        near = [_numeric(value, 30) for value in values]
        if near[0] is None or near[1] is None:
            continue
        if not all(value.is_real for value in near):
            other += _same_constants(*values)
            if not real and not _same_constants(*values) and not any(value.is_real for value in near):
                other -= 10
            continue
        if not _same_constants(*values):
            return False
        real += 1
    return real >= 2 or (real >= 1 and other >= 0) or (real == 0 and other >= 2)


def proportional(first: Any, second: Any) -> int | None:
    """The sign of the constant c with first = c second, for functions that are not zero; None if there is none."""
    import sympy

    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    ratio, sign, seen = None, 0, 0
    for point in _points(symbols):
        values = [evaluated(value.xreplace(point)) for value in (first, second)]
        near = [_numeric(value, 30) for value in values]
        if any(value is None or not value.is_real for value in near) or near[1] == 0:
            continue
        quotient = values[0] / values[1]
        if ratio is None:
            ratio, sign = quotient, 1 if near[0] / near[1] > 0 else -1 if near[0] != 0 else 0
        elif not _same_constants(ratio, quotient):
            return None
        seen += 1
    if ratio is None or sign == 0 or seen < 3:
        return None
    return sign if isinstance(ratio, sympy.Basic) else None


def approximate(text: str, digits: int) -> Fraction | None:
    """The value of a cleaned formula without variables to so many digits; None where it is none that is real."""
    import sympy

    found = expression(text)
    if not isinstance(found, sympy.Expr) or found.free_symbols:
        return None
    exact = rational(found)
    return exact if exact is not None else _fraction(_numeric(evaluated(found), digits))


def _fraction(near: Any) -> Fraction | None:
    """A float of sympy's; None for one that is not real or too long to write out."""
    import sympy

    if near is None or not near.is_real or (near != 0 and abs(sympy.log(abs(near), 2).evalf(5)) > BITS):
        return None
    exact: Any = sympy.Rational(near)
    return Fraction(int(exact.p), int(exact.q))


def close(value: Any, decimal: Fraction, places: int) -> bool:
    """Whether a decimal of so many places is a value that is not one, rounded or cut off."""
    near = _fraction(_numeric(evaluated(value), max(30, places + 20)))
    return near is not None and rounds(near, decimal, places)


def rounds(value: Fraction, decimal: Fraction, places: int) -> bool:
    """Whether a decimal of so many places is a value, rounded or cut off."""
    unit = Fraction(1, 10**places)
    return abs(value - decimal) <= unit / 2 or (value * decimal > 0 and 0 <= abs(value) - abs(decimal) < unit)

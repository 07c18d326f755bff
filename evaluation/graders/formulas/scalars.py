"""Single numbers, exactly: integers, decimals, fractions, mixed and scientific ones, in a base, with a unit.

Nothing is rounded. A number keeps what its reading depends on: percent, degrees, a base, the places of a decimal, and
the unit behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from evaluation.graders.formulas.clean import DEGREE

# 10^n is written out up to here; beyond, the symbolic side takes over.
LARGEST_EXPONENT = 20_000
# Python reads no integer of many more digits.
LONGEST = 4_000

_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"(?:{_DIGITS})")
_EXPONENT = re.compile(
    rf"(?:({_DIGITS})\s*(?:[eE]\s*([-+]?\d+)|(?:\\cdot|[xX])\s*10\s*\^\s*(?:\{{\s*([-+]?\d+)\s*\}}|([-+]?\d+)|\(\s*([-+]?\d+)\s*\))))"
    r"|(?:10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+)))"
)
_PART = rf"[-+]?(?:{_DIGITS})"
_FRACTION = re.compile(
    rf"\\frac\{{\s*({_PART})\s*\}}\{{\s*({_PART})\s*\}}|({_PART}|\({_PART}\))\s*/\s*({_PART}|\({_PART}\))"
)
_MIXED = re.compile(
    r"(\d+|\d{1,3}(?:,\d{3})+)(?:\s*\+?\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}|(?:\s+|\s*\+\s*|\s*-\s*(?=\d+/))(\d+)\s*/\s*(\d+))"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?")
_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?\s*_\s*(?:\{\s*\(?(?:\\text\{)?(\w+)\}?\)?\s*\}|(\d))")
_BASES = {
    "binary": 2, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "octal": 8, "nine": 9,
    "ten": 10, "decimal": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "hexadecimal": 16, "hex": 16,
}  # fmt: skip
_ANGLE = re.compile(
    rf"({_DIGITS})\s*{DEGREE}\s*(\d+(?:\.\d+)?)\s*(?:'|\^\{{?\\prime\}}?)(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\"))?"
)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2})(?::(\d{2}))?)?\s*(?:\\text\{\s*)?\s*([ap])\.?\s*m\b\.?\}?", re.IGNORECASE)
_SIGN = re.compile(r"[-+\s]*")
_WORD_UNIT = r"[A-Za-zµΩ]+\.?"
_UNIT = re.compile(
    # \text{ square feet}, \text{cm}^2, \text{m}/\text{s}; or words behind a number.
    r"(?P<marked>(?:\s*[/\\]?(?:cdot)?\s*\\text\{[^{}]*\}\s*(?:\^\s*\{?\s*-?\d\s*\}?)?)+)$"
    rf"|(?<=[\d}})%]) ?(?P<tight>(?:[munkcd]m|kg|mg|lbs?|oz|ft|in|yd|hrs?|mins?|secs?|ms|mph|kph|m[lL]|cents?|USD|EUR)"
    r"(?:\s*\^\s*\{?\s*[23]\s*\}?|\s*/\s*[a-z]+)?)$"
    rf"|(?<=[\d}})%]) (?P<words>(?:(?:[A-Za-z]{{3,}}|sq|cu)\.?)(?:[ /](?:per |{_WORD_UNIT}))*(?:{_WORD_UNIT})?"
    rf"(?:\s*\^\s*\{{?\s*[23]\s*\}}?)?)$"
)
# Multiples of one dimension's first unit; of two units from here, only the value in the same unit counts as equal.
_DIMENSIONS: tuple[dict[str, Fraction], ...] = tuple(
    {name: Fraction(factor) for names, factor in table for name in names.split()}
    for table in (
        (("m meter meters metre metres", "1"), ("cm centimeter centimeters centimetre centimetres", "1/100"),
         ("mm millimeter millimeters millimetre millimetres", "1/1000"),
         ("km kilometer kilometers kilometre kilometres", "1000"), ("in inch inches", "0.0254"),
         ("ft foot feet", "0.3048"), ("yd yard yards", "0.9144"), ("mi mile miles", "1609.344")),
        (("s sec secs second seconds", "1"), ("min mins minute minutes", "60"), ("h hr hrs hour hours", "3600"),
         ("day days", "86400"), ("week weeks", "604800")),
        (("g gram grams", "1"), ("kg kilogram kilograms", "1000"), ("mg milligram milligrams", "1/1000")),
        (("l liter liters litre litres", "1"), ("ml milliliter milliliters millilitre millilitres", "1/1000")),
        (("dollar dollars usd", "1"), ("cent cents", "1/100")),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Scalar:
    """A number as it is written.

    value: of the digits, without percent and degrees. places: of a decimal, else None. base: its base, if one is named;
    `value` is then the value in that base and `digits` the digits. clock: a time of day with am or pm, its value in
    seconds; `digits` is the hour where no minutes are written.
    """

    value: Fraction
    percent: bool = False
    degrees: bool = False
    places: int | None = None
    significant: int = 0
    base: int | None = None
    digits: str = ""
    clock: bool = False


def unit_of(text: str) -> tuple[str, str]:
    """A cleaned formula without the unit at its end, and that unit as lower-case words ("" if there is none)."""
    match = _UNIT.search(text)
    if match is None or not text[: match.start()].strip():
        return text, ""
    unit = match.group(match.lastgroup or 0)
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", unit)
    return text[: match.start()].strip(), " ".join(words.lower().replace(".", "").split())


def ratio_of_units(first: str, second: str) -> Fraction | None:
    """What one of the first unit is in the second: 1 for equal or unknown ones, None for ones of other dimensions."""
    if first == second or not first or not second:
        return Fraction(1)
    known = [next((d for d in _DIMENSIONS if unit in d), None) for unit in (first, second)]
    if known[0] is None or known[1] is None:
        return Fraction(1)
    return known[0][first] / known[1][second] if known[0] is known[1] else None


@lru_cache(maxsize=8192)
def scalar(text: str) -> Scalar | None:
    """A cleaned formula, without its unit, as one number; None where it is anything else."""
    clock = _CLOCK.fullmatch(text)
    if clock is not None:
        hours = int(clock[1]) % 12 + (12 if clock[4] in "pP" else 0)
        seconds = hours * 3600 + int(clock[2] or 0) * 60 + int(clock[3] or 0)
        return Scalar(Fraction(seconds), digits="" if clock[2] else clock[1], clock=True)
    sign = _SIGN.match(text)
    assert sign is not None
    negative = sign[0].count("-") % 2 == 1
    body = text[sign.end() :].strip()
    while body.startswith("{") and body.endswith("}") and "{" not in body[1:-1]:
        body = body[1:-1].strip()
    if len(body) > LONGEST:
        return None
    percent, degrees = body.endswith("%"), body.endswith(DEGREE)
    if percent or degrees:
        body = body[:-1].strip()
    found = _unsigned(body)
    if found is None:
        return None
    value = -found.value if negative else found.value
    return replace(found, value=value, percent=percent, degrees=degrees or found.degrees)


def _unsigned(text: str) -> Scalar | None:
    if _PLAIN.fullmatch(text):
        digits = text.replace(",", "").replace(" ", "")
        whole, point, fraction = digits.partition(".")
        places = len(fraction) if point and fraction else None
        return Scalar(Fraction(f"{whole or 0}.{fraction or 0}"), places=places,
                      significant=len((whole + fraction).lstrip("0")), digits=digits)  # fmt: skip
    for read in (_exponent, _fraction, _mixed, _repeating, _based, _angle):
        found = read(text)
        if found is not None:
            return found
    return None


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").strip("()").rstrip("."))


def _exponent(text: str) -> Scalar | None:
    match = _EXPONENT.fullmatch(text)
    if match is None:
        return None
    exponent = int(next(group for group in match.groups()[1:] if group is not None))
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    return Scalar((_number(match[1]) if match[1] else Fraction(1)) * Fraction(10) ** exponent)


def _fraction(text: str) -> Scalar | None:
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    above, below = (_number(group) for group in match.groups() if group is not None)
    return None if below == 0 else Scalar(above / below)


def _mixed(text: str) -> Scalar | None:
    """2\\frac{1}{2}, 2 1/2, 2-1/2: a whole number and a proper fraction."""
    match = _MIXED.fullmatch(text)
    if match is None:
        return None
    above, below = (int(group) for group in match.groups()[1:] if group is not None)
    if below == 0 or above >= below:
        return None
    return Scalar(_number(match[1]) + Fraction(above, below))


def _repeating(text: str) -> Scalar | None:
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    whole, before, period = match.groups()
    value = Fraction(int(whole or 0)) + Fraction(int(before or 0), 10 ** len(before))
    return Scalar(value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before)))


def _based(text: str) -> Scalar | None:
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    digits, written = match[1], match[2] or match[3]
    base = int(written) if written.isdigit() and len(written) < 3 else _BASES.get(written.lower())
    if base is None or not 2 <= base <= 36 or not digits[0].isalnum() or (digits.isalpha() and base < 11):
        return None
    try:
        return Scalar(Fraction(int(digits, base)), base=base, digits=digits.lower())
    except ValueError:
        return None


def _angle(text: str) -> Scalar | None:
    match = _ANGLE.fullmatch(text)
    if match is None:
        return None
    return Scalar(_number(match[1]) + Fraction(match[2]) / 60 + Fraction(match[3] or 0) / 3600, degrees=True)

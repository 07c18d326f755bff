"""What a program printed or returned against what it should have: LiveCodeBench's rules, in the grading process."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any


def same_output(found: str, expected: str) -> bool:
    """Equal line by line up to spaces at the ends, or, word by word, the same decimal numbers: `10.0` is `10`, but
    0.30000000000000004 is not 0.3, and no integer is rounded."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (found, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    return all(mine == theirs or _same_numbers(mine, theirs) for mine, theirs in zip(*lines, strict=True))


def _same_numbers(mine: str, theirs: str) -> bool:
    words = mine.split(), theirs.split()
    if len(words[0]) != len(words[1]):
        return False
    try:
        return all(Decimal(one) == Decimal(other) for one, other in zip(*words, strict=True))
    except InvalidOperation:
        return False


def same_value(found: Any, expected: Any) -> bool:
    """Whether a value of `sandbox.values` is the one that a test's JSON holds.

    Equal as Python has it, a tuple for a list and a number for the text of a key allowed, as JSON has neither. Integers
    are compared exactly.
    """
    try:
        return _as_json(found) == expected
    except RecursionError:
        return False


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key) if type(key) is int else key: _as_json(item) for key, item in value.items()}
    return value

"""Plain values as bytes, between a program that a model wrote and whoever compares what it returns.

JSON with tags: what comes out of `decode` is made of exactly None, bool, int, float, complex, str, bytes, list, tuple,
set, frozenset, dict, Fraction, Decimal and `Other`, whatever the bytes are. Standard library only.
"""

from __future__ import annotations

import json
import types
from collections import Counter, abc
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

# JSON as such holds these exactly; larger ones go in base 16, whose conversion takes linear time.
PLAIN_INTEGER = 1 << 63
# What whoever decodes has to bear: fractions are reduced in quadratic time, and so is a table of equal hashes made;
# decimal numbers may stand for integers of many digits.
FRACTION_BITS = 1 << 16
EQUAL_HASHES = 1000

Unknown = Callable[[str, Any, Callable[[Any], Any]], Any]


@dataclass(frozen=True)
class Other:
    """In place of a value of Python's own that is no plain data (a generator, a function): equal to no plain value."""

    kind: str


class Unserialisable(TypeError):
    """A value of a class that is not Python's own: no plain value stands for it."""


class Untrusted(ValueError):
    """Bytes that `encode` cannot have made."""


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> bytes:
    """`value` as bytes. Subclasses of plain types become these; numpy's numbers and arrays Python's.

    other: what stands for any value that is not plain, as JSON. Raises Unserialisable, or whatever the methods of the
    value raise.
    """
    return json.dumps(_tagged(value, other or _other)).encode()


def decode(data: bytes, other: Unknown | None = None) -> Any:
    """The value of bytes that nobody vouches for. other: of a tag that is not known here, its content and a function
    that decodes parts of it, the value. Raises Untrusted."""
    try:
        return _plain(json.loads(data), other)
    except Untrusted:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError, LookupError) as error:
        raise Untrusted(f"{type(error).__name__}: {error}"[:200]) from None


def _tagged(value: Any, other: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -PLAIN_INTEGER < number < PLAIN_INTEGER else {"i": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return "".join(str.__iter__(value))
    if isinstance(value, list):
        return [_tagged(item, other) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"t": [_tagged(item, other) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"d": [[_tagged(key, other), _tagged(item, other)] for key, item in dict.items(value)]}
    if isinstance(value, frozenset):
        return {"f": [_tagged(item, other) for item in frozenset.__iter__(value)]}
    if isinstance(value, set):
        return {"s": [_tagged(item, other) for item in set.__iter__(value)]}
    if isinstance(value, bytes):
        return {"b": bytes.hex(value)}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if kind is Decimal:
        return {"D": str(value)}
    if kind is Fraction:
        return {"q": [_tagged(value.numerator, other), _tagged(value.denominator, other)]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return _tagged(value.tolist(), other)
    return other(value)


def _other(value: Any) -> Any:
    kind = type(value)
    if kind.__module__ in ("builtins", "types", "functools", "itertools", "collections", "operator") or isinstance(
        value, (type, types.ModuleType, abc.Iterator, abc.Coroutine)
    ):
        return {"o": str(kind.__name__)[:80]}
    raise Unserialisable(f"a value of the class {str(kind.__name__)[:80]}")


def _plain(value: Any, other: Unknown | None) -> Any:
    if isinstance(value, list):
        return [_plain(item, other) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise Untrusted("a tag with several parts")
    ((tag, content),) = value.items()
    if tag == "i":
        return int(content, 16)
    if tag == "d":
        keys = _spread([_plain(key, other) for key, _ in content])
        return dict(zip(keys, (_plain(item, other) for _, item in content), strict=True))
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "c":
        return complex(*(float(part) for part in content))
    if tag == "D":
        number = Decimal(content)
        if number.is_finite() and max(abs(number.adjusted()), len(content)) > FRACTION_BITS:
            raise Untrusted("a decimal number of an unbearable size")
        return number
    if tag == "q":
        above, below = (_plain(part, other) for part in content)
        if type(above) is not int or type(below) is not int or max(map(int.bit_length, (above, below))) > FRACTION_BITS:
            raise Untrusted("a fraction of other than two integers of a bearable size")
        return Fraction(above, below)
    if tag == "o":
        return Other(str(content)[:80])
    if tag == "t":
        return tuple(_plain(item, other) for item in content)
    if tag in ("s", "f"):
        return {"s": set, "f": frozenset}[tag](_spread([_plain(item, other) for item in content]))
    if other is None:
        raise Untrusted(f"the tag {tag!r:.20}")
    return other(tag, content, lambda part: _plain(part, other))


def _spread(items: list[Any]) -> Iterable[Hashable]:
    """`items`, to be hashed. Raises TypeError, and Untrusted where too many have the same hash."""
    if len(items) > EQUAL_HASHES and max(Counter(map(hash, items)).values()) > EQUAL_HASHES:
        raise Untrusted("items that were made to have the same hash")
    return items

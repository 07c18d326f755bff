"""What the schema says of a field by its dotted path, and how a bare word or number that was written there reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path = Sequence[str | int]
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")


class WrittenInt(int):
    """A whole number that remembers how it was written."""

    text: str


class WrittenFloat(float):
    """A number that remembers how it was written."""

    text: str


@dataclass(frozen=True)
class WrittenBool:
    """A truth value that remembers how it was written."""

    value: bool
    text: str


def written(value: int | float | bool, text: str) -> WrittenInt | WrittenFloat | WrittenBool:
    """A number or truth value with its text."""
    if isinstance(value, bool):
        return WrittenBool(value, text)
    number = WrittenInt(value) if isinstance(value, int) else WrittenFloat(value)
    number.text = text
    return number


def annotation(schema: type[BaseModel], path: Path) -> Any:
    """The type of the field at `path` below `schema`; None where the schema knows no such field, or anything goes."""
    current: Any = schema
    for part in path:
        current = next((found for one in _members(current) if (found := _below(one, part)) is not None), None)
        if current is None:
            return None
    return None if current is Any else current


def _below(kind: Any, part: str | int) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        info = field_of(kind, part)
        return None if info is None else info.annotation
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    if get_origin(kind) in (list, tuple) and str(part).isdecimal():
        return arguments[0]
    return None


def field_of(section: type[BaseModel], part: str | int) -> FieldInfo | None:
    """The field of a section that is called `part`, by its own name or its alias; None where there is none."""
    return next((info for name, info in section.model_fields.items() if part in (name, info.alias)), None)


def _members(kind: Any) -> Iterator[Any]:
    """The types of a union, or the type itself."""
    if get_origin(kind) in (dict, list, tuple, Literal) or isinstance(kind, type):
        yield kind
    else:
        yield from get_args(kind) or (kind,)


def section(schema: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The section at `path`, or None where no section is there."""
    found = annotation(schema, path) if path else schema
    return next((one for one in _members(found) if isinstance(one, type) and issubclass(one, BaseModel)), None)


def nested(schema: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The section at `path` where the field is one; None also where it holds sections in a list or under names."""
    kind = annotation(schema, path)
    return None if holds_list(kind) or holds_names(kind) else section(schema, path)


def holds_list(kind: Any) -> bool:
    """Whether a field of this type holds a list."""
    return any(get_origin(one) in (list, tuple) for one in _members(kind))


def holds_names(kind: Any) -> bool:
    """Whether a field of this type holds values under names of the user's (an environment, benchmarks)."""
    return any(get_origin(one) is dict for one in _members(kind))


def holds_text(kind: Any) -> bool:
    """Whether a single value of this type is always text."""
    single = [one for one in _members(kind) if one is not NoneType and get_origin(one) not in (list, tuple, dict)]
    return bool(single) and all(one is str or get_origin(one) is Literal for one in single)


def reads_as_text(schema: type[BaseModel], path: Path, value: Any, text: str) -> bool:
    """Whether the word or number `text`, which a parser took for `value`, has to stay as it was written.

    A number where text belongs stays text (a commit such as 5e10235, a variable of an environment), and so does a word
    that YAML 1.1 takes for a truth value (off). A number beyond the range of floats is none, and a whole number with
    leading zeros is not octal.
    """
    kind = annotation(schema, path)
    if isinstance(value, bool):
        in_names = len(path) > 1 and str in _values_of(annotation(schema, path[:-1]))
        return in_names or (holds_text(kind) and text.lower() not in ("true", "false"))
    if not isinstance(value, int | float):
        return False
    if holds_text(kind):
        return True
    if isinstance(value, int):
        return kind is not None and _DECIMAL.fullmatch(text) is None
    return math.isinf(value) and "inf" not in text.lower()


def _values_of(kind: Any) -> list[Any]:
    return [get_args(one)[1] for one in _members(kind) if get_origin(one) is dict]


def below(schema: type[BaseModel], path: Path, part: str | int) -> tuple[str | int, ...]:
    """The path of an entry of a mapping or list: in a row of `sweep` keys are whole paths, and lists may be axes."""
    if len(path) == 2 and path[0] == "sweep":
        return tuple(str(part).split("."))
    if isinstance(part, int) and not holds_list(annotation(schema, path)):
        return tuple(path)
    return (*path, part)


def settled(schema: type[BaseModel], path: Path, value: Any) -> Any:
    """`value`, which is given for the field at `path`, with its written numbers as the schema reads them."""
    if isinstance(value, dict):
        return {key: settled(schema, below(schema, path, key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [settled(schema, below(schema, path, place), item) for place, item in enumerate(value)]
    if not isinstance(value, WrittenInt | WrittenFloat | WrittenBool):
        return value
    plain = value.value if isinstance(value, WrittenBool) else int(value) if isinstance(value, int) else float(value)
    return value.text if reads_as_text(schema, path, plain, value.text) else plain

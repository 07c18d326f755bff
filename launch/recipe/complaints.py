"""A validation error of the schema in one line: field, given value, what is allowed, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from launch.recipe import fields
from launch.recipe.overrides import shown


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first error in one line."""
    first = error.errors()[0]
    location = first["loc"]
    field = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        return _unknown(schema, location)
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if not field:
        return message
    given = first["input"]
    if isinstance(given, dict):
        return message if message.startswith(field) else f"{field}: {message}"
    return f"{field}={shown(given)}: {message}{_remedy(first['type'], field, given)}"


def _remedy(kind: str, field: str, given: Any) -> str:
    """How to write what was meant."""
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f"; for a text quote it twice: {field}=\"'{shown(given)}'\""
    if kind in ("list_type", "tuple_type") and not isinstance(given, dict):
        return f"; write {field}=[{shown(given)}]"
    return ""


def _unknown(schema: type[BaseModel], location: Sequence[int | str]) -> str:
    """An unknown field, and the one that was meant: of a like name, a like description, or of another section."""
    *above, last = location
    name, field = str(last), ".".join(map(str, location))
    section = fields.section(schema, above)
    known = {} if section is None else {(info.alias or key): info for key, info in section.model_fields.items()}
    if "." in name:
        *parents, leaf = name.split(".")
        return f"{field}: unknown field; write it as {': {'.join(parents)}: {{{leaf}: ...{'}' * len(parents)}"
    close = difflib.get_close_matches(name, sorted(known), 1)
    words = set(name.lower().split("_"))
    close += [key for key, info in known.items() if words <= set((info.description or "").lower().split())][:1]
    elsewhere = sorted((path for path in _paths(schema) if path.endswith(f".{name}")), key=lambda path: path.count("."))
    hint = ""
    if elsewhere and not above:
        hint = f"did you mean {' or '.join(elsewhere[:2])}? "
    elif close:
        whole = ".".join(map(str, (*above, close[0])))
        hint = f"did you mean {close[0]}? " + (f"write {whole}; " if above else "")
    return f"{field}: unknown field; {hint}allowed: {', '.join(sorted(known))}"


def _paths(schema: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted path of every field."""
    for key, info in schema.model_fields.items():
        path = f"{above}{info.alias or key}"
        yield path
        inner = fields.nested(schema, [key])
        if inner is not None:
            yield from _paths(inner, f"{path}.")

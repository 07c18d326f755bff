"""Entries of a recipe's `sweep:` list: mappings of overrides, in which a list is an axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from launch.recipe import fields


def spread(entry: dict[str, Any], schema: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes in an entry, each as dotted path -> value.

    A list is an axis, but where the field holds lists: there a list is a value, and a list of lists is an axis.
    Sections may be nested (`{sft: {lr: [1e-5, 5e-5]}}`).
    """
    flat = dict(_flat(entry, schema, ""))
    axes = [_alternatives(path, value, schema) for path, value in flat.items()]
    for values in itertools.product(*axes):
        yield dict(zip(flat, values, strict=True))


def _flat(entry: dict[str, Any], schema: type[BaseModel], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in entry.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and value and fields.nested(schema, path.split(".")):
            yield from _flat(value, schema, f"{path}.")
        else:
            yield path, value


def _alternatives(path: str, value: Any, schema: type[BaseModel]) -> list[Any]:
    if not isinstance(value, list) or not value:
        return [value]
    kind = fields.annotation(schema, path.split("."))
    if fields.holds_list(kind) and not all(isinstance(one, list) for one in value):
        return [value]
    return value

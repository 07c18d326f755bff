"""Entries of a recipe's `sweep:` list: mappings of overrides, in which a list is an axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from launch.recipe import fields
from launch.recipe.library import RecipeError
from launch.recipe.overrides import Assignment, shown

Row = Sequence[Assignment]


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


def selected(recipe: str, rows: Sequence[Row], axes: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that match the overrides of what the list itself sets, and the other overrides.

    Args:
        rows: assignments of every row of the list.
        axes: overrides, each with its alternatives.

    Raises:
        RecipeError: no row matches, or an override of a section whose fields the list sets.
    """
    asked, others = [], []
    for axis in axes:
        same = any(_same(one, axis[0]) for row in rows for one in row)
        (asked if same else others).append(axis)
    for axis, row in itertools.product(others, rows):
        for one in row:
            if overlap(one.key, axis[0].key) and one.is_group == axis[0].is_group:
                raise RecipeError(
                    f"{axis[0].key} is set by an override, {one.key} by the sweep list; give each field once"
                )
    kept = [row for row in rows if all(_matches(row, axis) for axis in asked)]
    if rows and not kept:
        wanted = " ".join(f"{axis[0].key}={','.join(shown(one.value) for one in axis)}" for axis in asked)
        listed = "; ".join(f"{axis[0].key}={' | '.join(_values(rows, axis, asked))}" for axis in asked)
        raise RecipeError(f"recipe {recipe}: no row of its sweep has {wanted}; allowed: {listed}")
    return kept, others


def overlap(key: str, other: str) -> bool:
    """Whether one of two dotted paths is the other, or a section above it."""
    return key == other or key.startswith(other + ".") or other.startswith(key + ".")


def _same(one: Assignment, other: Assignment) -> bool:
    return one.key == other.key and one.is_group == other.is_group


def _matches(row: Row, axis: Row) -> bool:
    return any(_same(one, wanted) and one.value == wanted.value for one in row for wanted in axis)


def _values(rows: Sequence[Row], axis: Row, asked: Sequence[Row]) -> list[str]:
    """The values of a field in the rows that match the other overrides, or in all rows where none does."""
    others = [other for other in asked if other is not axis]
    fitting = [row for row in rows if all(_matches(row, other) for other in others)] or rows
    return list(dict.fromkeys(shown(one.value) for row in fitting for one in row if _same(one, axis[0])))

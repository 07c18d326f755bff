"""Reading and changing a recipe before it is validated: mappings, lists and values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from launch.recipe.library import RecipeError
from launch.recipe.overrides import Assignment


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The path and value of everything in a tree that is neither a mapping nor a list."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))
    else:
        yield path, value


def value_at(tree: Any, path: Sequence[str | int]) -> Any:
    """What is at a path, or None."""
    for part in path:
        if isinstance(tree, list):
            tree = tree[part] if isinstance(part, int) and part < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def put(tree: Any, path: Sequence[str | int], value: Any) -> None:
    """Replaces what is at a path."""
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = value


def assign(tree: dict[str, Any], given: Assignment) -> None:
    """Sets a field, or one entry of a list by its place (`eval.benchmarks.0.num_samples`)."""
    *parents, last = given.key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        place = _place(node, part, given, parents[:depth])
        if node[place] is None if isinstance(node, list) else node.get(place) is None:
            node[place] = {}
        node = node[place]
        if not isinstance(node, dict | list):
            raise RecipeError(f"override {given}: {part} is a value, not a section")
    place = _place(node, last, given, parents)
    node[place] = _merged(node[place] if isinstance(node, list) else node.get(place), given.value)


def _place(node: Any, part: str, given: Assignment, above: Sequence[str]) -> Any:
    """The key or index that a part of a path names. Raises RecipeError for an entry that a list has not."""
    if not isinstance(node, list):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        name = ".".join(above)
        known = f"0 to {len(node) - 1}" if node else f"none yet: give the list as {name}=[...]"
        raise RecipeError(f"override {given}: {name} has no entry {part}; allowed: {known}")
    return int(part)


def _merged(old: Any, new: Any) -> Any:
    """A mapping is merged into the section that is there, as Hydra does; any other value replaces it."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}

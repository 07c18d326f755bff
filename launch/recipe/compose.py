"""From a recipe's name and Hydra overrides to validated recipes, one for each branch of a sweep."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from common.errors import ConfigError
from launch.recipe.recipe import Recipe, recipe_class

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"


class RecipeError(ConfigError):
    """A wrong recipe or override; the message is one line that names the field and the remedy."""


@dataclass(frozen=True)
class Assignment:
    """One override with one value: `key=value`, or the choice of a config group."""

    key: str
    value: Any
    is_group: bool

    def __str__(self) -> str:
        return f"{self.key}={_shown(self.value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def groups() -> dict[str, list[str]]:
    """Config group -> its choices (the YAML files of that folder of `recipes/`)."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(RECIPES.iterdir())
        if folder.is_dir() and not folder.name.startswith(("_", "."))
    }


def recipe_names() -> list[str]:
    """Recipes that ship with the package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != "base")


def _parse(texts: Sequence[str]) -> list[list[Assignment]]:
    """Every override as the list of its alternatives (one, unless it is a sweep axis)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices = groups()
    axes = []
    for text in texts:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise RecipeError(
                f"override {text!r}: {str(error).splitlines()[0]}; write key=value, or key=a,b for a sweep"
            ) from None
        key = override.key_or_group
        if override.is_delete():
            raise RecipeError(f"override {text!r}: deleting is not supported; set {key}=null")
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        axes.append([_assignment(key, value, choices) for value in values])
    return axes


def _assignment(key: str, value: Any, choices: dict[str, list[str]]) -> Assignment:
    if key not in choices or isinstance(value, dict):
        return Assignment(key, _python(value), False)
    if str(value) not in choices[key]:
        close = difflib.get_close_matches(str(value), choices[key], 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RecipeError(f"override {key}={value}: {hint}allowed: {', '.join(choices[key])} (recipes/{key}/*.yaml)")
    return Assignment(key, str(value), True)


def _python(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list | tuple):
        return [_python(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _python(item) for key, item in value.items()}
    return value


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(other + ".") or other.startswith(key + ".")


def _check_axes(axes: list[list[Assignment]]) -> None:
    for first, second in itertools.combinations(axes, 2):
        same = first[0].key == second[0].key
        # `objective=a,b objective.source=base` is a choice of the group and a field of it
        nested = _overlap(first[0].key, second[0].key) and not (first[0].is_group or second[0].is_group)
        if same or nested:
            raise RecipeError(f"overrides of {first[0].key} and {second[0].key} overlap; give each field once")


@dataclass(frozen=True)
class Composed:
    """One branch: the assignments that tell it from its siblings, and its recipe."""

    axes: tuple[Assignment, ...]
    recipe: Any


class Composer:
    """Composes with Hydra once for each distinct choice of groups; values are set on a copy of the result."""

    def __init__(self, recipe: str):
        path = Path(recipe)
        if path.suffix == ".yaml":
            if not path.is_file():
                raise RecipeError(f"recipe {recipe}: no such file")
            self.name, self._folder = path.stem, path.resolve().parent
        else:
            if recipe not in recipe_names():
                close = difflib.get_close_matches(recipe, recipe_names(), 1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise RecipeError(
                    f"recipe {recipe}: {hint}allowed: {', '.join(recipe_names())}, or a path to a .yaml file"
                )
            self.name, self._folder = recipe, RECIPES
        self._composed: dict[tuple[str, ...], dict[str, Any]] = {}

    def _compose(self, choices: tuple[str, ...]) -> dict[str, Any]:
        if choices not in self._composed:
            from hydra import compose, initialize_config_dir
            from hydra.core.global_hydra import GlobalHydra
            from hydra.errors import HydraException
            from omegaconf import OmegaConf
            from omegaconf.errors import OmegaConfBaseException

            extra = [f"hydra.searchpath=[file://{RECIPES}]"] if self._folder != RECIPES else []
            GlobalHydra.instance().clear()
            try:
                with initialize_config_dir(str(self._folder), version_base="1.3"):
                    config = compose(self.name, [*extra, *choices])
                    self._composed[choices] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
            except (HydraException, OmegaConfBaseException) as error:
                text = " ".join(str(error).split())
                absent = re.match(r"Could not override '(\w+)'\. No match in the defaults list", text)
                if absent is not None:
                    given = next(choice for choice in choices if choice.startswith(absent[1] + "="))
                    line = "- " + given.replace("=", ": ")
                    text = f"override {given}: {absent[1]} is not in the recipe's defaults; add the line '{line}' there"
                raise RecipeError(f"recipe {self.name}: {text}") from None
        return copy.deepcopy(self._composed[choices])

    def recipe(self, assignments: Sequence[Assignment]) -> Any:
        """The validated recipe under `assignments`; raises RecipeError naming the field."""
        tree = self._compose(tuple(f"{a.key}={a.value}" for a in assignments if a.is_group))
        for assignment in assignments:
            if not assignment.is_group:
                _set(tree, assignment)
        tree["name"] = self.name
        try:
            return recipe_class(tuple(tree.get("stages") or ())).model_validate(tree)
        except ValidationError as error:
            raise RecipeError(f"recipe {self.name}: {explain(error)}") from None
        except ConfigError as error:
            raise RecipeError(f"recipe {self.name}: {error}") from None

    def rows(self, assignments: Sequence[Assignment]) -> list[dict[str, Any]]:
        """The `sweep:` list: the override's, else the recipe's; [] if there is none.

        The recipe need not be valid by itself: a row may give what it lacks. Raises RecipeError if it is not a list of
        mappings.
        """
        tree = self._compose(tuple(f"{a.key}={a.value}" for a in assignments if a.is_group))
        rows = next((a.value for a in assignments if a.key == "sweep"), tree.get("sweep")) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RecipeError(
                f"recipe {self.name}: sweep={_shown(rows)}: give a list of mappings, "
                "e.g. sweep=[{objective: sft, sft.lr: 1e-5}]"
            )
        return rows


def _set(tree: dict[str, Any], assignment: Assignment) -> None:
    *parents, last = assignment.key.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise RecipeError(f"override {assignment}: {parent} is a value, not a section")
    node[last] = _merged(node.get(last), assignment.value)


def _merged(old: Any, new: Any) -> Any:
    """A mapping is merged into the section that is there, as Hydra does; any other value replaces it."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _section(location: Sequence[int | str]) -> type[BaseModel] | None:
    """The schema class that holds the field at `location`."""
    current: Any = Recipe
    for part in location[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields
            if part not in fields:
                return None
            current = fields[str(part)].annotation
        candidates = [current, *get_args(current)]
        nested = [arg for candidate in candidates for arg in (candidate, *get_args(candidate))]
        current = next((c for c in nested if isinstance(c, type) and issubclass(c, BaseModel)), current)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def explain(error: ValidationError) -> str:
    """A validation error in one line: field, given value, what is allowed."""
    first = error.errors()[0]
    location = first["loc"]
    field = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        section = _section(location)
        allowed = sorted((info.alias or name) for name, info in section.model_fields.items()) if section else []
        close = difflib.get_close_matches(str(location[-1]), allowed, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{field}: unknown field; {hint}allowed: {', '.join(allowed)}"
    message = first["msg"].removeprefix("Value error, ")
    if not field:
        return message
    if isinstance(first["input"], dict):
        return message if message.startswith(field) else f"{field}: {message}"
    return f"{field}={_shown(first['input'])}: {message}"


def branches(recipe: str, overrides: Sequence[str]) -> Iterator[Composed]:
    """All branches of `recipe` under `overrides`: the `sweep:` list times the product of the comma axes.

    Raises RecipeError on an unknown recipe, group choice or field, a value out of range, or axes that overlap.
    """
    composer = Composer(recipe)
    axes = _parse(overrides)
    _check_axes(axes)
    fixed = [axis[0] for axis in axes if len(axis) == 1]
    swept = [axis for axis in axes if len(axis) > 1]
    choices = groups()
    if any(axis[0].key == "sweep" for axis in swept):
        raise RecipeError("override sweep=...: it is one list; give its rows as sweep=[{...},{...}]")
    rows = composer.rows(fixed)
    fixed = [a for a in fixed if a.key != "sweep"]
    for row in rows or [{}]:
        listed = [_assignment(str(key), value, choices) for key, value in row.items()]
        for assignment in listed:
            for given in [*fixed, *(axis[0] for axis in swept)]:
                if _overlap(assignment.key, given.key) and assignment.is_group == given.is_group:
                    raise RecipeError(
                        f"{given.key} is set by an override, {assignment.key} by the sweep list; give each field once"
                    )
        for product in itertools.product(*swept):
            # a group's choice comes first so that a field of it can be set after
            assignments = sorted([*fixed, *listed, *product], key=lambda a: not a.is_group)
            yield Composed((*listed, *product), composer.recipe(assignments))

"""From a recipe's name and Hydra overrides to validated recipes, one for each branch of a sweep."""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import ConfigError
from launch.recipe.complaints import explain
from launch.recipe.library import RECIPES, RecipeError, RecipeWarning, groups, locate, recipe_names
from launch.recipe.overrides import Assignment, assignment, parse, shown
from launch.recipe.recipe import Recipe, recipe_class
from launch.recipe.sweeps import Row, overlap, selected, spread
from launch.recipe.tiny import TINY, shrunk
from launch.recipe.tree import assign, leaves, put, value_at

__all__ = ["RECIPES", "Assignment", "Composed", "RecipeError", "branches", "groups", "recipe_names"]

_OVERRIDDEN = "sweep"  # the one field that is read before a branch is composed
_HOME = re.compile(r"~|~[\w.-]*/.*")
_SFT_ALONE = ("objective", "sft", "cache", "rewrite")  # sections that bear on no adopted model
_TEXTS = ("data.system_prompt",)  # where a leading ~ is no home directory


@dataclass(frozen=True)
class Composed:
    """One branch: the assignments that tell it from its siblings, its recipe, and those that all branches share."""

    axes: tuple[Assignment, ...]
    recipe: Any
    fixed: tuple[Assignment, ...] = ()


class Composer:
    """Composes with Hydra once for each distinct choice of groups; values are set on a copy of the result."""

    def __init__(self, recipe: str):
        self._located = locate(recipe)
        self.name = self._located.name
        self.choices = groups(self._located.folder)
        self._composed: dict[tuple[str, ...], dict[str, Any]] = {}

    def _compose(self, choices: tuple[str, ...]) -> dict[str, Any]:
        """The composed tree; interpolations are as they are written."""
        if choices not in self._composed:
            from hydra.errors import HydraException
            from omegaconf.errors import OmegaConfBaseException

            from launch.recipe.files import composed

            try:
                self._composed[choices] = composed(self._located.folder, self.name, choices)
            except RecipeError:
                raise
            except RecursionError:
                raise RecipeError(
                    f"recipe {self.name}: its defaults lead back to themselves; rename the file beside it "
                    "that is called as one of them"
                ) from None
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                raise RecipeError(f"recipe {self.name}: {self._complaint(error, choices)}") from None
            if len(self._composed) == 1:
                self._warn_of_lost_values(self._composed[choices])
        return copy.deepcopy(self._composed[choices])

    def _complaint(self, error: Exception, choices: tuple[str, ...]) -> str:
        text = " ".join(str(error).split())
        absent = re.match(r"Could not override '(\w+)'\. No match in the defaults list", text)
        if absent is None:
            return text
        given = next(choice for choice in choices if choice.startswith(absent[1] + "="))
        line = "- " + given.replace("=", ": ")
        return f"override {given}: {absent[1]} is not in the recipe's defaults; add the line '{line}' there"

    def recipe(self, assignments: Sequence[Assignment]) -> Any:
        """The validated recipe under `assignments`; raises RecipeError naming the field."""
        tree = self._compose(tuple(f"{a.key}={a.value}" for a in assignments if a.is_group))
        for one in assignments:
            if not one.is_group:
                assign(tree, one)
        tree = self._resolved(tree)
        tree["name"] = self.name
        if tree.get("scale") == TINY:
            tree = shrunk(tree)
        schema: Any = Recipe
        try:
            schema = recipe_class(tuple(tree.get("stages") or ()))
            return schema.model_validate(tree)
        except ValidationError as error:
            raise RecipeError(f"recipe {self.name}: {explain(error, schema)}") from None
        except ConfigError as error:
            raise RecipeError(f"recipe {self.name}: {error}") from None

    def _resolved(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Interpolations filled in, as in a file, and ~ expanded. Raises RecipeError naming the field."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        if any(isinstance(value, str) and "${" in value for _, value in leaves(tree)):
            rows = tree.pop(_OVERRIDDEN, None)  # they are branches, and no branch reads them
            try:
                tree = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[assignment]
            except OmegaConfBaseException as error:
                where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
                said = str(error).splitlines()[0].partition("raised while resolving interpolation: ")
                raise RecipeError(f"recipe {self.name}: {where}{said[2] or said[0]}") from None
            tree[_OVERRIDDEN] = rows
        for path, value in list(leaves(tree)):
            field = ".".join(map(str, path))
            if value == "???":
                raise RecipeError(f"recipe {self.name}: {field} has no value; give {field}=...")
            if isinstance(value, float) and not math.isfinite(value) and path[0] != _OVERRIDDEN:
                raise RecipeError(f"recipe {self.name}: {field}={value}: give a finite number")
            if isinstance(value, str) and _HOME.fullmatch(value) and field not in _TEXTS:
                put(tree, path, _expanded(self.name, field, value))
        return tree

    def rows(self, assignments: Sequence[Assignment]) -> list[dict[str, Any]]:
        """The `sweep:` list: the override's, else the recipe's; [] if there is none.

        The recipe need not be valid by itself: a row may give what it lacks. Raises RecipeError if it is not a list of
        mappings.
        """
        tree = self._compose(tuple(f"{a.key}={a.value}" for a in assignments if a.is_group))
        rows = next((a.value for a in assignments if a.key == "sweep"), tree.get("sweep")) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row for row in rows):
            raise RecipeError(
                f"recipe {self.name}: sweep={shown(rows)}: give a list of mappings, "
                "e.g. sweep=[{objective: sft, sft.lr: 1e-5}]"
            )
        return rows

    def _warn_of_lost_values(self, tree: dict[str, Any]) -> None:
        """Says which of the recipe's own values its groups replace, where `_self_` is not the last of its defaults."""
        from launch.recipe.files import read

        own = read(self._located.file)
        order = own.pop("defaults", None) or []
        if "_self_" not in order or order[-1] == "_self_":
            return
        lost = [".".join(map(str, path)) for path, value in leaves(own) if value_at(tree, path) != value]
        if lost:
            warnings.warn(
                f"recipe {self.name}: {', '.join(lost)}: the value of a group replaces the recipe's own, since _self_ "
                "is not the last of its defaults; move it there",
                RecipeWarning,
                stacklevel=2,
            )


def _expanded(recipe: str, field: str, value: str) -> str:
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise RecipeError(
            f"recipe {recipe}: {field}={value}: there is no such home directory; write the path"
        ) from None


def _check_axes(axes: list[list[Assignment]]) -> None:
    for first, second in itertools.combinations(axes, 2):
        same = first[0].key == second[0].key
        # `objective=a,b objective.source=base` is a choice of the group and a field of it
        nested = overlap(first[0].key, second[0].key) and not (first[0].is_group or second[0].is_group)
        if same or nested:
            raise RecipeError(f"overrides of {first[0].key} and {second[0].key} overlap; give each field once")


def branches(recipe: str, overrides: Sequence[str]) -> Iterator[Composed]:
    """All branches of `recipe` under `overrides`: the rows of its `sweep:` list times the product of the comma axes.

    An override of what the list sets is no axis: it selects the rows with one of its values. Raises RecipeError on an
    unknown recipe, group choice or field, a value out of range, axes that overlap, or a selection that no row matches.
    """
    composer = Composer(recipe)
    axes = parse(overrides, Recipe, composer.choices)
    _check_axes(axes)
    if any(axis[0].key == "sweep" for axis in axes if len(axis) > 1):
        raise RecipeError("override sweep=...: it is one list; give its rows as sweep=[{...},{...}]")
    listed: list[Row] = [
        [assignment(key, value, Recipe, composer.choices) for key, value in entry.items()]
        for row in composer.rows([axis[0] for axis in axes if len(axis) == 1])
        for entry in spread(row, Recipe)
    ]
    axes = [axis for axis in axes if axis[0].key != "sweep"]
    rows, others = selected(composer.name, listed, axes)
    fixed = [axis[0] for axis in others if len(axis) == 1]
    products = list(itertools.product(*(axis for axis in others if len(axis) > 1)))
    found = None
    for row in rows or [()]:
        for product in products:
            found = composer.recipe(_groups_first([*fixed, *row, *product]))
            yield Composed((*row, *product), found, tuple(fixed))
    for name, place in found.adopt.items() if found is not None else ():
        kept = [one for one in fixed if one.is_group or one.key.partition(".")[0] != "sft"]
        own = [Assignment(f"sft.{key}", value, False) for key, value in _adopting(place)]
        every = (
            tuple(one for one in axes if one.key.partition(".")[0] not in _SFT_ALONE)
            for row in rows or [()]
            for axes in ((*row, *product) for product in products)
        )
        for axes in {tuple(map(str, axes)): axes for axes in every}.values():
            named = (Assignment("adopt", name, False), *axes)
            yield Composed(named, composer.recipe(_groups_first([*kept, *axes, *own])), tuple(fixed))


def _groups_first(assignments: Sequence[Assignment]) -> list[Assignment]:
    """A group's choice comes first so that a field of it can be set after."""
    return sorted(assignments, key=lambda one: not one.is_group)


def _adopting(place: str) -> list[tuple[str, Any]]:
    """Fields of `sft` that put an adopted model in its place."""
    return [("adopt", place), ("from", None), ("publish_steps", [])]

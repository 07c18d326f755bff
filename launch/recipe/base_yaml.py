"""Prints `recipes/base.yaml` from the schema: python -m launch.recipe.base_yaml > recipes/base.yaml"""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel

from launch.recipe.model import Model
from launch.recipe.recipe import Recipe
from launch.recipe.section import is_runtime

LAST = ("platform", "run", "selection", "analyses", "published", "stages", "sweep")  # after the sections of the stages


def base_yaml() -> str:
    """The text of `recipes/base.yaml`: every field with its default and description."""
    lines = [
        "# Every field of a recipe with its default; printed by `python -m launch.recipe.base_yaml` from the schema",
        "# (launch/recipe, launch/stages).",
        "# [runtime] marks a field that never changes what is computed.",
    ]
    recipe = Recipe(model=Model(path="-"))
    fields = Recipe.model_fields
    order = [*(name for name in fields if name not in LAST), *LAST]
    text = "\n".join([*lines, *_lines(recipe, "", order)]) + "\n"
    return text.replace('\n  path: "-"', "\n  path: null", 1)


def _lines(section: BaseModel, indent: str, order: list[str] | None = None) -> list[str]:
    lines = []
    fields: dict[str, Any] = dict(type(section).model_fields)
    for name in order or fields:
        info, value = fields[name], getattr(section, name)
        comment = f"  # {'[runtime] ' if is_runtime(info) else ''}{info.description}"
        key = info.alias or name
        if isinstance(value, BaseModel):
            lines += [f"{indent}{key}:{comment}", *_lines(value, indent + "  ")]
            continue
        lines.append(f"{indent}{key}: {json.dumps(value)}{comment}")
        optional = next(
            (arg for arg in get_args(info.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)), None
        )
        if optional is not None:
            lines += [f"{indent}# {line[len(indent) :]}" for line in _lines(optional(), indent + "  ")]
    return lines


if __name__ == "__main__":
    print(base_yaml(), end="")

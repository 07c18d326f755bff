"""Sizes of published models, from the model groups: what `plan` counts parameters from where no copy is at hand."""

from __future__ import annotations

from functools import cache
from typing import Any

from launch.recipe.files import read
from launch.recipe.library import RECIPES


@cache
def published_shapes() -> dict[str, dict[str, Any]]:
    """Hub name -> fields of its config.json, of every model group that ships with the package."""
    found = {}
    for file in sorted((RECIPES / "model").glob("*.yaml")):
        group = read(file, ("model",))
        if "path" in group and "shapes" in group:
            found[str(group["path"])] = dict(group["shapes"])
    return found

"""The recipes and config groups that ship with the package, and those of a user's own folder."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.errors import ConfigError

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
BASE = "base"  # every recipe's `defaults:` start with this file
GROUPS = ("model", "data", "rewrite", "objective", "sft", "rl", "eval", "platform")  # config groups: folders of choices
PAPERS = ("lp_sft", "sed_sft", "prift", "target_sft", "talr")  # folders of recipes, one for each published experiment
STUDY = "study"  # folder of recipes of our own that ask many arms one question (docs/evidence.md)
SETTINGS = "settings"  # of a paper's folder: what its experiments share; no recipe of its own
TEMPLATES = RECIPES / "templates"  # chat templates by name


class RecipeError(ConfigError):
    """A wrong recipe or override; the message is one line that names the field and the remedy."""


class RecipeWarning(UserWarning):
    """Something in a recipe that does not do what it looks like; one line that names the field and the remedy."""


@dataclass(frozen=True)
class Located:
    """A recipe's name, and the folder that its file lies in."""

    name: str
    folder: Path

    @property
    def file(self) -> Path:
        """The YAML file."""
        return self.folder / f"{self.name}.yaml"


def groups(folder: Path = RECIPES) -> dict[str, list[str]]:
    """Config group -> its choices: the YAML files of that folder of `recipes/`, and of the user's own `folder`."""
    found = {group: sorted(file.stem for file in (RECIPES / group).glob("*.yaml")) for group in GROUPS}
    if folder != RECIPES:
        for group, choices in found.items():
            found[group] = sorted({*choices, *(file.stem for file in (folder / group).glob("*.yaml"))})
    return found


def recipe_names() -> list[str]:
    """Recipes that ship with the package: `math_1p5b`, the studies, the papers' as `lp_sft/t2_magicoder`."""
    own = sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != BASE)
    studies = sorted(f"{STUDY}/{file.stem}" for file in (RECIPES / STUDY).glob("*.yaml"))
    return [*own, *studies, *paper_recipes()]


@cache
def paper_recipes() -> list[str]:
    """The recipes of the papers: by paper, then by table or figure."""
    return [
        f"{paper}/{file.stem}"
        for paper in PAPERS
        for file in sorted((RECIPES / paper).glob("*.yaml"), key=lambda file: _in_order(file.stem))
        if file.stem != SETTINGS
    ]


def _in_order(stem: str) -> list[str | int]:
    """Sorts `t2_...` before `t10_...`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem)]


def close_to(given: str, known: list[str]) -> str:
    """ "did you mean x? ", or nothing."""
    close = difflib.get_close_matches(given, known, 1)
    return f"did you mean {close[0]}? " if close else ""


def locate(recipe: str) -> Located:
    """The recipe of a name, or of a path to a .yaml file. Raises RecipeError (one line) where there is none."""
    path = Path(recipe).expanduser()
    if recipe in recipe_names():
        return Located(recipe, RECIPES)
    of_table = [name for name in paper_recipes() if name.startswith(f"{recipe}_")]
    if len(of_table) == 1:
        return Located(of_table[0], RECIPES)
    if of_table:
        raise RecipeError(f"recipe {recipe}: there are several; allowed: {', '.join(of_table)}")
    if path.suffix != ".yaml":
        names = recipe_names()
        if path.is_file():
            raise RecipeError(f"recipe {recipe}: a recipe's file ends in .yaml; rename it")
        raise RecipeError(
            f"recipe {recipe}: {close_to(recipe, names)}allowed: {', '.join(names)}, or a path to a .yaml file"
        )
    if path.is_dir() or not path.exists():
        raise RecipeError(f"recipe {recipe}: {'a directory, not a file' if path.is_dir() else 'no such file'}")
    if path.stem == BASE:
        raise RecipeError(f"recipe {recipe}: base is the file of defaults that recipes start from; rename yours")
    return Located(path.stem, path.resolve().parent)

"""Where the report of a plan lies, and the page that lists all reports of a store."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from common.files import read_json, text_digest, write_json, write_text
from launch import stages
from launch.graph.plan import Plan
from launch.report.render import as_index

ABOUT = "plan.json"  # beside a report: of which plan it is
INDEX = "index.html"
LONGEST = 60  # characters of overrides in a folder's name


@dataclass(frozen=True)
class Entry:
    """A report in the index: its page below the root, its recipe, its overrides, its branches, and how much is made."""

    page: str
    recipe: str
    overrides: str
    branches: int
    made: str


def folder_of(plan: Plan, root: Path) -> Path:
    """The folder of a plan's report: of the recipe as it stands `<root>/<recipe>`, with overrides one of their own.

    A recipe that is called as a kind of stage has another folder than that stage's artifacts.
    """
    kinds = [kind.name for kind in stages.in_order(plan.own_stages)]
    folder = root / (f"{plan.recipe}.recipe" if plan.recipe in kinds else plan.recipe)
    if not plan.overrides:
        return folder
    words = re.sub(r"[^\w=.,-]+", "-", " ".join(plan.overrides), flags=re.ASCII)[:LONGEST].strip("-.")
    return folder / f"{words}-{text_digest(json.dumps(plan.overrides))[:8]}"


def note_plan(plan: Plan, folder: Path, made: int) -> None:
    """Writes which plan the report in `folder` is of, for the index."""
    about = {
        "recipe": plan.recipe,
        "overrides": list(plan.overrides),
        "branches": len(plan.branches),
        "stages": len(plan.stages),
        "made": made,
    }
    write_json(folder / ABOUT, about)


def write_index(root: Path) -> Path:
    """Writes the page that lists every report below `root`; returns its path."""
    found = []
    for path in sorted([*root.glob(f"*/{ABOUT}"), *root.glob(f"*/*/{ABOUT}"), *root.glob(f"*/*/*/{ABOUT}")]):
        about, page = read_json(path), path.with_name("report.html")
        if isinstance(about, dict) and page.is_file():
            made = f"{about['made']} of {about['stages']}"
            overrides = " ".join(about["overrides"])
            found.append(Entry(page.relative_to(root).as_posix(), about["recipe"], overrides, about["branches"], made))
    write_text(root / INDEX, as_index(sorted(found, key=lambda one: (one.recipe, one.overrides))))
    return root / INDEX

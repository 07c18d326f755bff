"""The plan that a command's recipe and overrides ask for, and whether its store can be used."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.graph.builder import make_plan
from launch.graph.plan import Plan
from launch.store import StoreError


def planned(arguments: argparse.Namespace, *, write: bool = False) -> Plan:
    """The plan of the arguments; with `write` its store is made if it is not there.

    Raises RecipeError for a wrong recipe, StoreError (one line) for a `run.root` that is no directory.
    """
    plan = make_plan(arguments.recipe, arguments.overrides)
    if "://" in plan.root:
        return plan  # the store says what to write instead
    root = Path(plan.root).expanduser()
    if root.exists() and not root.is_dir():
        raise StoreError(f"run.root={plan.root}: a file, not a directory; give a directory")
    if write:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"run.root={plan.root}: cannot be made ({error.strerror}); give a directory that you can write to"
            ) from None
    return plan

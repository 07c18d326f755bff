"""What a command is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def _none(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


@dataclass(frozen=True)
class Command:
    """A command: its name, what help says, its function and its options.

    run: takes the parsed arguments, returns the exit code (0 fine, 1 a stage failed, 2 wrong recipe or argument).
    of_recipe: whether it takes a recipe and overrides. before: arguments that stand in front of the recipe.
    """

    name: str
    summary: str
    run: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], None] = _none
    of_recipe: bool = True
    before: Callable[[argparse.ArgumentParser], None] = _none

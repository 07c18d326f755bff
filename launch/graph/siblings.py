"""Branches that others start from: the same recipe and overrides without those that say how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from common.errors import ConfigError
from launch.recipe.compose import Composed
from launch.stages.contract import Sibling

START = "start:"  # before the roles of stages that make what a branch starts from


class Siblings:
    """Finds a branch by its name; composes each choice of overrides once."""

    def __init__(self, overrides: Sequence[str], compose: Callable[[Sequence[str]], Mapping[str, Composed]]) -> None:
        """compose: overrides -> the branches of the recipe by name."""
        self._overrides, self._compose = overrides, compose
        self._known: dict[tuple[str, ...], Mapping[str, Composed]] = {}

    def __call__(self, given: Sibling) -> Composed:
        """Raises ConfigError, naming the branches that there are, for an unknown one."""
        left = tuple(one for one in self._overrides if one.lstrip("+").partition("=")[0] not in given.without)
        if left not in self._known:
            self._known[left] = self._compose(left)
        found = self._known[left]
        if given.branch not in found:
            raise ConfigError(
                f"{given.field}={given.branch}: no branch is called so without {', '.join(given.without)}; allowed: "
                f"{', '.join(found)}, or the directory of a model, written with a /"
            )
        return found[given.branch]

"""Graders by name, one file for each family; one of your own is named by dotted path.

`names()` and `load(name)`; rows name a grader as `name`, `name:argument`, `package.module`,
`package.module:attribute` or `package.module:attribute:argument`.
"""

from __future__ import annotations

from functools import lru_cache

from common.errors import ConfigError
from common.registry import Registry
from evaluation.graders.contract import Grade, Grader

__all__ = ["Grade", "Grader", "load", "names", "parse"]

_registry = Registry(
    "evaluation.graders", Grader, "grader", apart=("contract", "announcements", "extraction", "formulas")
)
names, load = _registry.names, _registry.load


def parse(grader: str) -> tuple[Grader, str]:
    """The grader and the argument that a row names. Raises ConfigError for an unknown one or a bad argument."""
    if not isinstance(grader, str):
        raise ConfigError(f"grader: {grader!r} is not text; name one of {', '.join(names())}")
    return _parsed(grader)


@lru_cache(maxsize=256)
def _parsed(grader: str) -> tuple[Grader, str]:
    name, _, argument = grader.partition(":")
    if name not in names():
        attribute, _, rest = argument.partition(":")
        if attribute.isidentifier():
            name, argument = f"{name}:{attribute}", rest
    found = load(name)
    try:
        found.check(argument)
    except ValueError as error:
        raise ConfigError(f"grader: {grader!r}: {error}") from None
    return found, argument

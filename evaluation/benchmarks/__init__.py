"""Published benchmarks by name, one file for each area; one of your own is named by dotted path."""

from __future__ import annotations

from common.registry import Registry
from evaluation.benchmarks.contract import Published

__all__ = ["Published", "load", "names"]

_registry = Registry("evaluation.benchmarks", Published, "benchmark", apart=("contract",))


def names() -> list[str]:
    """Names of the benchmarks of this package, in alphabetical order."""
    return _registry.names()


def load(name: str) -> Published:
    """The benchmark called `name`, or one's own by dotted path. Raises ConfigError for an unknown one."""
    return _registry.load(name)

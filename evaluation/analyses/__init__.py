"""Analyses by name, one file each; one of your own is named by dotted path."""

from __future__ import annotations

from common.registry import Registry
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table

__all__ = ["Analysis", "Figure", "Findings", "Given", "Table", "load", "names"]

_registry = Registry("evaluation.analyses", Analysis, "analysis", apart=("contract",))


def names() -> list[str]:
    """Names of the analyses of this package, in alphabetical order."""
    return _registry.names()


def load(name: str) -> Analysis:
    """The analysis called `name`, or one's own by dotted path. Raises ConfigError for an unknown one."""
    return _registry.load(name)

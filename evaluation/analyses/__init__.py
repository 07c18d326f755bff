"""Analyses by name, one file each; one of your own is named by dotted path."""

from __future__ import annotations

from common.registry import Registry
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table

__all__ = ["Analysis", "Figure", "Findings", "Given", "Table", "load", "names"]

_registry = Registry("evaluation.analyses", Analysis, "analysis", apart=("contract",))
names, load = _registry.names, _registry.load

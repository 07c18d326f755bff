"""Published benchmarks by name, one file for each area; one of your own is named by dotted path."""

from __future__ import annotations

from common.registry import Registry
from evaluation.benchmarks.contract import Published, user

__all__ = ["Published", "load", "names", "user"]

_registry = Registry("evaluation.benchmarks", Published, "benchmark", apart=("contract",))
names, load = _registry.names, _registry.load

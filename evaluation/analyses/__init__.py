"""Analyses by name, one file each; one of your own is named by dotted path."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from common.errors import ConfigError
from common.registry import Registry
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table

__all__ = ["Analysis", "Figure", "Findings", "Given", "Table", "beat", "check_settings", "load", "names"]

_registry = Registry("evaluation.analyses", Analysis, "analysis", apart=("contract", "synthetic", "bench"))
names, load = _registry.names, _registry.load


def check_settings(name: str, values: Any) -> Any:
    """The settings `values` of the analysis `name` as its section, or None if it has none. Raises ConfigError."""
    section = load(name).section
    if section is None:
        if values:
            raise ConfigError(f"analysis {name!r}: takes no settings, found {', '.join(map(str, values))}")
        return None
    try:
        return section.model_validate(dict(values or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        allowed = ", ".join(section.model_fields)
        raise ConfigError(f"analysis {name!r}: settings.{place}: {first['msg']}; its settings: {allowed}") from None

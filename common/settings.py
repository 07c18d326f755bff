"""A stage's typed settings as JSON, for a child process, and back."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel


def describe(settings: BaseModel) -> dict[str, Any]:
    """{"type": "module:Class", "values": ...} of settings whose class is a module's attribute, as JSON values."""
    kind = type(settings)
    return {"type": f"{kind.__module__}:{kind.__qualname__}", "values": settings.model_dump(mode="json")}


def rebuild(description: dict[str, Any]) -> Any:
    """The settings that `describe` described, validated. Raises pydantic's ValidationError."""
    module, _, name = description["type"].partition(":")
    return getattr(importlib.import_module(module), name).model_validate(description["values"])

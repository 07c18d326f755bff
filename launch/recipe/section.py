"""What every section of a recipe is made of.

A field made with `runtime` says how or where work is done and is never part of an artifact's identity; every other
field is, but one made with `later` only where it differs from its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from launch.recipe.fields import field_of


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field whose value is part of an artifact's identity; `bounds` are pydantic's (gt, ge, lt, le, ...)."""
    return Field(default, description=description, validate_default=True, **bounds)


def later(default: Any, description: str, **bounds: Any) -> Any:
    """A `setting` that came when there were artifacts already, whose default is what was done without it: at its
    default it is not part of the identity, so that they stay what they are."""
    return Field(
        default, description=description, validate_default=True, json_schema_extra={"identity": "changed"}, **bounds
    )


def runtime(default: Any, description: str, **bounds: Any) -> Any:
    """A field that says how or where to compute, never what: not part of any fingerprint."""
    return Field(
        default, description=description, validate_default=True, json_schema_extra={"identity": False}, **bounds
    )


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, protected_namespaces=()
    )


def is_runtime(info: Any) -> bool:
    """Whether a pydantic field was made with `runtime`."""
    return _identifies(info) is False


def _identifies(info: Any) -> bool | str:
    """Whether a field is part of the identity: True, False, or "changed", where only a value unlike its default is."""
    return info.json_schema_extra["identity"] if isinstance(info.json_schema_extra, dict) else True


PLANNED = ("sweep", "selection")  # runtime fields that make another plan of the same stages


def is_runtime_path(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the field at a dotted path says only how a plan is run: it changes neither its stages nor which ones."""
    if not path or path[0] in PLANNED:
        return False
    current: Any = schema
    for depth, part in enumerate(path):
        is_section = isinstance(current, type) and issubclass(current, BaseModel)
        info = field_of(current, part) if is_section else None
        if info is None:
            return False
        if is_runtime(info):
            return True
        current = info.annotation
        whole = depth == len(path) - 1 and isinstance(current, type) and issubclass(current, BaseModel)
        if whole and current.model_fields:
            return all(is_runtime(one) for one in current.model_fields.values())
    return False


def identity(section: BaseModel) -> dict[str, Any]:
    """The fields of `section` that identify a result, as JSON values, recursively; `runtime` fields are left out, and
    those made with `later` that have their default."""
    found = {}
    for name, info in type(section).model_fields.items():
        value, part = getattr(section, name), _identifies(info)
        if part is True or (part == "changed" and value != info.default):
            found[name] = _identity(value)
    return found


def _identity(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    return value

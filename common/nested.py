"""Nested mappings by dotted keys, as overrides name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c.d": 2} as {"a.b": 1, "c.d": 2}; an empty mapping leaves nothing."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found

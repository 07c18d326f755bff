"""Experiment trackers, one file each, found by its name; one's own by dotted path (docs/launch.md)."""

from __future__ import annotations

from common.registry import Registry
from launch.trackers.contract import Tracker

_REGISTRY: Registry[Tracker] = Registry(__name__, Tracker, "tracker", apart=("contract",))


def names() -> list[str]:
    """The trackers of this package, in alphabetical order."""
    return _REGISTRY.names()


def load(name: str) -> Tracker:
    """The tracker `name`, or the user's own by dotted path. Raises ConfigError for an unknown one."""
    return _REGISTRY.load(name)

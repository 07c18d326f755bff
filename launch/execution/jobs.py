"""What a driver knows of its stages and of the children that run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.graph.plan import Stage

FINISHED = frozenset({"cached", "done", "failed", "blocked", "stopped"})
RETRIED = frozenset({"fault", "timeout", "hung", "lost", "stopped"})


@dataclass
class StageProgress:
    """What this driver knows of one stage.

    States: waiting, held (by another driver), queued (for devices), running, and the ones in FINISHED.
    """

    stage: Stage
    state: str = "waiting"
    message: str = ""
    faults: int = 0
    halved: bool = False
    mended: bool = False
    not_before: float = 0.0
    attempt: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    ready_since: float | None = None
    waited: float = 0.0


@dataclass
class Job:
    """Stages that run in one child, and Ray's handles of it; `stages` are those that have not ended.

    engine: what they have in common with others that could run in that child.
    """

    stages: list[Stage]
    placement: dict[str, Any]
    group: Any = None
    task: Any = None
    lent: float = 0.0
    started: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)
    engine: str = ""


def devices(placement: dict[str, Any]) -> float:
    """Devices over all nodes of a placement."""
    return placement["nodes"] * placement["gpus_per_node"]


def halve(settings: dict[str, Any], fields: Sequence[str]) -> dict[str, Any] | None:
    """A copy of settings with the runtime `fields` ("sft.micro_batch_size") halved; None if none is above 1."""
    found = [(section, name) for section, name in (one.split(".") for one in fields) if section in settings]
    if not any(settings[section][name] > 1 for section, name in found):
        return None
    smaller = dict(settings)
    for section, name in found:
        smaller[section] = {**smaller[section], name: max(1, settings[section][name] // 2)}
    return smaller

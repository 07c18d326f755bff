"""What a driver knows of its stages and of the children that run them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from launch.graph.plan import Stage
from launch.stages.contract import StageKind

FINISHED = frozenset({"cached", "done", "paused", "failed", "blocked", "stopped"})
RETRIED = frozenset({"fault", "timeout", "hung", "lost", "stopped"})


@dataclass
class StageProgress:
    """What this driver knows of one stage.

    States: waiting, held (by another driver), fetching (from the replica), queued (for devices), running, and the ones
    in FINISHED. traceback: of its last fault, as a digest.
    """

    stage: Stage
    state: str = "waiting"
    message: str = ""
    faults: int = 0
    halved: bool = False
    mended: bool = False
    asked: bool = False
    traceback: str = ""
    not_before: float = 0.0
    attempt: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    ready_since: float | None = None
    waited: float = 0.0


@dataclass
class Job:
    """Stages that run in one child, and Ray's handles of it; `stages` are those that have not ended.

    engine: what they have in common with others that could run in that child. turns: whether a cluster serves one
    job of this kind at a time. parted: whether it was asked to leave the rest of its stages to other devices.
    """

    stages: list[Stage]
    placement: dict[str, Any]
    group: Any = None
    task: Any = None
    lent: float = 0.0
    started: float = 0.0
    tag: str = ""
    attempts: dict[str, int] = field(default_factory=dict)
    engine: str = ""
    turns: bool = False
    parted: bool = False


def devices(placement: dict[str, Any]) -> float:
    """Devices over all nodes of a placement."""
    return placement["nodes"] * placement["gpus_per_node"]


def halve(settings: dict[str, Any], kind: StageKind) -> dict[str, Any] | None:
    """A copy of settings with the kind's runtime fields ("sft.micro_batch_size") halved as far as is legal.

    None where none of them may be smaller.
    """
    smaller = dict(settings)
    for section, name in (one.split(".") for one in kind.halves):
        if section in settings:
            smaller[section] = {**smaller[section], name: kind.halved(settings, f"{section}.{name}")}
    return None if smaller == settings else smaller

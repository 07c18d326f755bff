"""Stages that share an engine, or a cluster by turns: which ones can, and where they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launch.execution.jobs import Job, StageProgress, devices
from launch.graph.plan import Stage
from launch.stages.contract import StageKind


def engine_of(kind: StageKind, stage: Stage, halved: bool) -> str:
    """What two stages have in common that can run in one child."""
    return json.dumps([stage.kind, kind.engine(stage.settings), stage.placement, halved], sort_keys=True)


class Engines:
    """`engine_of` of stages, each worked out once: a driver asks in every round for all that are ready."""

    def __init__(self, kinds: Mapping[str, StageKind]) -> None:
        self.kinds = kinds
        self.found: dict[tuple[str, bool], str] = {}

    def of(self, progress: StageProgress) -> str:
        """What a stage, as it is to run now, has in common with others that can run in one child."""
        stage, key = progress.stage, (progress.stage.fingerprint, progress.halved)
        if key not in self.found:
            self.found[key] = engine_of(self.kinds[stage.kind], stage, progress.halved)
        return self.found[key]


def free_places(engine: str, placement: dict[str, Any], total: float, busy: Sequence[Job]) -> int:
    """How many jobs of this placement could start now, 0 where more wait than fit; of one without device one at a time.

    total: devices of the cluster. busy: jobs that run or wait for devices.
    """
    wanted = devices(placement)
    if wanted:
        return max(0, int((total - sum(devices(job.placement) for job in busy)) // wanted))
    return 0 if any(job.engine == engine for job in busy) else 1


def waits_for_turn(job: Job, running: Sequence[Job]) -> bool:
    """Whether another job has the cluster that this one would join, which serves one of them (`StageKind.joins`)."""
    return job.turns and any(other.turns for other in running)

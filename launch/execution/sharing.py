"""Stages that share an engine, or a cluster by turns: which ones can, where they fit, and when they part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launch.execution.jobs import Job, StageProgress, devices
from launch.graph.estimate import Estimate
from launch.graph.plan import Stage
from launch.stages.contract import StageKind

WORTH_A_START = 120.0  # seconds of stages not begun for which another engine is started


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


def shared_out(running: Sequence[Job], total: float, estimates: Mapping[str, Estimate]) -> list[Job]:
    """The job whose child should begin no more, so that idle devices get their share of its stages; [] if none should.

    It is the one with the longest work ahead, as estimated, if that is worth another start; a job is named once.

    total: devices of the cluster. estimates: of every stage, by fingerprint.
    """
    free = total - sum(devices(job.placement) for job in running)

    def ahead(job: Job) -> float:
        return sum(estimates[stage.fingerprint].seconds for stage in job.stages[1:])

    fitting = [job for job in running if 0 < devices(job.placement) <= free and not job.turns and not job.parted]
    longest = max(fitting, key=ahead, default=None)
    if longest is None or ahead(longest) < WORTH_A_START:
        return []
    longest.parted = True
    return [longest]


def waits_for_turn(job: Job, running: Sequence[Job]) -> bool:
    """Whether another job has the cluster that this one would join, which serves one of them (`StageKind.joins`)."""
    return job.turns and any(other.turns for other in running)

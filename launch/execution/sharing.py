"""Stages that share an engine, or a cluster by turns: which ones can, where they fit, and when they part."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from launch.execution.jobs import Job, StageProgress, devices
from launch.graph.plan import Stage
from launch.stages.contract import StageKind

IDLE = 20.0  # seconds after which a device is not just between two stages
START = 60.0  # seconds that an engine may take to start


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


def devices_left(total: float, busy: Iterable[Job]) -> float:
    """Devices of a cluster of `total` that these jobs do not hold."""
    return total - sum(devices(job.placement) for job in busy)


def free_places(engine: str, placement: dict[str, Any], total: float, busy: Sequence[Job]) -> int:
    """How many jobs of this placement could start now, 0 where more wait than fit; of one without device one at a time.

    total: devices of the cluster. busy: jobs that run or wait for devices.
    """
    wanted = devices(placement)
    if wanted:
        return max(0, int(devices_left(total, busy) // wanted))
    return 0 if any(job.engine == engine for job in busy) else 1


class IdleDevices:
    """Which child should begin no more, so that devices which have idled for a while get their share of its stages.

    free: gives the devices that the cluster has free, which others may use too; asked only where some seem to idle.
    """

    def __init__(self, free: Callable[[], float]) -> None:
        self._free, self._since = free, float("inf")

    def share_out(self, running: Sequence[Job], queued: Sequence[Job], total: float, now: float) -> list[Job]:
        """The job whose unbegun stages are worth giving out again, or []: one job at a time, and each once.

        A stage is taken to last as long as those of its job have so far, the start of the engine among it. Worth it is
        a job that ends earlier by more than `START` on all the places that there will be.

        total: devices of the cluster. now: of `time.monotonic`, in seconds.
        """
        free = 0.0 if queued else devices_left(total, running)
        self._since = min(self._since, now) if free > 0 else float("inf")
        if now - self._since < IDLE or any(job.parted for job in running):
            return []
        best = max(running, key=lambda job: _gain(job, free, now), default=None)
        if best is None or _gain(best, free, now) < START or self._free() < devices(best.placement):
            return []
        best.parted = True
        return [best]


def _gain(job: Job, free: float, now: float) -> float:
    """Seconds by which a job would end earlier if what it has not begun ran on the free devices too."""
    wanted, ahead = devices(job.placement), len(job.stages) - 1
    if not 0 < wanted <= free or job.turns or ahead < 1:
        return 0.0
    places = int((free + wanted) // wanted)
    each = (now - job.started) / (len(job.attempts) - ahead)
    return each * (ahead - math.ceil(ahead / places))


def waits_for_turn(job: Job, running: Sequence[Job]) -> bool:
    """Whether another job has the cluster that this one would join, which serves one of them (`StageKind.joins`)."""
    return job.turns and any(other.turns for other in running)

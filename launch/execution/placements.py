"""Ray's placement groups of jobs, and the tasks that supervise them."""

from __future__ import annotations

import time
from typing import Any

from launch.execution.jobs import Job, devices
from launch.execution.supervisor import supervise


class Looks:
    """When to look whether groups were granted: often for a second after something changed here, else twice a second,
    for what others give back."""

    def __init__(self) -> None:
        self._changed = self._last = float("-inf")

    def changed(self) -> None:
        """A job was queued, or gave back its devices."""
        self._changed = time.monotonic()

    def due(self) -> bool:
        """Whether to look now."""
        now = time.monotonic()
        if now - self._changed > 1.0 and now - self._last < 0.5:
            return False
        self._last = now
        return True


def _reserve(placement: dict[str, Any]) -> Any:
    """Asks for a placement group of `nodes` bundles; it may be there later."""
    import ray

    bundle = {"CPU": placement["cpus"]}
    if placement["gpus_per_node"]:
        bundle["GPU"] = placement["gpus_per_node"]
    bundles = [dict(bundle) for _ in range(placement["nodes"])]
    return ray.util.placement_group(bundles, strategy=placement["strategy"])


def granted(job: Job) -> bool:
    """Whether the job has its devices; they are asked for if they were not yet.

    Not by `PlacementGroup.wait`: of every call that runs out of time Ray 2.60's control service keeps 18 kB for as long
    as the group waits, which was four megabytes a second.
    """
    import ray

    if job.group is None:
        job.group = _reserve(job.placement)
    return ray.util.placement_group_table(job.group).get("state") == "CREATED"


def free_devices() -> float:
    """Devices of the cluster that no group has, whoever asked for it."""
    import ray

    return ray.available_resources().get("GPU", 0.0)


def give_back(job: Job) -> None:
    """Returns a job's devices."""
    import ray

    if job.group is not None:
        ray.util.remove_placement_group(job.group)
        job.group = None


def start(job: Job, description: dict[str, Any]) -> None:
    """Starts the supervisor on the job's first bundle; a job over several nodes gives its bundles to its child."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources: dict[str, Any] = {"num_cpus": 0}
    if job.placement["nodes"] > 1:
        give_back(job)
        job.lent = devices(job.placement)
    else:
        resources = {
            "num_cpus": job.placement["cpus"],
            "num_gpus": job.placement["gpus_per_node"],
            "scheduling_strategy": PlacementGroupSchedulingStrategy(job.group, placement_group_bundle_index=0),
        }
    job.task = ray.remote(supervise).options(max_retries=0, **resources).remote(description)

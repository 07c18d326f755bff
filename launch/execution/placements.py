"""Ray's placement groups of jobs, and the tasks that supervise them."""

from __future__ import annotations

from typing import Any

from launch.execution.jobs import Job, devices
from launch.execution.supervisor import supervise


def reserve(placement: dict[str, Any]) -> Any:
    """Asks for a placement group of `nodes` bundles; it may be there later."""
    import ray

    bundle = {"CPU": placement["cpus"]}
    if placement["gpus_per_node"]:
        bundle["GPU"] = placement["gpus_per_node"]
    bundles = [dict(bundle) for _ in range(placement["nodes"])]
    return ray.util.placement_group(bundles, strategy=placement["strategy"])


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

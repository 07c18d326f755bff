"""Replicas of a sharded model: each a group of processes that fill a shard together.

A rank is a Ray actor with one device. Each fills its rows of a shard's arrays, and this process joins and writes them,
so the bytes of a cache do not depend on the number of ranks.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.errors import ConfigError
from common.ports import free_port, node_address
from common.ray_session import LOOPBACK, ray_session
from data_prep.reference import writer
from data_prep.reference.layout import Layout
from data_prep.reference.producers.contract import Heartbeat
from data_prep.reference.tokens import HEARTBEAT_SECONDS, Job
from data_prep.reference.workers import Worker

REASON_LENGTH = 300  # characters of another process's error that are shown


class Rank(Worker):
    """One process of a replica, a Ray actor with this environment; `join` makes it a worker."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)

    def meeting_point(self) -> tuple[str, int]:
        """This node's address, and a port that is free there."""
        return node_address(), free_port()

    def join(self, rank: int, address: str, port: int, arguments: tuple[Any, ...]) -> None:
        """Meet the other ranks and build the producer; arguments are those of Worker."""
        settings = arguments[0]
        if address == LOOPBACK:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        backend = "cpu:gloo,cuda:nccl"
        if settings.platform.name == "cpu":
            from verl_cpu import plugin

            plugin.require_active()
            backend = "gloo"
        else:
            torch.cuda.set_device(0)  # Ray shows an actor its own device alone
        dist.init_process_group(
            backend, init_method=f"tcp://{address}:{port}", rank=rank, world_size=settings.cache.processes
        )
        super().__init__(*arguments)


def compute(
    arguments: tuple[Any, Path, Path, Layout, np.ndarray | None],
    jobs: Sequence[Job],
    replicas: int,
    heartbeat: Heartbeat,
) -> Iterator[dict[str, Any]]:
    """Records of the jobs as they finish, computed by replicas of `cache.processes` ranks each.

    `arguments` are those of Worker. Raises ConfigError that a rank raised, RuntimeError (one line) as soon as a rank
    fails or is lost; none outlives it.
    """
    import ray

    settings, _, scratch, layout, _ = arguments
    processes, cpu = settings.cache.processes, settings.platform.name == "cpu"
    # verl chooses its platform when it is imported, which is before a Rank exists
    platform = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "verl_cpu.plugin"} if cpu else {}
    with ray_session(replicas * processes):
        actor: Any = ray.remote(num_cpus=1, num_gpus=0 if cpu else 1, runtime_env={"env_vars": platform})(Rank)
        groups = [[actor.remote(settings.platform.env) for _ in range(processes)] for _ in range(replicas)]
        try:
            _join(groups, arguments, heartbeat)
            for job, arrays in _deal(groups, jobs, heartbeat):
                record = writer.write_shard(scratch, job.file, job.layout(layout), arrays)
                heartbeat(record["tokens"])
                yield record
        finally:
            for group in groups:
                for rank in group:
                    ray.kill(rank)  # one that waits for a lost peer does not end by itself


def _join(groups: list[list[Any]], arguments: tuple[Any, ...], heartbeat: Heartbeat) -> None:
    asked = {rank.meeting_point.remote(): rank for group in groups for rank in group}
    points = dict(_as_they_end(asked, heartbeat))
    joining = {}
    for group in groups:
        address, port = points[group[0]]
        if len({points[rank][0] for rank in group}) == 1:
            address = LOOPBACK
        joining.update({rank.join.remote(index, address, port, arguments): rank for index, rank in enumerate(group)})
    for _ in _as_they_end(joining, heartbeat):
        pass


def _deal(
    groups: list[list[Any]], jobs: Sequence[Job], heartbeat: Heartbeat
) -> Iterator[tuple[Job, dict[str, np.ndarray]]]:
    """Jobs and their arrays as they finish; a group has one job at a time."""
    waiting = iter(jobs)
    running: dict[Any, tuple[Job, list[Any]]] = {}
    parts: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)

    def start(group: list[Any]) -> None:
        job = next(waiting, None)
        if job is not None:
            running.update({rank.arrays.remote(job): (job, group) for rank in group})

    for group in groups:
        start(group)
    for (job, group), part in _as_they_end(running, heartbeat):
        parts[job.file].append(part)
        if len(parts[job.file]) == len(group):
            start(group)
            yield job, joined(parts.pop(job.file))


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One shard's arrays from its ranks'. A row is filled by one rank, or alike by all; elsewhere its bits are zero."""
    union = functools.partial(functools.reduce, np.bitwise_or)
    return {
        name: union([part[name].view(np.uint8) for part in parts]).view(like.dtype) for name, like in parts[0].items()
    }


def _as_they_end(running: dict[Any, Any], heartbeat: Heartbeat) -> Iterator[tuple[Any, Any]]:
    """(value, result) of Ray tasks, taken out of {task: value} as they end; tasks may be added meanwhile."""
    import ray

    while running:
        ended, _ = ray.wait(list(running), timeout=HEARTBEAT_SECONDS)
        heartbeat(0)
        for task in ended:
            yield running.pop(task), _result(task)


def _result(task: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(task)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from error
        reason = " ".join(f"{type(cause or error).__name__}: {cause or error}".split())
        raise RuntimeError(
            f"a process of the cache stage (cache.processes) failed or was lost: {reason[:REASON_LENGTH]}"
        ) from error

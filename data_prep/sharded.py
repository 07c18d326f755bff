"""The forward pass of a model that is larger than a device: its weights lie sharded over the ranks of a replica.

A rank is a Ray actor with one device; the ranks of a replica build the model with verl's forward-only FSDP2 engine.
Each fills its rows of a shard's arrays, and this process joins and writes them, so the bytes of a cache do not depend
on the number of ranks.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.ports import free_port, node_address
from common.ray_session import LOOPBACK
from data_prep import reference_cache
from data_prep.cache import POLL_SECONDS, SCALED, ForwardProducer, Heartbeat, Job, Worker, length_batches, ray_session
from data_prep.reference_cache import Layout
from sft_objectives.fused.engine_hook import FusedHead, obstacle

REASON_LENGTH = 300  # characters of another process's error that are shown


# a rank


class ShardedProducer(ForwardProducer):
    """A forward pass of one model over all ranks of torch.distributed, each with batches of its own.

    FSDP2 gathers one layer at a time, and only while all ranks are in the same layer: they make equally many calls, and
    a rank that has no batch left runs a single token. The output head is gathered once and kept, (V, D). `rows` yields
    this rank's batches. Raises ValueError as `ForwardProducer` does.
    """

    def _load(self, directory: Path, dtype: str, model: SimpleNamespace) -> None:
        self.model = forward_engine(directory, dtype, model).module.eval()
        reason = obstacle(self.model)
        if reason is not None:
            raise ValueError(f"{directory}: {reason}; not supported")
        self.fused = FusedHead(self.model)
        try:
            live = self.fused.live(lambda: self._logits(self._token()), lambda hidden: hidden.flatten(0, 1)).live
        except ValueError:
            raise ValueError(f"{directory}: {SCALED}") from None
        assert live is not None
        weight, bias = (None if whole is None else whole.to(self.device) for whole in live[1:])
        assert weight is not None
        self.head = functools.partial(torch.nn.functional.linear, weight=weight, bias=bias)
        self.vocab_size = len(weight)

    def _token(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.int64, device=self.device)

    def _logits(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits

    def hidden(self, ids: Tensor) -> Tensor:
        return self.fused.hidden(lambda: self._logits(ids))

    @torch.no_grad()  # FSDP2 cannot gather inference tensors
    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        batches = list(length_batches([len(ids) for ids in chats], self.tokens_per_batch))
        for first in range(0, len(batches), dist.get_world_size()):
            own = first + dist.get_rank()
            if own >= len(batches):
                self.hidden(self._token())
                continue
            batch = batches[own]
            yield batch, self.batch_rows(chats, positions, batch, top_k)
            heartbeat(sum(len(positions[index]) for index in batch))


def forward_engine(directory: Path, dtype: str, model: SimpleNamespace) -> Any:
    """verl's engine with the model of `directory` sharded over all ranks, to compute in `dtype` and never to train.

    Between forward passes a rank holds its share of the weights alone; on a GPU verl keeps that in the host's memory.
    While the model is read, rank 0 (with tied embeddings every rank) holds all of it in the host's memory.
    """
    from verl.trainer.config import CheckpointConfig
    from verl.utils.device import get_device_name
    from verl.workers.config import FSDPEngineConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=str(directory),
            load_tokenizer=False,
            trust_remote_code=model.trust_remote_code,
            external_lib="verl_cpu.engine" if get_device_name() == "cpu" else None,
            override_config={"attn_implementation": model.attention},
            enable_gradient_checkpointing=False,
            use_remove_padding=False,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            forward_only=True,
            reshard_after_forward=True,
            # verl casts buffers to this type too, and rotary frequencies must stay float32; weights are gathered in the
            # type below
            model_dtype="fp32",
            mixed_precision={
                "param_dtype": {"float32": "fp32", "bfloat16": "bf16"}[dtype],
                "reduce_dtype": "fp32",
                "buffer_dtype": "fp32",
            },
            use_torch_compile=False,
        ),
        optimizer_config=None,
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


class Rank(Worker):
    """One process of a replica, a Ray actor with this environment; `join` makes it a worker."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)

    def meeting_point(self) -> tuple[str, int]:
        """This node's address, and a port that is free there."""
        return node_address(), free_port()

    def join(self, rank: int, address: str, port: int, arguments: tuple[Any, ...]) -> None:
        """Meet the other ranks and build the producer; arguments are Worker's."""
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


# the process that writes


def compute(
    settings: SimpleNamespace,
    model: Path,
    scratch: Path,
    layout: Layout,
    allowed: np.ndarray | None,
    jobs: Sequence[Job],
    replicas: int,
    heartbeat: Heartbeat,
) -> Iterator[dict[str, Any]]:
    """Records of the jobs as they finish, computed by replicas of `cache.processes` ranks each.

    Raises ValueError that a rank raised, RuntimeError (one line) as soon as a rank fails or is lost; none outlives it.
    """
    import ray

    processes, cpu = settings.cache.processes, settings.platform.name == "cpu"
    # verl chooses its platform when it is imported, which is before a Rank exists
    platform = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "verl_cpu.plugin"} if cpu else {}
    with ray_session(replicas * processes):
        actor: Any = ray.remote(num_cpus=1, num_gpus=0 if cpu else 1, runtime_env={"env_vars": platform})(Rank)
        groups = [[actor.remote(settings.platform.env) for _ in range(processes)] for _ in range(replicas)]
        try:
            _join(groups, (settings, model, scratch, layout, allowed), heartbeat)
            for job, arrays in _deal(groups, jobs, heartbeat):
                record = reference_cache.write_shard(scratch, job.file, job.layout(layout), arrays)
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
        ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
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
        if isinstance(cause, ValueError):
            raise ValueError(str(cause)) from error
        reason = " ".join(f"{type(cause or error).__name__}: {cause or error}".split())
        raise RuntimeError(
            f"a process of the cache stage (cache.processes) failed or was lost: {reason[:REASON_LENGTH]}"
        ) from error

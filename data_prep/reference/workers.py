"""One model replica that computes files of a cache, here or as a Ray actor beside others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import ConfigError
from common.ray_session import ray_session
from data_prep.reference import writer
from data_prep.reference.codec import encode
from data_prep.reference.layout import SUPERVISED, TOKEN_FIELDS, Layout
from data_prep.reference.producers.contract import Heartbeat, Producer
from data_prep.reference.reader import label_checksum
from data_prep.reference.tokens import HEARTBEAT_SECONDS, Job, Tokens


def fill_shard(
    job: Job, tokens: Tokens, producer: Producer, layout: Layout, heartbeat: Heartbeat = lambda count: None
) -> dict[str, np.ndarray]:
    """Arrays of one shard, as `writer.write_shard` takes them."""
    chats = [tokens.chat(chat) for chat in job.chats]
    positions = [job.positions(mask) for _, mask in chats]
    counts = [len(kept) for kept in positions]
    arrays = layout.allocate(sum(counts), len(chats))
    arrays["offsets"][1:] = np.cumsum(counts)
    for index, (ids, _) in enumerate(chats):
        arrays["label_checksum"][index] = label_checksum(ids[positions[index]])
    if SUPERVISED in layout.fields:
        arrays[SUPERVISED][:] = np.concatenate([mask[kept] for (_, mask), kept in zip(chats, positions, strict=True)])
    for batch, found in producer.rows([ids for ids, _ in chats], positions, layout.top_k, heartbeat):
        if not found:
            continue
        spans = [(int(arrays["offsets"][index]), int(arrays["offsets"][index + 1])) for index in batch]
        target = np.concatenate([np.arange(*span) for span in spans])
        packed = encode(
            found["support_ids"], found["support_logprobs"], encoding=layout.encoding, id_bits=layout.id_bits
        )
        arrays["packed"][target] = packed.cpu().numpy()
        for name in set(layout.fields) & set(TOKEN_FIELDS):
            arrays[name][target] = found[name].cpu().numpy()
        losses = -found["label_logprob"].double().cpu().numpy()
        ends = np.cumsum([end - start for start, end in spans])
        for index, (start, end), last in zip(batch, spans, ends, strict=True):
            if end > start:
                arrays["mean_loss"][index] = losses[last - (end - start) : last].mean()
    return arrays


def make_producer(settings: Any, directory: Path, allowed: np.ndarray | None) -> Producer:
    """The producer that `cache.producer` names; allowed: ids that may have probability, None for all."""
    if settings.cache.producer == "vllm":
        from data_prep.reference.producers.vllm import VllmProducer

        return VllmProducer(directory, settings, allowed)
    if settings.cache.processes > 1:
        from data_prep.reference.producers.sharded import ShardedProducer

        return ShardedProducer(directory, settings.cache, settings.model, allowed)
    from data_prep.reference.producers.forward import ForwardProducer

    return ForwardProducer(directory, settings.cache, settings.model, allowed)


class Worker:
    """One model replica, or one process of it; a Ray actor when there are several."""

    def __init__(self, settings: Any, model: Path, scratch: Path, layout: Layout, allowed: np.ndarray | None):
        torch.set_num_threads(settings.platform.threads)
        self.producer = make_producer(settings, model, allowed)
        self.tokens, self.scratch, self.layout = Tokens.open(scratch), scratch, layout
        if self.producer.vocab_size != layout.vocab_size:
            raise ConfigError(f"{model}: {self.producer.vocab_size} ids, expected {layout.vocab_size}")

    def arrays(self, job: Job, heartbeat: Heartbeat = lambda count: None) -> dict[str, np.ndarray]:
        """Arrays of one file; of one process of several its rows, and zeros."""
        return fill_shard(job, self.tokens, self.producer, job.layout(self.layout), heartbeat)

    def compute(self, job: Job, heartbeat: Heartbeat = lambda count: None) -> dict[str, Any]:
        """Write one file; returns its record."""
        arrays = self.arrays(job, heartbeat)
        return writer.write_shard(self.scratch, job.file, job.layout(self.layout), arrays)


def compute_on_ray(
    settings: Any, arguments: tuple[Any, ...], jobs: Sequence[Job], workers: int, heartbeat: Heartbeat
) -> Iterator[dict[str, Any]]:
    """Records of the jobs as they finish, in no order; `arguments` are those of Worker."""
    import ray
    from ray.util import ActorPool

    with ray_session(workers):
        gpus = settings.cache.tensor_parallel if settings.platform.name == "gpu" else 0
        actor: Any = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
        pool = ActorPool([actor.remote(*arguments) for _ in range(workers)])
        for job in jobs:
            pool.submit(lambda worker, item: worker.compute.remote(item), job)
        while pool.has_next():
            try:
                record: Any = pool.get_next_unordered(timeout=HEARTBEAT_SECONDS)
            except TimeoutError:
                heartbeat(0)
                continue
            heartbeat(record["tokens"])
            yield record

"""One model replica that computes files of a cache, here or as a Ray actor beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    ((_, arrays),) = filled_shards([job], tokens, producer, lambda _: layout, heartbeat)
    return arrays


def filled_shards(
    jobs: Iterable[Job],
    tokens: Tokens,
    producer: Producer,
    layout_of: Callable[[Job], Layout],
    heartbeat: Heartbeat = lambda count: None,
) -> Iterator[tuple[Job, dict[str, np.ndarray]]]:
    """Shards and their arrays, as `writer.write_shard` takes them.

    A batch is put into its arrays when the device has been given the next one, be it of the next shard: it computes
    that meanwhile.
    """
    full: tuple[Job, dict[str, np.ndarray]] | None = None
    last: Callable[[], None] | None = None
    for job in jobs:
        shard = Shard(job, tokens, layout_of(job))
        for batch, found in producer.rows(shard.ids, shard.positions, shard.layout.top_k, heartbeat):
            store = shard.take(batch, found)
            if last is not None:
                last()
            last = store
            if full is not None:
                yield full
                full = None
        if full is not None:  # this shard has no batch here
            if last is not None:
                last()
                last = None
            yield full
        full = job, shard.arrays
    if last is not None:
        last()
    if full is not None:
        yield full


class Shard:
    """The arrays of a shard, which fill up batch by batch."""

    def __init__(self, job: Job, tokens: Tokens, layout: Layout) -> None:
        chats = [tokens.chat(chat) for chat in job.chats]
        self.layout, self.ids = layout, [ids for ids, _ in chats]
        self.positions = [job.positions(mask) for _, mask in chats]
        counts = [len(kept) for kept in self.positions]
        self.arrays = layout.allocate(sum(counts), len(chats))
        self.arrays["offsets"][1:] = np.cumsum(counts)
        if SUPERVISED in layout.fields:
            masks = [mask[kept] for (_, mask), kept in zip(chats, self.positions, strict=True)]
            self.arrays[SUPERVISED][:] = np.concatenate(masks)

    def take(self, batch: Sequence[int], found: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Start to copy what a producer found to the host; the function that waits for it and puts it in its place."""
        if not found:
            return lambda: self._store(batch, {})
        packed = encode(
            found["support_ids"], found["support_logprobs"], encoding=self.layout.encoding, id_bits=self.layout.id_bits
        )
        names = {"label_logprob", *self.layout.fields} & set(TOKEN_FIELDS)
        tensors = {"packed": packed, **{name: found[name] for name in names}}
        copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        copied = torch.cuda.Event() if packed.is_cuda else None
        if copied is not None:
            copied.record()

        def store() -> None:
            if copied is not None:
                copied.synchronize()
            self._store(batch, {name: tensor.numpy() for name, tensor in copies.items()})

        return store

    def _store(self, batch: Sequence[int], found: Mapping[str, np.ndarray]) -> None:
        arrays = self.arrays
        for index in batch:
            arrays["label_checksum"][index] = label_checksum(self.ids[index][self.positions[index]])
        if not found:
            return
        losses = -found["label_logprob"].astype(np.float64)
        first = 0
        for index in batch:
            start, end = int(arrays["offsets"][index]), int(arrays["offsets"][index + 1])
            rows = slice(first, first + end - start)
            first = rows.stop
            for name in found.keys() & arrays.keys():
                arrays[name][start:end] = found[name][rows]
            if end > start:
                arrays["mean_loss"][index] = losses[rows].mean()


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
        (record,) = self.compute_all([job], heartbeat)
        return record

    def compute_all(self, jobs: Iterable[Job], heartbeat: Heartbeat = lambda count: None) -> Iterator[dict[str, Any]]:
        """Write files, each while the next is computed; their records, in order."""
        filled = filled_shards(jobs, self.tokens, self.producer, lambda job: job.layout(self.layout), heartbeat)
        yield from write_shards(self.scratch, ((job.file, job.layout(self.layout), arrays) for job, arrays in filled))


def write_shards(
    directory: Path, shards: Iterable[tuple[str, Layout, dict[str, np.ndarray]]]
) -> Iterator[dict[str, Any]]:
    """Write shards as they come, each while the next is made; their records, in order."""
    with ThreadPoolExecutor(1) as thread:
        writing: Future[dict[str, Any]] | None = None
        for name, layout, arrays in shards:
            if writing is not None:
                yield writing.result()
            writing = thread.submit(writer.write_shard, directory, name, layout, arrays)
        if writing is not None:
            yield writing.result()


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

"""Which requests a set of prompts makes, their seeds, and the shards that let a killed run go on."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.generation.contract import Backend, Request, Sample, Sampling

SCHEMA = pa.schema(
    [("text", pa.string()), ("finish_reason", pa.string()), ("tokens", pa.int32()), ("seed", pa.int64())]
)


def sample_seed(seed: int, prompt: Sequence[int], index: int) -> int:
    """Seed of the index-th sample of a prompt (token ids): 63 bits of a hash, so order and batching have no say."""
    text = json.dumps([seed, list(prompt), index])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def sample(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    directory: Path,
    batch_size: int,
    progress: Callable[[int, int], None],
    context: int | None = None,
    on_sample: Callable[[int, int, Sample], None] | None = None,
) -> list[list[Sample]]:
    """Draw `sampling.num_samples` responses to each prompt (token ids); returns them per prompt, in order.

    context: tokens of prompt and response; where it leaves a prompt fewer than `sampling.max_tokens`, its responses get
    what is left (`room`).

    Equal prompts are drawn once and share their responses. Requests are cut into fixed shards of `batch_size`; each
    finished shard is a file in `directory`, found again by a run that starts over, so a kill loses only the shards in
    flight: one on the CPU, on a GPU as many as fill the engine. progress(done, total) counts requests and is called
    every few seconds at least. on_sample(prompt index, sample index, sample) is called as responses arrive.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(tuple(prompt), []).append(place)
    requests: list[Request] = []
    targets: list[tuple[tuple[int, ...], int]] = []
    for prompt in places:
        own = sampling if context is None else replace(sampling, max_tokens=room(prompt, sampling, context))
        for index in range(sampling.num_samples):
            requests.append(Request(prompt, sample_seed(seed, prompt, index), own))
            targets.append((prompt, index))
    shards = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
    directory = directory / _key(requests, batch_size, backend.description)
    directory.mkdir(parents=True, exist_ok=True)
    results: list[list[Sample | None]] = [[None] * sampling.num_samples for _ in prompts]
    done = 0

    def accept(number: int, samples: list[Sample]) -> None:
        nonlocal done
        for offset, drawn in enumerate(samples):
            prompt, index = targets[number * batch_size + offset]
            for place in places[prompt]:
                results[place][index] = drawn
                if on_sample is not None:
                    on_sample(place, index, drawn)
        done += len(samples)
        progress(done, len(requests))

    pending = []
    for number, shard in enumerate(shards):
        path = directory / f"{number:06d}.parquet"
        if path.exists():
            accept(number, [Sample(**row) for row in pq.read_table(path).to_pylist()])
        else:
            pending.append((number, shard))
    for number, samples in backend.run(pending, lambda: progress(done, len(requests))) if pending else ():
        table = pa.Table.from_pylist([vars(drawn) for drawn in samples], SCHEMA)
        write_table(table, directory / f"{number:06d}.parquet")
        accept(number, samples)
    return results  # type: ignore[return-value]  # every place is filled once all shards are accepted


def room(prompt: Sequence[int], sampling: Sampling, context: int) -> int:
    """Tokens that a response to a prompt may have in a context of so many."""
    return min(sampling.max_tokens, context - len(prompt))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is either whole or absent under its name."""
    partial = path.with_suffix(f".partial-{os.getpid()}")
    pq.write_table(table, partial)
    partial.replace(path)


def _key(requests: Sequence[Request], batch_size: int, description: dict) -> str:
    digest = hashlib.sha256(json.dumps([batch_size, description], sort_keys=True).encode())
    for request in requests:
        # The seed is made of the prompt and the sample's place.
        digest.update(json.dumps([request.seed, vars(request.sampling)], sort_keys=True).encode())
    return digest.hexdigest()[:16]

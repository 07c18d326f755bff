"""Stage `cache`: forwards a frozen model once over the training chats and writes the reference cache.

The chats are tokenised once, as they are read; shards of whole chats are then computed independently, in this process
or by Ray workers, so a killed run repeats at most the shards that were in progress. Nothing in the bytes depends on the
number of workers. A process computes one shard while it writes the one before; for a moment it has begun a third.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from common.errors import ConfigError
from common.files import write_json, write_json_lines
from common.models import load_tokenizer, vocabulary_size, weights_digest
from data_prep.chat_dataset import ChatDataset, dataset_config, tokenizer_digest
from data_prep.reference import writer
from data_prep.reference.codec import id_bits
from data_prep.reference.layout import PRODUCER_FIELDS, SAMPLE_FILE, VERSION, Layout
from data_prep.reference.producers.contract import Heartbeat
from data_prep.reference.reader import ReferenceCache
from data_prep.reference.tokens import Job, Tokens, split_shards
from data_prep.reference.workers import Worker, compute_on_ray

EXAMPLES_SHOWN = 3
WorkerArguments = tuple[Any, Path, Path, Layout, np.ndarray | None]


def run(settings, inputs, output, scratch, report) -> None:
    """Write the reference cache of a frozen model over the training chats into `output`.

    Args:
        settings: `cache`, `data`, `model`, `platform`, and the model's `role`.
        inputs: `model` (a Hugging Face directory), `data` (prepared chats) and, where the role is not base, `student`
            (a Hugging Face directory whose tokenizer encodes the chats).
        scratch: keeps finished shards between attempts.
        report: `report(done, total)` in stored positions.

    Raises:
        ConfigError: the data, the model or the settings cannot give a cache; the message names the field.
        RuntimeError: another producer holds `scratch`.
    """
    torch.set_num_threads(settings.platform.threads)
    with writer.exclusive(scratch):
        _run(settings, inputs, output, scratch, report)


def _run(settings, inputs, output, scratch, report) -> None:
    started = time.monotonic()
    model, data = inputs["model"], inputs["data"]
    trust = settings.model.trust_remote_code
    encoder = model if settings.role == "base" else inputs["student"]
    student = load_tokenizer(encoder, chat_template=settings.model.chat_template, trust_remote_code=trust)
    config = dataset_config(settings.data, settings.model)
    dataset = ChatDataset(str(data / "sft_train.parquet"), student, config)
    tokens = Tokens.write(dataset, scratch, report)
    supervised = tokens.supervised()
    if not supervised.sum():
        raise ConfigError(f"{data / 'sft_train.parquet'}: no supervised token; chats need an assistant turn")
    allowed = None
    if settings.role != "base":
        own = load_tokenizer(model, trust_remote_code=trust)
        allowed = common_ids(student, own, tokens.used(), settings.role)

    layout = _layout(settings, model)
    jobs = split_shards(supervised, settings.cache.tokens_per_shard)
    if settings.cache.sample_sequences:
        size = min(settings.cache.sample_sequences, len(tokens))
        chosen = np.random.default_rng(settings.data.seed).choice(len(tokens), size, replace=False)
        jobs.append(Job(SAMPLE_FILE, tuple(sorted(chosen.tolist())), every_position=True))
    identity = {
        **tokens.identity,
        "role": settings.role,
        "model_weights": weights_digest(model),
        "system_prompt": settings.data.system_prompt,
        "producer": settings.cache.producer,
        "dtype": settings.cache.dtype,
        "attention": settings.model.attention,
        "stage_version": VERSION,
    }
    writer.keep_matching(scratch, identity, layout, [len(job.chats) for job in jobs])
    records = {job.file: writer.finished_shard(scratch, job.file) for job in jobs}
    missing = [job for job in jobs if records[job.file] is None]
    sizes = {job.file: job.size(tokens, supervised) for job in jobs}
    total, kept = sum(sizes.values()), sum(size for file, size in sizes.items() if records[file])
    done = kept

    def heartbeat(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    heartbeat(0)
    for record in _compute((settings, model, scratch, layout, allowed), missing, heartbeat):
        records[record["file"]] = record
    shards = [record for job in jobs if not job.every_position and (record := records[job.file])]
    writer.publish(scratch, output, layout, identity, shards, records.get(SAMPLE_FILE))
    _write_figures(output, started, total - kept)


def _layout(settings: Any, model: Path) -> Layout:
    cache = settings.cache
    vocab_size = vocabulary_size(model)
    if cache.top_k > vocab_size:
        raise ConfigError(f"cache.top_k={cache.top_k}: the model has {vocab_size} ids; choose at most that many")
    bits = 32 if cache.encoding == "lossless" else id_bits(vocab_size)
    return Layout(cache.encoding, cache.top_k, bits, vocab_size, PRODUCER_FIELDS[cache.producer])


def _compute(arguments: WorkerArguments, jobs: Sequence[Job], heartbeat: Heartbeat) -> Iterator[dict[str, Any]]:
    """Records of the jobs as they finish; `arguments` are those of Worker."""
    cache = arguments[0].cache
    workers = min(cache.workers, len(jobs))
    if workers and cache.processes > 1:
        from data_prep.reference import ranks

        yield from ranks.compute(arguments, jobs, workers, heartbeat)
    elif workers == 1:
        yield from Worker(*arguments).compute_all(jobs, heartbeat)
    elif workers:
        yield from compute_on_ray(arguments[0], arguments, jobs, workers, heartbeat)


def common_ids(
    student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, used: Iterable[int], role: str
) -> np.ndarray | None:
    """Ids that mean the same token to both, (V,) bool over the student's ids; None if the tokenizers are equal.

    Args:
        used: ids that occur in the training tokens.
        role: of the other model, for the message.

    Raises:
        ConfigError: an id that occurs in the training tokens means something else to the other model.
    """
    if tokenizer_digest(student) == tokenizer_digest(other):
        return None
    ours = {index: token for token, index in student.get_vocab().items()}
    theirs = {index: token for token, index in other.get_vocab().items()}
    different = [index for index in used if ours.get(index) != theirs.get(index)]
    if different:
        shown = ", ".join(f"{i}: {ours.get(i)!r} / {theirs.get(i)!r}" for i in different[:EXAMPLES_SHOWN])
        raise ConfigError(
            f"model.{role}: its vocabulary differs from the student's in {len(different)} ids of the training tokens "
            f"(id: student / {role}) {shown}; use a {role} with the student's tokenizer"
        )
    common = np.zeros(max(ours) + 1, dtype=bool)
    for index, token in ours.items():
        common[index] = theirs.get(index) == token
    return common


def _write_figures(output: Path, started: float, computed: int) -> None:
    cache = ReferenceCache(output)
    figures = {
        "tokens": cache.tokens,
        "sequences": cache.sequences,
        "bytes_per_token": sum(record["bytes"] for record in cache.shards) / cache.tokens,
        "mean_loss": -cache.mean("label_logprob"),
    }
    write_json(output / "metrics.json", figures)
    seconds = time.monotonic() - started
    row = {"seconds": seconds, "tokens_computed": computed, "pid": os.getpid()}
    write_json_lines(output / "timings.jsonl", [row])

"""Writing the shards of a reference cache so that a killed producer can resume, publishing and mending them.

Importing this does not import torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from common.files import read_json, write_json
from data_prep.reference.layout import FORMAT, SAMPLE_FILE, Layout
from data_prep.reference.reader import file_checksum, layout_of, read_header


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold `directory` against a second producer on this file system.

    Raises:
        RuntimeError: another live process holds it.
    """
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{directory}: another producer is writing this cache; wait for it or stop it") from None
        yield


def _write_durably(path: Path, pieces: Iterable[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(directory: Path, name: str, layout: Layout, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write one shard and, after it, its record `<name>.json`; both appear whole or not at all.

    Args:
        arrays: what `layout.allocate` gave, filled; `offsets` rises from 0 to the number of tokens.

    Returns:
        The record: file, tokens, sequences, bytes, xxh3_128.
    """
    tokens, sequences = len(arrays["packed"]), len(arrays["offsets"]) - 1
    blocks = layout.blocks(tokens, sequences)
    for block, (_, dtype, shape) in blocks.items():
        if arrays[block].dtype != dtype or arrays[block].shape != shape:
            found = f"{arrays[block].dtype}{arrays[block].shape}"
            raise TypeError(f"{name}: {block} is {found}, the layout says {dtype}{shape}")
    path = directory / name
    buffers = [np.ascontiguousarray(arrays[block]).reshape(-1).view(np.uint8).data for block in blocks]
    digest = xxhash.xxh3_128()
    for buffer in buffers:
        digest.update(buffer)
    _write_durably(path, buffers)
    record = {
        "file": name,
        "tokens": tokens,
        "sequences": sequences,
        "bytes": layout.nbytes(tokens, sequences),
        "xxh3_128": digest.hexdigest(),
    }
    write_json(directory / f"{name}.json", record, durable=True)
    return record


def keep_matching(scratch: Path, identity: Mapping[str, Any], layout: Layout, sequences: Sequence[int]) -> None:
    """Drop the shards in `scratch` unless they belong to a cache like this one.

    Args:
        sequences: chats in each file, the sample's last.
    """
    path = scratch / "stamp.json"
    stamp = {"identity": dict(identity), "layout": asdict(layout), "sequences": list(sequences)}
    if read_json(path) != json.loads(json.dumps(stamp)):
        path.unlink(missing_ok=True)
        for stale in [*scratch.glob("shard_*"), *scratch.glob(f"{SAMPLE_FILE}*")]:
            stale.unlink()
        write_json(path, stamp, durable=True)


def finished_shard(directory: Path, name: str) -> dict[str, Any] | None:
    """The record of a shard that is there and whole, or None if it has to be computed (again)."""
    record, path = read_json(directory / f"{name}.json"), directory / name
    if record is None:
        return None
    if not path.exists() or path.stat().st_size != record["bytes"] or file_checksum(path) != record["xxh3_128"]:
        return None
    return record


def publish(
    source: Path,
    output: Path,
    layout: Layout,
    identity: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    sample: Mapping[str, Any] | None,
) -> None:
    """Put finished shards of `source` into `output` and write the header last; without it there is no cache.

    Files are hard-linked where the file system allows it (else copied), so that a kill here loses no shard.
    """
    for record in [*shards, *([sample] if sample else [])]:
        target = output / record["file"]
        target.unlink(missing_ok=True)
        try:
            os.link(source / record["file"], target)
        except OSError:
            shutil.copyfile(source / record["file"], target)
            with target.open("rb") as file:
                os.fsync(file.fileno())
    header = {
        "format": FORMAT,
        "identity": dict(identity),
        "layout": asdict(layout),
        "sequences": sum(record["sequences"] for record in shards),
        "tokens": sum(record["tokens"] for record in shards),
        "shards": list(shards),
        "sample": sample,
    }
    write_json(output / "header.json", header, durable=True)


def mend(artifact: Path, scratch: Path) -> str:
    """Copy the whole shards of a damaged cache into a producer's scratch directory, which then computes only the rest.

    Returns:
        What is damaged, in words: the files' names, "no shard", or all of it where the header cannot be read.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        return ", ".join(_rescue(artifact, scratch)) or "no shard"
    except (ValueError, KeyError, TypeError) as error:
        return f"all of it ({' '.join(str(error).split())})"


def _rescue(cache: Path, scratch: Path) -> list[str]:
    """Names of the damaged or missing files, after the others were copied."""
    header = read_header(cache)
    records = [*header["shards"], *([header["sample"]] if header["sample"] else [])]
    keep_matching(scratch, header["identity"], layout_of(header), [record["sequences"] for record in records])
    bad = []
    for record in records:
        path = cache / record["file"]
        if path.exists() and path.stat().st_size == record["bytes"] and file_checksum(path) == record["xxh3_128"]:
            shutil.copyfile(path, scratch / record["file"])
            write_json(scratch / f"{record['file']}.json", record, durable=True)
        else:
            bad.append(record["file"])
    return bad

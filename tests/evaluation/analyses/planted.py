"""Held-out token tables, caches and inputs of analyses with contents that are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq

from data_prep.reference import writer
from data_prep.reference.layout import TOKEN_FIELDS, Layout, shard_name
from evaluation import analyse
from evaluation.token_table import TOP, TokenWriter

WORDS = 40  # ids of the planted texts


def write_tokens(directory: Path, log_p, *, length=25, **columns) -> Path:
    """A token table of chats of `length` tokens: (n,) log-probabilities, and any other columns of the schema."""
    directory.mkdir(parents=True, exist_ok=True)
    n = len(log_p)
    p = np.exp(np.asarray(log_p, dtype=np.float64))
    ids = np.tile(np.arange(TOP, dtype=np.int64), (n, 1))
    rows = {
        "chat": np.arange(n) // length,
        "position": 5 + np.arange(n) % length,
        "token": np.arange(n) % WORDS,
        "log_p": np.asarray(log_p, dtype=np.float32),
        "rank": np.where(p > 0.5, 1, 2),
        "mass": p,
        "entropy": -p * np.log(p),
        "n1": np.ones(n),
        "n2": np.ones(n),
        "kl": None,
        "top_ids": ids,
        "top_log_p": np.log(np.full((n, TOP), 1 / TOP)),
        **columns,
    }
    with TokenWriter(directory, lambda one: f" w{one}") as tokens:
        for start in range(0, n, 1000):
            part = slice(start, start + 1000)
            tokens.add(**{name: None if values is None else values[part] for name, values in rows.items()})
    return directory


def write_cache(directory: Path, lengths=(1000,), shards=1, **fields) -> Path:
    """A reference cache with these token fields (n,), others 0; lengths: of the chats of each shard."""
    source, output = directory / "source", directory / "output"
    source.mkdir(parents=True)
    output.mkdir()
    layout, start, records = Layout("lossless", 1, 18, WORDS, tuple(TOKEN_FIELDS)), 0, []
    for index in range(shards):
        arrays = layout.allocate(sum(lengths), len(lengths))
        arrays["offsets"][1:] = np.cumsum(lengths)
        for name, values in fields.items():
            arrays[name][:] = values[start : start + sum(lengths)]
        start += sum(lengths)
        records.append(writer.write_shard(source, shard_name(index), layout, arrays))
    writer.publish(source, output, layout, {"producer": "forward"}, records, None)
    return output


def tokens_of(path, model="base", line="", seed="", objective=None):
    """An input that is the held-out tokens of a model."""
    return path, {
        "kind": "generate", "line": line, "seed": seed, "model": model, "name": "held_out", "objective": objective or {}
    }  # fmt: skip


def cache_of(path, role="base"):
    """An input that is a cache."""
    return path, {"kind": "cache", "line": "", "seed": "", "model": "", "name": role}


def run(tmp_path, name, given, settings=None, output="output"):
    """Runs an analysis as the stage does; returns its output directory and what it reported."""
    folder = tmp_path / output
    folder.mkdir()
    calls = []
    inputs = {str(place): path for place, (path, _) in enumerate(given)}
    described = [{"input": str(place), **what} for place, (_, what) in enumerate(given)]
    asked = SimpleNamespace(analysis=name, settings=settings or {}, given=described, target="target")
    analyse.run(asked, inputs, folder, tmp_path, lambda done, total, **_: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    for svg in (folder / "figures").glob("*.svg"):
        assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return folder


def table(output: Path, name: str) -> list[dict]:
    """A table's rows by column."""
    found = json.loads((output / "tables" / f"{name}.json").read_text())
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def data(output: Path, name: str) -> dict[str, list]:
    """The data behind a figure, by column."""
    return pq.read_table(output / "data" / f"{name}.parquet").to_pydict()


def sentence(output: Path) -> str:
    return json.loads((output / "findings.json").read_text())["sentence"]

"""The cache's bytes: encoding, shards, checksums, resume, reading, sizes."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.reference import writer
from data_prep.reference.codec import encode
from data_prep.reference.layout import (
    FORMAT,
    PRODUCER_FIELDS,
    SAMPLE_FILE,
    TOKEN_FIELDS,
    VLLM_FIELDS,
    Layout,
    fields_of,
    predicted_bytes,
    shard_name,
)
from data_prep.reference.reader import ReferenceCache, fields_present

VOCABULARY = 1000
IDENTITY = {"producer": "forward", "tokenizer": "a", "max_length": 8}


def layout_of(encoding: str = "compact", top_k: int = 8) -> Layout:
    return Layout(encoding, top_k, 18, VOCABULARY, tuple(TOKEN_FIELDS))


def random_arrays(layout: Layout, lengths: list[int], seed: int) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    arrays = layout.allocate(tokens, len(lengths))
    arrays["offsets"][1:] = np.cumsum(lengths)
    ids = torch.randint(0, VOCABULARY, (tokens, layout.top_k), generator=generator)
    logprobs = -torch.rand(tokens, layout.top_k, generator=generator) * 20
    arrays["packed"][:] = encode(ids, logprobs, encoding=layout.encoding, id_bits=18).numpy()
    for name in layout.fields:
        arrays[name][:] = torch.rand(tokens, generator=generator).mul(30).numpy().astype(arrays[name].dtype)
    arrays["mean_loss"][:] = np.arange(len(lengths))
    return arrays


def build(directory: Path, layout: Layout | None = None, lengths=((3, 0, 5), (2, 4))) -> Path:
    """A published cache of two shards; returns its directory."""
    layout = layout or layout_of()
    source, output = directory / "source", directory / "output"
    source.mkdir(parents=True)
    output.mkdir()
    records = [
        writer.write_shard(source, shard_name(index), layout, random_arrays(layout, list(part), index))
        for index, part in enumerate(lengths)
    ]
    sample_arrays = layout.sample().allocate(4, 1)
    sample_arrays["offsets"][1] = 4
    sample_arrays["supervised"][2:] = 1
    sample = writer.write_shard(source, SAMPLE_FILE, layout.sample(), sample_arrays)
    writer.publish(source, output, layout, IDENTITY, records, sample)
    return output


def test_size_per_token_is_within_the_promise():
    for top_k, limit in ((10, 40 + 24), (64, 256 + 24)):
        assert layout_of(top_k=top_k).nbytes(100_000, 200) / 100_000 <= limit


@pytest.mark.parametrize("encoding", ["compact", "lossless"])
@pytest.mark.parametrize("top_k", [10, 64])
def test_predicted_bytes_are_within_two_percent(tmp_path, encoding, top_k):
    layout = layout_of(encoding, top_k)
    generator = np.random.default_rng(0)
    lengths = [generator.integers(5, 60, 200).tolist() for _ in range(3)]
    output = build(tmp_path, layout, lengths)
    tokens = sum(map(sum, lengths))
    predicted = predicted_bytes(
        tokens,
        top_k,
        sequences=600,
        sample_tokens=4,
        sample_sequences=1,
        encoding=encoding,
        tokens_per_shard=-(-tokens // 3),
    )
    actual = sum(path.stat().st_size for path in output.iterdir())
    assert abs(predicted - actual) <= 0.02 * actual


@pytest.mark.parametrize("encoding", ["compact", "lossless"])
def test_reads_what_was_written(tmp_path, encoding):
    layout = layout_of(encoding)
    cache = ReferenceCache(build(tmp_path, layout))
    assert (len(cache), cache.tokens) == (5, 14)
    cache.verify()
    for shard, lengths in enumerate([[3, 0, 5], [2, 4]]):
        arrays = random_arrays(layout, lengths, shard)
        for local, (start, end) in enumerate(zip(np.cumsum([0, *lengths]), np.cumsum(lengths), strict=False)):
            rows = cache.read(3 * shard + local)
            for name in ("packed", *layout.fields):
                np.testing.assert_array_equal(rows[name], arrays[name][start:end])
            assert rows["mean_loss"] == local
    with pytest.raises(IndexError):
        cache.read(5)
    with pytest.raises(IndexError):
        cache.read(-1)


def test_a_column_of_more_shards_than_a_process_may_open(tmp_path):
    lengths = [[1 + shard % 3, 2] for shard in range(60)]
    cache = ReferenceCache(build(tmp_path, layout_of(), lengths))
    own, (soft, hard) = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (own + 20, hard))
    try:
        found = {name: cache.column(name) for name in ("label_logprob", "label_checksum")}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for name, values in found.items():
        expected = [random_arrays(layout_of(), part, shard)[name] for shard, part in enumerate(lengths)]
        np.testing.assert_array_equal(values, np.concatenate(expected))


def test_scalars_for_constants_of_the_training_set(tmp_path):
    cache = ReferenceCache(build(tmp_path))
    found = cache.scalars({"label_logprob"})
    assert found["label_logprob"].shape == (14,)
    assert found["mask"].all()
    assert found["sequence"].tolist() == [0] * 3 + [2] * 5 + [3] * 2 + [4] * 4
    sample = cache.scalars({"support_logprobs"})
    assert sample["support_logprobs"].shape == (4, 8)
    assert sample["mask"].tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="same positions"):
        cache.scalars({"support_logprobs", "entropy"})


def test_parts_for_constants_hold_whole_chats_and_are_all_of_them(tmp_path):
    cache = ReferenceCache(build(tmp_path))
    parts = list(cache.scalar_parts({"label_logprob", "entropy"}))
    assert [part["sequence"].tolist() for part in parts] == [[0] * 3 + [2] * 5, [3] * 2 + [4] * 4]
    for name in ("label_logprob", "entropy"):
        np.testing.assert_array_equal(torch.cat([part[name] for part in parts]), cache.column(name))
    (sample,) = cache.scalar_parts({"support_ids"})
    assert sample["support_ids"].shape == (4, 8)


def test_survives_pickling_for_loader_workers(tmp_path):
    cache = ReferenceCache(build(tmp_path))
    cache.read(0)
    copy = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copy.read(4)["packed"], cache.read(4)["packed"])


def flip_byte(path: Path, position: int = 100) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.unlink()  # a published file shares its inode with scratch
    path.write_bytes(content)


def test_damage_is_found_and_only_the_damaged_shard_is_lost(tmp_path):
    output = build(tmp_path)
    flip_byte(output / "shard_00001.bin")
    with pytest.raises(ValueError, match=r"checksum differs in shard_00001\.bin"):
        ReferenceCache(output).verify()
    rescued = tmp_path / "rescued"
    assert writer.mend(output, rescued) == "shard_00001.bin"
    assert writer.finished_shard(rescued, "shard_00000.bin") is not None
    assert writer.finished_shard(rescued, "shard_00001.bin") is None


def test_several_readers_share_the_files(tmp_path):
    output = build(tmp_path)
    for name in (shard_name(0), shard_name(1), SAMPLE_FILE):
        flip_byte(output / name, 10)
    cache = ReferenceCache(output)
    assert cache.damaged() == [shard_name(0), shard_name(1), SAMPLE_FILE]
    assert [cache.damaged(part, 2) for part in range(2)] == [[shard_name(0), SAMPLE_FILE], [shard_name(1)]]
    assert cache.damaged(7, 8) == []
    with pytest.raises(ValueError, match=r"checksum differs in a\.bin, b\.bin"):
        cache.refuse(["b.bin", "a.bin"])
    cache.refuse([])


@pytest.mark.parametrize("tokens", [1, 8191, 8192, 8193, 300_000])
def test_the_mean_of_pieces_is_that_of_the_whole_column_to_the_last_bit(tmp_path, tokens):
    cache = ReferenceCache(build(tmp_path, layout_of(top_k=1), [[tokens], [tokens // 2, 5]]))
    assert cache.mean("label_logprob") == float(cache.column("label_logprob").mean(dtype=np.float64))


def test_mending_says_what_is_damaged(tmp_path):
    output = build(tmp_path)
    assert writer.mend(output, tmp_path / "whole") == "no shard"
    (output / "shard_00000.bin").unlink()
    flip_byte(output / SAMPLE_FILE, 10)
    assert writer.mend(output, tmp_path / "two") == "shard_00000.bin, sample.bin"
    header = json.loads((output / "header.json").read_text())
    for content in ("{", json.dumps({"format": FORMAT}), json.dumps(header | {"layout": {"fields": []}})):
        (output / "header.json").write_text(content)
        assert writer.mend(output, tmp_path / "none").startswith("all of it (")
    (output / "header.json").unlink()
    assert "header.json is missing" in writer.mend(output, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


def test_truncated_and_missing_files_are_refused(tmp_path):
    output = build(tmp_path)
    shard = output / "shard_00000.bin"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard_00000\.bin: missing"):
        ReferenceCache(output)
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"shard_00000\.bin: \d+ bytes"):
        ReferenceCache(output)
    (output / "header.json").unlink()
    with pytest.raises(ValueError, match="not a reference cache"):
        ReferenceCache(output)


def test_resume_takes_only_whole_shards(tmp_path):
    source = build(tmp_path).parent / "source"
    assert writer.finished_shard(source, "shard_00000.bin") is not None
    flip_byte(source / "shard_00000.bin")
    assert writer.finished_shard(source, "shard_00000.bin") is None
    (source / "shard_00001.bin.json").write_text('{"bytes":')
    assert writer.finished_shard(source, "shard_00001.bin") is None


def test_other_identity_is_named(tmp_path):
    cache = ReferenceCache(build(tmp_path))
    cache.check_identity({"tokenizer": "a", "max_length": 8})
    with pytest.raises(ValueError, match=r"max_length \(cache 8, now 16\)"):
        cache.check_identity({"tokenizer": "a", "max_length": 16})


def test_absent_field_is_named(tmp_path):
    layout = Layout("compact", 8, 18, VOCABULARY, VLLM_FIELDS)
    output = build(tmp_path, layout)
    assert fields_present(output) == {"support_ids", "support_logprobs", "mean_loss", *VLLM_FIELDS}
    with pytest.raises(ValueError, match="lacks entropy"):
        ReferenceCache(output).require({"label_logprob", "entropy"})


def test_producers_give_the_fields_that_their_caches_hold(tmp_path):
    assert set(PRODUCER_FIELDS) == {"forward", "vllm"}
    for producer, fields in PRODUCER_FIELDS.items():
        output = build(tmp_path / producer, Layout("compact", 8, 18, VOCABULARY, fields))
        assert fields_of(producer) | {"mean_loss"} == fields_present(output)


def test_wrong_shapes_are_not_written(tmp_path):
    layout = layout_of()
    arrays = random_arrays(layout, [3], 0)
    arrays["entropy"] = arrays["entropy"].astype(np.float64)
    with pytest.raises(TypeError, match="entropy"):
        writer.write_shard(tmp_path, "shard_00000.bin", layout, arrays)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_leaves_nothing_half_written(tmp_path, monkeypatch):
    layout = layout_of()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        writer.write_shard(tmp_path, "shard_00000.bin", layout, random_arrays(layout, [3], 0))
    assert list(tmp_path.iterdir()) == []


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(writer.__file__).parents[2])


def test_second_producer_is_refused(tmp_path):
    program = """
import sys, pathlib
from data_prep.reference import writer
with writer.exclusive(pathlib.Path(sys.argv[1])):
    pass
"""
    with writer.exclusive(tmp_path):
        second = run_python(program, tmp_path)
    assert second.returncode != 0
    assert "another producer" in second.stderr
    assert run_python(program, tmp_path).returncode == 0


def test_import_is_free_of_torch():
    program = """
import sys
from data_prep.reference import reader, writer
from data_prep.reference.layout import predicted_bytes
predicted_bytes(10, 4, sequences=1)
print("torch" in sys.modules)
"""
    assert run_python(program).stdout == "False\n"


def test_anonymous_memory_stays_small_at_100m_tokens(tmp_path):
    """A sparse cache of 100M tokens, 64 ids each; random chats are read in another process."""
    layout = layout_of(top_k=64)
    shards, chats, length = 100, 2000, 500
    arrays_bytes = layout.nbytes(chats * length, chats)
    offset, dtype, _ = layout.blocks(chats * length, chats)["offsets"]
    records = []
    for index in range(shards):
        path = tmp_path / shard_name(index)
        with path.open("wb") as file:
            file.truncate(arrays_bytes)
            file.seek(offset)
            file.write(np.arange(0, chats * length + 1, length, dtype=dtype).tobytes())
        records.append(
            {"file": path.name, "tokens": chats * length, "sequences": chats, "bytes": arrays_bytes, "xxh3_128": ""}
        )
    header = {
        "format": FORMAT,
        "identity": IDENTITY,
        "layout": {**layout.__dict__},
        "sequences": shards * chats,
        "tokens": shards * chats * length,
        "shards": records,
        "sample": None,
    }
    (tmp_path / "header.json").write_text(json.dumps(header))
    program = """
import sys, numpy as np
from data_prep.reference.reader import ReferenceCache
def anonymous():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024
before = anonymous()
cache = ReferenceCache(sys.argv[1])
for index in np.random.default_rng(0).integers(0, len(cache), 800):
    rows = cache.read(int(index))
    copies = {name: np.array(value) for name, value in rows.items()}
print(cache.tokens, anonymous() - before)
"""
    done = run_python(program, tmp_path)
    tokens, grown = map(int, done.stdout.split())
    assert tokens == 100_000_000
    assert grown < 50e6

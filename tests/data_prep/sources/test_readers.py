"""Rows of files: every kind gives the same rows, in order, with their places and how far the file is read."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from data_prep.sources import RowError
from data_prep.sources import _readers as readers
from data_prep.sources.files import read_rows

ROWS = [{"id": str(n), "text": f'line {n}, "quoted"\nand \u4e8c' * (n + 1), "none": None} for n in range(40)]


def zst(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


def jsonl():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def table(delimiter):
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def arrow(path, new):
    batch = pa.RecordBatch.from_pylist(ROWS)
    with new(str(path), batch.schema) as writer:
        writer.write_batch(batch.slice(0, 15))
        writer.write_batch(batch.slice(15))


WRITE = {
    "a.jsonl": lambda path: path.write_bytes(jsonl()),
    "a.ndjson": lambda path: path.write_bytes(jsonl()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl())),
    "a.jsonl.zst": lambda path: path.write_bytes(zst(jsonl())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8"),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.csv": lambda path: path.write_bytes(table(",")),
    "a.tsv.gz": lambda path: path.write_bytes(gzip.compress(table("\t"))),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7),
    "a.arrow": lambda path: arrow(path, pa.ipc.new_file),
    "stream.arrow": lambda path: arrow(path, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", WRITE)
def test_every_kind_gives_the_same_rows(name, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 100)  # elements of an array are cut everywhere
    path = tmp_path / name
    WRITE[name](path)
    found = list(read_rows(path))
    assert [row.value for row in found] == ROWS
    assert [row.where.rsplit(" ", 1)[1] for row in found] == [str(n + 1) for n in range(40)]
    positions = [row.position for row in found]
    assert positions == sorted(positions)
    assert 0 < positions[0] <= positions[-1] <= path.stat().st_size
    assert positions[-1] > 0.9 * path.stat().st_size


BROKEN = {
    "cut.jsonl.gz": (gzip.compress(jsonl())[:-20], r"not a readable \.gz file"),
    "plain.jsonl.gz": (jsonl(), r"not a readable \.gz file"),
    "plain.jsonl.zst": (jsonl(), r"not a readable \.zst file"),
    "plain.arrow": (jsonl(), "not a readable Arrow file"),
    "plain.parquet": (jsonl(), "not a readable Parquet file"),
    "twice.csv": (b"a,a\n1,2\n", "a column is there twice: a, a"),
    "latin.csv": (b"a\n" + b"caf\xe9\n" * 3, "not UTF-8"),
    "latin.json": (b'["caf\xe9"]', "not UTF-8 after row 0"),
    "wide.csv": ("a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "twice.json": (b'[{"a": 1}, {"b": 1, "b": 2}]', "row 2: the field 'b' is there twice"),
    "rows.xlsx": (b"PK", r"unknown suffix '\.xlsx'; allowed: \.jsonl, \.parquet, .*\.csv.*\.gz"),
    "rows.parquet.gz": (b"PK", "unknown suffix"),
    "rows": (b"a", "unknown suffix ''"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_or_unknown_file_is_one_line(name, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        list(read_rows(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "good", "reason"),
    [
        ("a.json", b'[{"a": 1}, {"a": 2}, {"a"', 2, "not JSON"),
        ("a.json", b'[{"a": 1}, {"a": 2} nonsense', 2, "not JSON"),
        ("a.csv", b"a,b\n1,2\n3\n4,5\n", 2, "broken"),
        ("a.csv", b"a,b\n1,2\n3,4,5\n4,5\n", 2, "broken"),
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 100_000 + b"\n" + b'{"a": 2}\n', 2, "not JSON"),
    ],
)
def test_what_is_read_of_a_half_good_file(name, content, good, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    values = [row.value for row in read_rows(tmp_path / name)]
    bad = [value for value in values if isinstance(value, RowError)]
    assert len(values) - len(bad) == good
    assert [error.reason for error in bad] == [reason]


def test_an_array_is_read_as_it_is_needed(tmp_path):
    path = tmp_path / "large.json"
    path.write_text("[" + ",".join(json.dumps({"n": n, "text": "x" * 1000}) for n in range(5000)) + "]")
    rows = read_rows(path)
    first = next(rows)
    assert first.value["n"] == 0
    assert first.position < path.stat().st_size / 2
    assert [row.value["n"] for row in rows] == list(range(1, 5000))

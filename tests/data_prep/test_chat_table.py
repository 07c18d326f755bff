"""Chats read a block at a time, and their memory-mapped copies."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from common.registry import ROOT
from data_prep import chat_table
from data_prep.chat_table import ChatTable, mapped
from data_prep.tables import CHAT_SCHEMA, TableWriter

CHATS = 2500  # three row groups of `prepare`


def write(path: Path, chats: int = CHATS, first: int = 0) -> str:
    with TableWriter(path, CHAT_SCHEMA) as writer:
        for number in range(first, first + chats):
            turns = [{"role": "user", "content": f"{number}+1="}, {"role": "assistant", "content": str(number + 1)}]
            row = {"id": str(number), "messages": turns, "critical_spans": [[0, 1]]}
            writer.add({**row, "row_tokens": [9] * (1 + number % 2), "row_supervised": [1]})
    return str(path)


@pytest.fixture(params=["streamed", "mapped"])
def opened(request, tmp_path):
    directory = tmp_path / "mapped" if request.param == "mapped" else None
    return lambda files, limit=-1: ChatTable(files, directory, limit)


def test_any_chat_is_found_by_its_number(opened, tmp_path):
    table = opened([write(tmp_path / "a.parquet")])
    assert len(table) == CHATS
    for number in (0, 1023, 1024, 2047, 2499, 3):
        chat = table.chat(number)
        assert chat["messages"][1]["content"] == str(number + 1)
        assert chat["row_tokens"] == [9] * (1 + number % 2)
        assert chat["critical_spans"] == [[0, 1]]


def test_files_follow_one_another_up_to_the_limit(opened, tmp_path):
    files = [write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", 10, CHATS)]
    table = opened(files, CHATS + 3)
    assert len(table) == CHATS + 3
    assert table.chat(CHATS + 2)["messages"][0]["content"] == f"{CHATS + 2}+1="
    assert sum(batch.num_rows for batch in table.batches(["row_tokens"])) == CHATS + 3
    assert sum(len(chats) for chats in table.chats()) == CHATS + 3


def test_the_digest_is_of_every_row_in_order(opened, tmp_path):
    files = [write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", 10, CHATS)]
    for limit in (-1, CHATS + 2):
        expected = hashlib.sha256()
        for number in range(CHATS + (10 if limit < 0 else 2)):
            turns = [{"role": "user", "content": f"{number}+1="}, {"role": "assistant", "content": str(number + 1)}]
            expected.update(json.dumps({"messages": turns}, sort_keys=True).encode() + b"\n")
        assert opened(files, limit).digest() == expected.hexdigest()


def test_other_columns_are_refused(opened, tmp_path):
    import pandas as pd

    pd.DataFrame([{"id": "0", "messages": [{"role": "user", "content": "x"}]}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: has the columns"):
        opened([write(tmp_path / "a.parquet", 3), str(tmp_path / "b.parquet")])
    pd.DataFrame([{"id": "0"}]).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: has no column messages"):
        opened([str(tmp_path / "c.parquet")])


def test_survives_pickling_for_loader_workers(opened, tmp_path):
    table = opened([write(tmp_path / "a.parquet")])
    table.chat(2000)
    assert pickle.loads(pickle.dumps(table)).chat(2000) == table.chat(2000)
    assert len(pickle.dumps(table)) < 100_000


def test_a_file_is_copied_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    copies = []
    write_copy = chat_table._write
    monkeypatch.setattr(chat_table, "_write", lambda *given: copies.append(given) or write_copy(*given))
    file, directory = write(tmp_path / "a.parquet", 5), tmp_path / "mapped"
    first = mapped(file, directory)
    assert mapped(file, directory).digest == first.digest
    assert len(copies) == 1
    (arrow,) = directory.glob("*.arrow")
    os.truncate(arrow, 100)
    assert ChatTable([file], directory).chat(4)["messages"][1]["content"] == "5"
    assert len(copies) == 2
    write(tmp_path / "a.parquet", 6)
    assert len(ChatTable([file], directory)) == 6
    assert len(copies) == 3


def test_the_digest_of_a_copy_is_not_computed_again(tmp_path, monkeypatch):
    file, directory = write(tmp_path / "a.parquet", 5), tmp_path / "mapped"
    streamed = ChatTable([file]).digest()
    mapped(file, directory)
    monkeypatch.setattr(chat_table, "_add_rows", lambda *_: pytest.fail("rows were read for their digest"))
    assert ChatTable([file], directory).digest() == streamed


SCRATCH = """
import sys
from pathlib import Path
from data_prep.chat_table import ChatTable
def anonymous():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024
file, directory = sys.argv[1], Path(sys.argv[2])
table = ChatTable([file], directory)
table.chat(0)
before = anonymous()
for number in range(0, len(table), 7):
    table.chat(number)
print(anonymous() - before)
"""


def test_text_is_not_kept_in_anonymous_memory(tmp_path):
    text = "word " * 4000
    with TableWriter(tmp_path / "a.parquet", CHAT_SCHEMA) as writer:
        for number in range(5000):  # 100 MB
            turns = [{"role": "user", "content": f"{number} {text}"}, {"role": "assistant", "content": "1"}]
            writer.add({"id": str(number), "messages": turns, "row_tokens": [1], "row_supervised": [1]})
    command = [sys.executable, "-c", SCRATCH, str(tmp_path / "a.parquet"), str(tmp_path / "mapped")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) < 20e6

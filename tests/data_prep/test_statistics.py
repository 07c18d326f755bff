"""Statistics of sources: known answers, quantiles against a sort, and what `prepare` writes of two sources."""

from __future__ import annotations

import json
import random
from collections import Counter
from types import SimpleNamespace

from data_prep import prepare
from data_prep.lengths import Measured
from data_prep.sources.feeds import Feed
from data_prep.statistics import QUANTILES, RowStatistics, quantiles
from data_prep.tables import BENCHMARK_SCHEMA, TableWriter
from launch.recipe.data import Data
from launch.recipe.model import Model

SHARED = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen?"


def test_repetitions_lengths_and_reasons_are_counted_by_source():
    statistics = RowStatistics()
    for key, answer, length in ((b"a" * 16, "1", 10), (b"a" * 16, "1", 12), (b"a" * 16, "2", 14), (b"b" * 16, "1", 20)):
        row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}
        statistics.add("one", "sft_train", key, row, Measured([length], [3], length, True))
    statistics.add("two", "rl_train", b"a" * 16, {"prompt": [], "answer": "1"}, Measured([], [], 5, True))
    statistics.ended("one", "sft_train", {"too long": 2}, {"target": 1, "other": 0})
    statistics.ended("two", "rl_train", {}, {})
    table = statistics.lengths()
    first, second = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    assert first == {
        "source": "one", "rows of": "sft_train", "rows": 4, "tokens": 56, "supervised": 12, "mean": 14.0,
        "shortest": 10, "p25": 10, "median": 12, "p75": 14, "p95": 20, "longest": 20,
        "same problem": 2, "same row": 1, "dropped: too long": 2,
    }  # fmt: skip
    assert (second["rows"], second["median"], second["same problem"], second["dropped: too long"]) == (1, 5, 0, 0)
    assert statistics.contamination()["rows"] == [["one", "sft_train", "target", 1, 4]]


def test_quantiles_are_those_of_the_sorted_rows():
    rng = random.Random(0)
    for _ in range(200):
        values = [rng.randint(1, 30) for _ in range(rng.randint(1, 60))]
        ordered = sorted(values)
        expected = [ordered[max(1, -(-int(share * 100) * len(ordered) // 100)) - 1] for share in QUANTILES.values()]
        assert quantiles(Counter(values)) == expected
    assert quantiles({}) == [None] * len(QUANTILES)


def test_prepare_writes_a_page_of_every_source(tmp_path):
    chats = [("What is 1+1?", "2"), ("What is 1+1?", "2"), ("What is 2+2?", "4"), (SHARED, "words"), ("bad", "")]
    chats += [(f"Say {number}.", str(number)) for number in range(20)]
    own = tmp_path / "own.jsonl"
    own.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n"
            for q, a in chats
        )
    )
    (tmp_path / "target").mkdir()
    with TableWriter(tmp_path / "target" / "problems.parquet", BENCHMARK_SCHEMA) as table:
        prompt = [{"role": "user", "content": f"Another beginning: {SHARED}"}]
        table.add({"id": "p", "prompt": prompt, "answer": "1", "grader": "exact"})
    feeds = [
        Feed(source="files", settings={"sft_train": str(own)}),
        Feed(source="microworld", settings={"sft_examples": 30, "sft_val_examples": 4}),
    ]
    settings = SimpleNamespace(
        part="sft", name="", sources=feeds, grader="math", data=Data(on_bad_row="drop"),
        model=Model.model_validate({"pretrain": {}}),
    )  # fmt: skip
    inputs = {"sft_train": own, "benchmark_target": tmp_path / "target"}
    output = tmp_path / "out"
    output.mkdir()
    prepare.run(settings, inputs, output, tmp_path, lambda done, total: None)
    table = json.loads((output / "statistics.json").read_text())
    rows = {(row[0], row[1]): dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert set(rows) == {("files", "sft_train"), ("microworld", "sft_train"), ("microworld", "sft_val")}
    mine = rows["files", "sft_train"]
    assert (mine["rows"], mine["same problem"], mine["same row"]) == (24, 1, 1)
    assert [mine[name] for name in table["columns"] if name.startswith("dropped")] == [1]
    assert rows["microworld", "sft_train"]["rows"] == 30
    summary = json.loads((output / "summary.json").read_text())
    tokens = sum(found["tokens"] for found in summary["tokens"].values())
    assert tokens == sum(row["tokens"] for row in rows.values())  # nothing is truncated here
    found = json.loads((output / "contamination.json").read_text())["rows"]
    assert found == [["files", "sft_train", "target", 1, 24]]
    page = (output / "statistics.md").read_text()
    assert "| files | sft_train | 24 |" in page and "| files | sft_train | target | 1 | 24 |" in page

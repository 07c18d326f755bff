"""The papers' data sets: rows of our own in the published schemas, and what is said of rows that are not so."""

from __future__ import annotations

import json

import pytest

from common.errors import ConfigError
from data_prep import sources
from data_prep.sources import RowError
from data_prep.sources._published import COPY, PublishedSource

NAMES = [name for name in sources.names() if isinstance(sources.load(name), PublishedSource)]
GOLDEN = {
    "ultrafeedback": "Some colours are red, blue.",
    "magicoder_oss_instruct": "```python\ndef add(x):\n    return x + 0\n```",
    "numina_math_cot": "We add the two numbers: 0 + 3 = 3. The answer is $\\boxed{3}$.",
    "miromind_m1_sft": "<think>\nI add 20 and 23.\n</think>\nWe add the two numbers: 20 + 23 = 43. The answer is "
    "$\\boxed{43}$.",
    "tulu3_personas_code": "def multiply(x):\n    return 0 * x",
    "metamathqa": "We add the two numbers: 40 + 43 = 83. The answer is $\\boxed{83}$.\nThe answer is: 83",
    "openr1_math": "<think>\nI add.\n</think>\nWe add the two numbers: 60 + 63 = 123. The answer is $\\boxed{123}$.",
    "m23k": "Fever is a sign of infection, baldness is not.\n\nThe answer is \\boxed{A}.",
    "medmcqa": "The answer is B. 2\n\\boxed{B}",
    "medcalc": '<think>\nThe index is 50 / (2 * 2) = 12.5.\n</think>\n<answer>\n{"answer": "12.5"}\n</answer>',
    "esci": "<answer>0</answer>",
    "math_levels": "163",
    "dapo_math": "403",
}


def rows_of(name, path, **settings):
    source = sources.load(name)
    section = source.section(path=str(path), **settings)
    given = source.inputs(section, source.part)
    ((_, rows),) = source.parts(section, {COPY: path} if given else {}, 0).items()
    return list(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_becomes_a_chat_or_a_prompt(name):
    rows = rows_of(name, sources.load(name).fixture())
    assert len(rows) >= 12 and all(isinstance(row.value, dict) for row in rows)
    first = rows[0].value
    answer = first["messages"][-1]["content"] if "messages" in first else first["answer"]
    assert answer == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_a_column_is_named(name, tmp_path):
    source = sources.load(name)
    whole = json.loads(source.fixture().read_text().splitlines()[0])
    column = next(iter(source.columns))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != column}) + "\n")
    (row,) = rows_of(name, path)
    assert isinstance(row.value, RowError)
    assert f"{path}" in str(row.value) and f"no column '{column}' of {source.hub}" in str(row.value)


@pytest.mark.parametrize("name", NAMES)
def test_unused_columns_are_not_asked_for(name, tmp_path):
    source = sources.load(name)
    lines = [json.loads(line) for line in source.fixture().read_text().splitlines()]
    path = tmp_path / "rows.jsonl"
    kept = [{key: row[key] for key in source.columns} for row in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert all(isinstance(row.value, dict) for row in rows_of(name, path))


def test_a_part_that_a_source_has_not_is_refused():
    source = sources.load("dapo_math")
    with pytest.raises(ConfigError, match="data source dapo_math has no part sft; it has rl"):
        source.inputs(source.section(), "sft")


def test_levels_select_problems():
    fixture = sources.load("math_levels").fixture()
    assert len(rows_of("math_levels", fixture, levels=[1])) < len(rows_of("math_levels", fixture))


def test_a_rationale_is_trained_on_where_its_column_is_named(tmp_path):
    fixture = sources.load("esci").fixture()
    first = rows_of("esci", fixture, reasoning="rationale")[0].value["messages"]
    assert first[0]["role"] == "system" and first[-1]["content"].startswith("<think>\n")
    asked = rows_of("esci", fixture, prompt="reasoning")[0].value["messages"]
    assert asked[:-1] == first[:-1] and asked[-1]["content"] == "<answer>0</answer>"  # a stage samples the reasoning
    missing = rows_of("esci", fixture, reasoning="none_such")[0].value
    assert isinstance(missing, RowError) and "no rationale in column none_such" in str(missing)


@pytest.mark.parametrize("name", NAMES)
def test_a_local_copy_is_counted_by_what_is_there(name):
    source = sources.load(name)
    lines = len(source.fixture().read_text().splitlines())
    assert source.rough_rows(source.section(path=str(source.fixture())), source.part) == pytest.approx(lines, rel=0.2)
    assert source.rough_rows(source.section(), source.part) == source.rows

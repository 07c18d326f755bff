import json
import math

import pytest

from common.files import files_digest, read_json, write_json, write_json_lines


def test_what_diverged_is_null_and_the_rest_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"loss": math.nan, "rows": [1.5, math.inf, {"deep": (-math.inf, "text")}]})
    assert read_json(tmp_path / "a.json") == {"loss": None, "rows": [1.5, None, {"deep": [None, "text"]}]}
    write_json_lines(tmp_path / "a.jsonl", [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.1}])
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.1}]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_digest_of_files_follows_names_and_bytes_alone(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text("1")
        (tmp_path / folder / "b").write_text("2")
    one, two = (files_digest((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert files_digest((tmp_path / "two").iterdir()) != one

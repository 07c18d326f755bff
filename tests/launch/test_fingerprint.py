import math

import pytest

from launch.fingerprint import PathHasher, canonical, fingerprint


def test_equal_values_have_one_fingerprint():
    assert fingerprint({"a": 1, "b": [1.0, "x"]}) == fingerprint({"b": (1, "x"), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint(True) != fingerprint(1)
    assert fingerprint(1e-5) == fingerprint(0.00001)


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {3}}, math.nan, math.inf, b"x"])
def test_unknown_values_are_refused(value):
    with pytest.raises(TypeError, match="identity"):
        canonical(value)


def test_directories_are_known_by_their_bytes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / ".cache").mkdir(parents=True)
        (folder / "weights").write_bytes(b"abc")
    (second / ".cache" / "note").write_text("hidden files do not count")
    memory = tmp_path / "hashes.json"
    assert PathHasher(memory)(first) == PathHasher(memory)(second)
    (second / "weights").write_bytes(b"abd")
    assert PathHasher(memory)(first) != PathHasher(memory)(second)
    with pytest.raises(FileNotFoundError):
        PathHasher(memory)(tmp_path / "absent")

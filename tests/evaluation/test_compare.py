import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.artifact import GENERATIONS, read_metrics, write_metrics
from evaluation.compare import compare

PROTOCOL = {"name": "sums", "num_samples": 2, "temperature": 1.0, "seed": 0}


def artifact(directory, correct, protocol=PROTOCOL, name="sums"):
    (directory / "generations").mkdir(parents=True)
    rows = [
        dict.fromkeys(GENERATIONS.names) | {"id": problem, "mode": "sampled", "sample": index, "correct": flag}
        for problem, flags in correct.items()
        for index, flag in enumerate(flags)
    ]
    pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), directory / "generations" / f"{name}.parquet")
    mean = sum(sum(flags) / len(flags) for flags in correct.values()) / len(correct)
    estimate = {"value": mean, "low": 0.0, "high": 1.0, "n": len(correct)}
    write_metrics(directory, {"benchmarks": {name: {"protocol": protocol, "metrics": {"pass@1": estimate}}}})
    return directory


def test_difference_is_paired_by_problem(tmp_path):
    a = artifact(tmp_path / "a", {"x": [True, False], "y": [False, False]})
    b = artifact(tmp_path / "b", {"y": [True, False], "x": [True, True]}, {**PROTOCOL, "seed": 7})
    (row,) = compare(a, b, resamples=100)
    # Both problems gain exactly 0.5, so resampling problems changes nothing.
    assert (row["a"], row["b"], row["difference"], row["low"], row["high"]) == (0.25, 0.75, 0.5, 0.5, 0.5)
    assert row["n"] == 2 and row["p_holm"] == row["p_value"]


def test_incomparable_artifacts_are_refused(tmp_path):
    a = artifact(tmp_path / "a", {"x": [True]})
    with pytest.raises(ValueError, match="different problems"):
        compare(a, artifact(tmp_path / "b", {"z": [True]}))
    with pytest.raises(ValueError, match="differ in temperature"):
        compare(a, artifact(tmp_path / "c", {"x": [True]}, {**PROTOCOL, "temperature": 0.6}))
    with pytest.raises(ValueError, match="no shared benchmark"):
        compare(a, artifact(tmp_path / "d", {"x": [True]}, name="products"))


def test_another_format_version_is_refused(tmp_path):
    directory = artifact(tmp_path / "a", {"x": [True]})
    (directory / "metrics.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="version 0"):
        read_metrics(directory)

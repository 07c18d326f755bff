import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.__main__ import main
from evaluation.artifact import OUTCOMES, SCORES, read_metrics, write_metrics
from evaluation.compare import NOT_REPRODUCIBLE, average, compare, headlines

PROTOCOL = {"name": "sums", "num_samples": 2, "temperature": 1.0, "seed": 0}


def artifact(directory, correct, protocol=PROTOCOL, name="sums", answers=None, task=None, reproducible=True):
    """The `measure` artifacts of one model: a benchmark's and, with `task`, a harness task's."""
    rows = [
        dict.fromkeys(OUTCOMES.names)
        | {"id": problem, "mode": "sampled", "sample": index, "correct": flag, "answer": (answers or {}).get(problem)}
        for problem, flags in correct.items()
        for index, flag in enumerate(flags)
    ]
    mean = sum(sum(flags) / len(flags) for flags in correct.values()) / len(correct)
    estimate = {"value": mean, "low": 0.0, "high": 1.0, "n": len(correct)}
    metrics = {"pass@1": estimate} | ({"balanced_accuracy": estimate} if answers else {})
    counts = {"problems": len(correct), "responses": len(rows), "grading": {"ok": len(rows)}}
    measured = {"protocol": protocol, "counts": counts, "metrics": metrics}
    found = [write(directory / name, "benchmark", name, measured, reproducible=reproducible)]
    pq.write_table(pa.Table.from_pylist(rows, OUTCOMES), directory / name / "outcomes.parquet")
    if task is not None:
        lines = [
            dict.fromkeys(SCORES.names)
            | {"task": "ifeval", "problem": i, "filter": "none", "scores": json.dumps({"inst_level_strict_acc": pair})}
            for i, pair in enumerate(task)
        ]
        shown = {"inst_level_strict_acc,none": estimate}
        counts = {"problems": len(task)}
        measured = {"protocol": {"name": "ifeval"}, "counts": counts, "versions": {}, "metrics": shown}
        found.append(write(directory / "ifeval", "task", "ifeval", measured, reproducible=reproducible))
        pq.write_table(pa.Table.from_pylist(lines, SCORES), directory / "ifeval" / "outcomes.parquet")
    return found


def write(directory, kind, name, measured, *, reproducible=True, minimum=None):
    directory.mkdir(parents=True)
    engine = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": reproducible}
    write_metrics(directory, {"engine": engine, "base_minimum": minimum, "kind": kind, "name": name, **measured})
    return directory


def joined(artifacts):
    """As the command line takes them."""
    return ",".join(map(str, artifacts))


def test_difference_is_paired_by_problem(tmp_path):
    a = artifact(tmp_path / "a", {"x": [True, False], "y": [False, False]})
    b = artifact(tmp_path / "b", {"y": [True, False], "x": [True, True]}, {**PROTOCOL, "seed": 7})
    (row,) = compare(a, b, resamples=100)
    assert (row["a"], row["b"], row["difference"]) == (0.25, 0.75, 0.5)
    # Both problems gain exactly 0.5, and two problems that agree are no certainty: no test at 5% rejects on two.
    assert (row["low"], row["high"], row["p_value"], row["detectable"]) == (-1.0, 1.0, 0.5, None)
    assert row["n"] == 2 and row["p_holm"] == row["p_value"]
    assert (row["a_low"], row["a_high"], row["b_low"], row["b_high"]) == (0.0, 1.0, 0.0, 1.0)


def test_the_table_gives_every_number_an_interval_and_says_what_does_not_repeat(tmp_path, capsys, monkeypatch):
    a = artifact(tmp_path / "a", {"x": [True, False], "y": [False, False]})
    for name, reproducible in (("b", True), ("c", False)):
        b = artifact(tmp_path / name, {"x": [True, True], "y": [False, True]}, reproducible=reproducible)
        monkeypatch.setattr("sys.argv", ["evaluation", "compare", joined(a), joined(b), "--resamples", "50"])
        assert main() == 0
        _, line, note, *more = capsys.readouterr().out.splitlines()
        assert "0.2500 [0.000, 1.000]" in line and "0.7500 [0.000, 1.000]" in line and line.count("[") == 3
        assert "adjusted for the 1 comparisons" in note and "Detectable: the smallest" in note
        assert line.split()[-2:] == ["none", "2"]
        assert more == ([] if reproducible else [NOT_REPRODUCIBLE])


def test_balanced_accuracy_and_tasks_are_compared_by_their_own_statistic(tmp_path):
    answers = {"x": "0", "y": "0", "z": "1"}
    before = {"x": [False], "y": [False], "z": [True]}
    a = artifact(tmp_path / "a", before, answers=answers, task=[(1, 3), (1, 1)])
    b = artifact(tmp_path / "b", before | {"x": [True]}, answers=answers, task=[(3, 3), (1, 1)])
    rows = {row["metric"]: row for row in compare(a, b, resamples=200)}
    assert rows["pass@1"]["difference"] == pytest.approx(1 / 3)
    assert rows["balanced_accuracy"]["difference"] == pytest.approx(1 / 4)
    # Parts of a problem count each: 4 of 4 against 2 of 4, and not the mean of the problems' means.
    assert rows["inst_level_strict_acc,none"]["difference"] == pytest.approx(1 / 2)
    assert all(row["low"] <= row["difference"] <= row["high"] for row in rows.values())
    c = artifact(tmp_path / "c", before, answers=answers, task=[(3, 3)])
    with pytest.raises(ValueError, match="'ifeval' was evaluated on different problems"):
        compare(a, c)


def test_incomparable_artifacts_are_refused(tmp_path):
    a = artifact(tmp_path / "a", {"x": [True]})
    with pytest.raises(ValueError, match="different problems"):
        compare(a, artifact(tmp_path / "b", {"z": [True]}))
    with pytest.raises(ValueError, match="differ in temperature"):
        compare(a, artifact(tmp_path / "c", {"x": [True]}, {**PROTOCOL, "temperature": 0.6}))
    with pytest.raises(ValueError, match="no shared benchmark"):
        compare(a, artifact(tmp_path / "d", {"x": [True]}, name="products"))


def test_another_format_version_is_refused(tmp_path):
    (directory,) = artifact(tmp_path / "a", {"x": [True]})
    (directory / "metrics.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="version 0"):
        read_metrics(directory)
    (directory / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json: not JSON"):
        read_metrics(directory)
    with pytest.raises(ValueError, match=r"none/metrics\.json: no such file; name the directory"):
        read_metrics(tmp_path / "none")


def scored(directory, target, ifeval, minimum=0.5, reproducible=True, metric="inst_level_strict_acc,none"):
    estimate = {"low": 0.0, "high": 1.0, "n": 10}
    shown = [{"pass@1": {"value": target, **estimate}}, {metric: {"value": ifeval, **estimate}}]
    counts = {"problems": 10, "responses": 10, "grading": {"ok": 10}}
    benchmark = {"protocol": {}, "counts": counts, "metrics": shown[0]}
    task = {"protocol": {}, "counts": {"problems": 10}, "versions": {}, "metrics": shown[1]}
    facts = {"reproducible": reproducible, "minimum": minimum}
    return [
        write(directory / "sums", "benchmark", "sums", benchmark, **facts),
        write(directory / "ifeval", "task", "ifeval", task, **facts),
    ]


def test_the_average_leaves_out_what_the_base_cannot_do(tmp_path):
    base, tuned = scored(tmp_path / "base", 0.2, 0.6), scored(tmp_path / "tuned", 0.8, 0.5)
    found = average(tuned, base)
    assert (found["value"], found["included"], found["excluded"]) == (0.5, ["ifeval"], ["sums"])
    assert average(tuned, base, 0.1)["value"] == pytest.approx(0.65)
    assert average(scored(tmp_path / "free", 0.8, 0.5, None))["included"] == ["sums", "ifeval"]
    assert average(tuned, base, 0.1, ["sums"])["value"] == 0.5
    with pytest.raises(ValueError, match=r"--without sum is not in .*; present: sums, ifeval"):
        average(tuned, base, 0.1, ["sum"])
    with pytest.raises(ValueError, match="every name is left out"):
        average(tuned, base, 0.1, ["sums", "ifeval"])
    with pytest.raises(ValueError, match="--base"):
        average(tuned)
    with pytest.raises(ValueError, match=r"below 0\.9"):
        average(tuned, base, 0.9)
    other = scored(tmp_path / "other", 0.8, 0.5, None, metric="f1,none")
    assert set(headlines(read_metrics(other))) == {"sums"}
    with pytest.raises(ValueError, match=r"task 'ifeval' has none of .*; leave it out: --without ifeval"):
        average(other)
    assert average(other, without=["ifeval"])["value"] == 0.8


@pytest.mark.parametrize("reproducible", [True, False])
def test_the_average_has_an_interval_and_says_what_does_not_repeat(tmp_path, capsys, monkeypatch, reproducible):
    tuned = scored(tmp_path / "tuned", 0.8, 0.5, None, reproducible)
    monkeypatch.setattr("sys.argv", ["evaluation", "average", joined(tuned)])
    assert main() == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["low"] < found["value"] < found["high"] and found["reproducible"] is reproducible
    assert captured.err == ("" if reproducible else NOT_REPRODUCIBLE + "\n")


@pytest.mark.parametrize(("column", "value"), [("asked", "other"), ("answer", "7"), ("grader", "exact")])
def test_equal_ids_do_not_make_equal_problems(tmp_path, column, value):
    found = []
    for name in ("a", "b"):
        (directory,) = artifact(tmp_path / name, {"x": [True], "y": [False]})
        rows = pq.read_table(directory / "outcomes.parquet").to_pylist()
        same = {"asked": "chat", "answer": "2", "grader": "math"}
        changed = {column: value} if name == "b" else {}
        rows = [row | same | (changed if row["id"] == "y" else {}) for row in rows]
        pq.write_table(pa.Table.from_pylist(rows, OUTCOMES), directory / "outcomes.parquet")
        found.append(directory)
    with pytest.raises(ValueError, match=f"'sums': problem 'y' is another one under the same id: {column} differ"):
        compare(*found)


def test_another_version_of_a_grader_is_another_protocol(tmp_path):
    a = artifact(tmp_path / "a", {"x": [True]}, {**PROTOCOL, "graders": {"math": 1}})
    b = artifact(tmp_path / "b", {"x": [True]}, {**PROTOCOL, "graders": {"math": 2}})
    with pytest.raises(ValueError, match="differ in graders"):
        compare(a, b)


def test_six_of_thirty_one_way_is_the_exact_test_with_what_it_could_have_found(tmp_path):
    before = {str(i): [False] for i in range(30)}
    after = before | {str(i): [True] for i in range(6)}
    (row,) = compare(artifact(tmp_path / "a", before), artifact(tmp_path / "b", after))
    assert row["p_value"] == 0.03125 and 0.2 <= row["detectable"] < 0.22 and 0 < row["low"] < 0.2 < row["high"]

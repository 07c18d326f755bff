import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.artifact import read_metrics, read_outcomes
from evaluation.compare import compare
from evaluation.evaluate import run
from evaluation.generation import close_engine
from evaluation.statistics import pass_at_k

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARK = {
    "name": "digits",
    "num_samples": 4,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": 12,
    "greedy": True,
    "prompting": "chat",
    "balanced": False,
}


def make_settings(**overrides):
    evaluation = {
        "benchmarks": [SimpleNamespace(**BENCHMARK), SimpleNamespace(**{**BENCHMARK, "name": "letters"})],
        "k": [1, 2, 4, 8],
        "seed": 0,
        "resamples": 50,
        "dtype": "float32",
        "max_length": 64,
        "held_out_chats": 8,
        "batch_size": 10,
        "replicas": 1,
        "gpu_memory": 0.6,
        "tasks": [],
        "task_files": None,
        "base_minimum": None,
        "run_generated_code": False,
    }
    return SimpleNamespace(
        eval=SimpleNamespace(**{**evaluation, **overrides}),
        model=SimpleNamespace(chat_template=None, trust_remote_code=False),
        platform=SimpleNamespace(name="cpu"),
    )


def evaluate(tmp_path, name, model, data, base=None, **overrides):
    output, scratch = tmp_path / name, tmp_path / f"{name}.scratch"
    output.mkdir()
    scratch.mkdir(exist_ok=True)
    calls = []
    inputs = {"model": model, "data": data, **({"base": base} if base else {})}
    run(make_settings(**overrides), inputs, output, scratch, lambda done, total, **m: calls.append((done, total, m)))
    return output, calls


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_checkpoints_in_one_process_are_evaluated_and_compared(tmp_path, model_directory, prepared_data):
    base, tuned = model_directory(tied=True, seed=0), model_directory(tied=True, seed=1)
    first, calls = evaluate(tmp_path, "first", base, prepared_data)
    second, _ = evaluate(tmp_path, "second", tuned, prepared_data, base)

    metrics = read_metrics(second)
    digits = metrics["benchmarks"]["digits"]
    assert set(digits["metrics"]) >= {"pass@1", "pass@2", "pass@4", "greedy", "tokens_p50", "self_bleu", "distinct_2"}
    assert "pass@8" not in digits["metrics"] and digits["counts"]["problems"] == 12
    assert sum(digits["counts"]["grading"].values()) == digits["counts"]["responses"] == 12 * 5
    for estimate in digits["metrics"].values():
        assert estimate["low"] <= estimate["value"] <= estimate["high"] and estimate["n"] == 12
    held_out = metrics["held_out"]
    assert held_out["metrics"]["kl_from_base"]["value"] > 0.1 and held_out["counts"]["chats"] == 8
    assert "kl_from_base" not in read_metrics(first)["held_out"]["metrics"]
    assert sum(share["value"] for share in held_out["entropy_histogram"]["shares"]) == pytest.approx(1.0)
    assert calls[-1][0] == calls[-1][1] == 16 * 5 and set(calls[-1][2]) == {"digits/pass@1", "low", "high"}

    outcomes = read_outcomes(second, "digits")
    assert len(outcomes["sampled"]) == 12 and all(len(correct) == 4 for correct in outcomes["sampled"].values())
    expected = np.mean([pass_at_k(4, sum(correct), 2) for correct in outcomes["sampled"].values()])
    assert digits["metrics"]["pass@2"]["value"] == pytest.approx(expected)

    rows = pq.read_table(second / "generations" / "digits.parquet").to_pylist()
    sampled = {(row["id"], row["sample"]): row for row in rows if row["mode"] == "sampled"}
    # digits-0 and digits-1 ask the same question: drawn once, graded each against its own answer.
    assert [sampled["digits-0", i]["response"] for i in range(4)] == [
        sampled["digits-1", i]["response"] for i in range(4)
    ]
    assert len({row["seed"] for row in sampled.values()}) == 11 * 4
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in rows)

    table = compare(first, second, resamples=200)
    assert {row["metric"] for row in table} == {"greedy", "pass@1", "pass@2", "pass@4"}
    assert all(row["low"] <= row["difference"] <= row["high"] and row["p_holm"] >= row["p_value"] for row in table)
    printed = subprocess.run(
        [sys.executable, "-m", "evaluation", "compare", first, second, "--json", "--resamples", "200"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert json.loads(printed) == table

    # The engine that served another checkpoint in between answers as a fresh one did.
    again, _ = evaluate(tmp_path, "again", base, prepared_data)
    assert payload(again) == payload(first)


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_balanced_accuracy_weighs_classes_alike(tmp_path, model_directory, prepared_data):
    model = model_directory(tied=True, seed=0)
    benchmark = {**BENCHMARK, "name": "letters", "num_samples": 1, "temperature": 0.0, "balanced": True}
    options = {"benchmarks": [SimpleNamespace(**benchmark)], "held_out_chats": 0}
    first, _ = evaluate(tmp_path, "first", model, prepared_data, **options)
    said = {row["id"]: row["response"] for row in pq.read_table(first / "generations" / "letters.parquet").to_pylist()}
    assert said["letters-0"] == said["letters-1"]
    # Two problems of a class that the model gets right, one of another that it gets wrong.
    rows = pq.read_table(prepared_data / "benchmarks" / "letters.parquet").to_pylist()[:3]
    for row, answer in zip(rows, (said["letters-0"], said["letters-0"], "another"), strict=True):
        row["answer"] = answer
    (tmp_path / "data" / "benchmarks").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "benchmarks" / "letters.parquet")
    second, _ = evaluate(tmp_path, "second", model, tmp_path / "data", **options)
    metrics = read_metrics(second)["benchmarks"]["letters"]["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx(2 / 3)
    balanced = metrics["balanced_accuracy"]
    assert balanced["value"] == 0.5 and balanced["low"] <= 0.5 <= balanced["high"] and balanced["n"] == 3
    close_engine()


RUN = """
import json, pathlib, sys
sys.path.insert(0, {tests!r})
from test_evaluate import make_settings
from evaluation.evaluate import run
paths = {{name: pathlib.Path(path) for name, path in json.loads(sys.argv[1]).items()}}
def report(done, total, **metrics):
    print(done, total, flush=True)
run(make_settings(), {{"model": paths["model"], "data": paths["data"]}}, paths["output"], paths["scratch"], report)
"""


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_killed_evaluation_resumes_to_the_same_bytes(tmp_path, model_directory, prepared_data):
    model = model_directory(tied=False, seed=0)
    whole, _ = evaluate(tmp_path, "whole", model, prepared_data)
    scratch, output = tmp_path / "scratch", tmp_path / "killed"
    scratch.mkdir()
    output.mkdir()
    paths = {"model": model, "data": prepared_data, "output": output, "scratch": scratch}
    code = RUN.format(tests=str(pathlib.Path(__file__).parent))
    arguments = [sys.executable, "-c", code, json.dumps({name: str(path) for name, path in paths.items()})]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 600
    while len(list(scratch.glob("generations/*/*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "metrics.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in scratch.glob("generations/*/*.parquet")}
    assert 2 <= len(finished) < 10
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    run(make_settings(), {"model": model, "data": prepared_data}, resumed, scratch, lambda *_, **__: None)
    assert payload(resumed) == payload(whole)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_replicas_write_the_same_bytes_as_one_also_over_what_one_left(tmp_path, model_directory, prepared_data):
    model = model_directory(tied=True, seed=2)
    whole, _ = evaluate(tmp_path, "one", model, prepared_data)
    both, _ = evaluate(tmp_path, "two", model, prepared_data, replicas=2)
    assert payload(both) == payload(whole)
    # A run that one engine left half done, finished by two.
    scratch = tmp_path / "mixed.scratch"
    shutil.copytree(tmp_path / "one.scratch", scratch)
    shards = sorted(scratch.glob("generations/*/*.parquet"))
    for path in shards[::2]:
        path.unlink()
    mixed, _ = evaluate(tmp_path, "mixed", model, prepared_data, replicas=2)
    assert payload(mixed) == payload(whole)
    # Other weights, loaded into the same two engines.
    other = model_directory(tied=True, seed=3)
    reloaded, _ = evaluate(tmp_path, "reloaded", other, prepared_data, replicas=2)
    alone, _ = evaluate(tmp_path, "alone", other, prepared_data)
    assert payload(reloaded) == payload(alone) != payload(whole)
    close_engine()


def payload(output: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in output.rglob("*") if path.is_file() and path.name != "timings.jsonl")
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"benchmarks": []}, "eval.benchmarks"),
        ({"benchmarks": [SimpleNamespace(**BENCHMARK), SimpleNamespace(**BENCHMARK)]}, "occurs twice"),
        ({"tasks": [SimpleNamespace(name="digits")]}, "occurs twice"),
        ({"tasks": [SimpleNamespace(name="no_such_task")]}, "eval.tasks: 'no_such_task' is no task of"),
        ({"benchmarks": [SimpleNamespace(**{**BENCHMARK, "name": "none"})]}, "present: digits, letters"),
        ({"max_length": 20}, "eval.max_length=20"),
        (
            {"benchmarks": [SimpleNamespace(**{**BENCHMARK, "temperature": 0.0})]},
            "eval.benchmarks: 'digits': .* greedy samples",
        ),
        ({"k": [0, 1]}, r"eval.k=\[0, 1\]: each k of pass@k is at least 1"),
    ],
)
def test_bad_settings_stop_before_any_model_is_loaded(tmp_path, model_directory, prepared_data, overrides, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, "bad", model_directory(tied=True, seed=0), prepared_data, **overrides)

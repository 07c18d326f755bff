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

from common.errors import ConfigError
from evaluation import checks, generate, measure
from evaluation.artifact import read_measured, read_metrics, read_outcomes
from evaluation.compare import compare
from evaluation.generation import Sample, close_engine
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
    "plain": "{prompt}\n\n{answer}",
    "shots": [],
    "stop": [],
    "prefill": "",
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
        "eager": False,
        "tensor_parallel": 1,
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


@pytest.fixture
def evaluate(tmp_path, prepared_data, evaluate_all):
    """Factory evaluate(name, model, ...) of measure artifacts and the calls of `report`."""

    def run(name, model, data=prepared_data, base=None, **overrides):
        calls = []
        inputs = {"model": model, **({"base": base} if base else {})}
        found = evaluate_all(
            make_settings(**overrides),
            inputs,
            data,
            tmp_path / name,
            lambda done, total, **metrics: calls.append((done, total, metrics)),
        )
        return found, calls

    return run


def generations(tmp_path, name, benchmark):
    path = tmp_path / name / "generated" / benchmark / "generations.parquet"
    return pq.read_table(path).to_pylist()


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_checkpoints_in_one_process_are_evaluated_and_compared(tmp_path, model_directory, evaluate):
    base, tuned = model_directory(tied=True, seed=0), model_directory(tied=True, seed=1)
    first, calls = evaluate("first", base)
    second, _ = evaluate("second", tuned, base=base)

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
    ends = [(done, set(shown)) for done, total, shown in calls if shown and done == total]
    assert ends == [(count * 5, {f"{name}/pass@1", "low", "high"}) for name, count in (("digits", 12), ("letters", 4))]

    outcomes = read_outcomes(second, "digits")
    assert len(outcomes["sampled"]) == 12 and all(len(correct) == 4 for correct in outcomes["sampled"].values())
    expected = np.mean([pass_at_k(4, sum(correct), 2) for correct in outcomes["sampled"].values()])
    assert digits["metrics"]["pass@2"]["value"] == pytest.approx(expected)

    rows = generations(tmp_path, "second", "digits")
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
        [
            *(sys.executable, "-m", "evaluation", "compare"),
            *(",".join(map(str, one)) for one in (first, second)),
            *("--json", "--resamples", "200"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert json.loads(printed) == table

    # The engine that served another checkpoint in between answers as a fresh one did.
    evaluate("again", base)
    assert payload(tmp_path / "again") == payload(tmp_path / "first")


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_balanced_accuracy_weighs_classes_alike(tmp_path, model_directory, prepared_data, evaluate):
    model = model_directory(tied=True, seed=0)
    benchmark = {**BENCHMARK, "name": "letters", "num_samples": 1, "temperature": 0.0, "balanced": True}
    options = {"benchmarks": [SimpleNamespace(**benchmark)], "held_out_chats": 0}
    evaluate("first", model, **options)
    said = {row["id"]: row["response"] for row in generations(tmp_path, "first", "letters")}
    assert said["letters-0"] == said["letters-1"]
    # Two problems of a class that the model gets right, one of another that it gets wrong.
    rows = pq.read_table(prepared_data / "letters" / "problems.parquet").to_pylist()[:3]
    for row, answer in zip(rows, (said["letters-0"], said["letters-0"], "another"), strict=True):
        row["answer"] = answer
    (tmp_path / "data" / "letters").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "letters" / "problems.parquet")
    second, _ = evaluate("second", model, tmp_path / "data", **options)
    metrics = read_metrics(second)["benchmarks"]["letters"]["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx(2 / 3)
    balanced = metrics["balanced_accuracy"]
    assert balanced["value"] == 0.5 and balanced["low"] <= 0.5 <= balanced["high"] and balanced["n"] == 3
    close_engine()


RUN = """
import json, pathlib, sys
from types import SimpleNamespace
from evaluation import generate
def settings(value):
    return json.loads(value, object_hook=lambda fields: SimpleNamespace(**fields))
paths = {name: pathlib.Path(path) for name, path in json.loads(sys.argv[1]).items()}
inputs = {"model": paths["model"], "problems": paths["problems"]}
generate.run(settings(sys.argv[2]), inputs, paths["output"], paths["scratch"], lambda *_, **__: None)
"""


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_killed_evaluation_resumes_to_the_same_bytes(tmp_path, model_directory, prepared_data, evaluate):
    model = model_directory(tied=False, seed=0)
    evaluate("whole", model)
    scratch, output = tmp_path / "scratch", tmp_path / "killed"
    scratch.mkdir()
    output.mkdir()
    problems = prepared_data / "digits"
    paths = {"model": model, "problems": problems, "output": output, "scratch": scratch}
    settings = make_settings()
    settings.benchmark = settings.eval.benchmarks[0]
    arguments = [
        *(sys.executable, "-c", RUN),
        json.dumps({name: str(path) for name, path in paths.items()}),
        json.dumps(settings, default=vars),
    ]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 600
    while len(list(scratch.glob("generations/*/*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "generations.parquet").exists() and not (output / "engine.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in scratch.glob("generations/*/*.parquet")}
    assert 2 <= len(finished) < 7
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    generate.run(settings, {"model": model, "problems": problems}, resumed, scratch, lambda *_, **__: None)
    assert payload(resumed) == payload(tmp_path / "whole" / "generated" / "digits")
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_replicas_write_the_same_bytes_as_one_also_over_what_one_left(tmp_path, model_directory, evaluate):
    model = model_directory(tied=True, seed=2)
    evaluate("one", model)
    evaluate("two", model, replicas=2)
    whole = payload(tmp_path / "one")
    assert payload(tmp_path / "two") == whole
    # A run that one engine left half done, finished by two.
    shutil.copytree(tmp_path / "one" / "scratch", tmp_path / "mixed" / "scratch")
    shards = sorted((tmp_path / "mixed" / "scratch").glob("*/generations/*/*.parquet"))
    assert len(shards) > 5
    for path in shards[::2]:
        path.unlink()
    evaluate("mixed", model, replicas=2)
    assert payload(tmp_path / "mixed") == whole
    # Other weights, loaded into the same two engines.
    other = model_directory(tied=True, seed=3)
    evaluate("reloaded", other, replicas=2)
    evaluate("alone", other)
    assert payload(tmp_path / "reloaded") == payload(tmp_path / "alone") != whole
    close_engine()


def payload(directory: pathlib.Path) -> dict[str, bytes]:
    """What was generated and measured, by name, but for the times it took."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "timings.jsonl")
    named = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not name.startswith("scratch")}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"benchmarks": []}, "eval.benchmarks"),
        ({"benchmarks": [SimpleNamespace(**BENCHMARK), SimpleNamespace(**BENCHMARK)]}, "occurs twice"),
        ({"tasks": [SimpleNamespace(name="digits")]}, "occurs twice"),
        (
            {"benchmarks": [SimpleNamespace(**{**BENCHMARK, "temperature": 0.0})]},
            "eval.benchmarks: 'digits': .* greedy samples",
        ),
        ({"k": [0, 1]}, r"eval.k=\[0, 1\]: each k of pass@k is at least 1"),
    ],
)
def test_bad_settings_are_refused_before_there_is_data(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        checks.check(make_settings(**overrides).eval)
    assert "\n" not in str(caught.value)


def test_the_checks_import_no_heavy_library():
    code = (
        "import sys; from evaluation.checks import check;"
        "heavy = {'torch', 'vllm', 'ray', 'verl', 'transformers', 'pyarrow', 'sympy', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"benchmarks": [], "tasks": [SimpleNamespace(name="no_such_task")]}, "eval.tasks: 'no_such_task' is no task"),
        ({"benchmarks": [SimpleNamespace(**{**BENCHMARK, "name": "none"})]}, "'none' is not prepared; present: none"),
        ({"max_length": 20}, "eval.max_length=20"),
        (
            {"benchmarks": [SimpleNamespace(**{**BENCHMARK, "temperature": 0.0})]},
            "eval.benchmarks: 'digits': .* greedy samples",
        ),
    ],
)
def test_bad_settings_stop_before_any_model_is_loaded(model_directory, evaluate, monkeypatch, overrides, message):
    monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: pytest.fail("an engine was started"))
    with pytest.raises(ConfigError, match=message):
        evaluate("bad", model_directory(tied=True, seed=0), **overrides)


class Echo:
    """An engine without vLLM, whose responses depend on the seed alone."""

    count, reproducible, description = 1, True, {"vllm": "none"}

    def run(self, shards, heartbeat):
        for number, requests in shards:
            texts = [rf"so it is \boxed{{{one.seed % 3}}}" for one in requests]
            yield number, [Sample(text, "stop", len(text), one.seed) for text, one in zip(texts, requests, strict=True)]


@pytest.fixture
def generated(tmp_path, model_directory, prepared_data, monkeypatch):
    """Settings of the benchmark `digits`, and what an engine without vLLM has generated to it."""
    monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: Echo())
    settings = make_settings()
    settings.benchmark = settings.eval.benchmarks[0]
    output = tmp_path / "digits"
    output.mkdir()
    # The other benchmarks are not there at all: generating to one reads only its own.
    inputs = {"model": model_directory(tied=True, seed=0), "problems": prepared_data / "digits"}
    generate.run(settings, inputs, output, tmp_path / "scratch", lambda *_, **__: None)
    return settings, output


def test_generating_one_benchmark_reads_no_other(generated):
    _, output = generated
    assert sorted(path.name for path in output.iterdir()) == ["engine.json", "generations.parquet", "timings.jsonl"]
    rows = pq.read_table(output / "generations.parquet").to_pylist()
    assert len(rows) == 12 * 5 and {row["id"].split("-")[0] for row in rows} == {"digits"}
    assert "correct" not in rows[0] and "status" not in rows[0]


def test_other_graders_or_resamples_measure_what_was_generated_again(tmp_path, generated):
    settings, output = generated
    found = []
    for resamples in (50, 60):
        settings.eval.resamples = resamples
        directory = tmp_path / str(resamples)
        directory.mkdir()
        measure.run(settings, {"generations": output}, directory, tmp_path, lambda *_, **__: None)
        found.append(read_measured(directory)["metrics"]["distinct_1"])
    assert found[0]["value"] == found[1]["value"] and found[0] != found[1]


@pytest.mark.parametrize(
    ("name", "file", "column", "asked", "message"),
    [
        ("trained_on_sft", "sft_train.parquet", "messages", " 4+1= ", r"problem 'digits-4' is row 1 of the SFT chats"),
        ("trained_on_rl", "rl_train.parquet", "prompt", "7+1=", r"problem 'digits-7' is row 1 of the RL prompts"),
        ("trained_on_sft", "sft_train.parquet", "messages", "4+2=", None),
        ("trained_on_rl", "rl_train.parquet", "prompt", "4 + 1 =", None),
    ],
)
def test_a_problem_that_the_model_was_trained_on_is_refused(tmp_path, generated, name, file, column, asked, message):
    settings, output = generated
    chats = [[{"role": "system", "content": "4+1="}, {"role": "user", "content": text}] for text in ("9+9=", asked)]
    if column == "messages":
        chats = [[*chat, {"role": "assistant", "content": "4+1="}] for chat in chats]
    pq.write_table(pa.table({column: chats, "id": ["a", "b"]}), tmp_path / file)
    directory = tmp_path / "measured"
    directory.mkdir()
    inputs = {"generations": output, name: tmp_path}
    if message is None:
        measure.run(settings, inputs, directory, tmp_path, lambda *_, **__: None)
        assert read_measured(directory)["counts"]["problems"] == 12
        return
    with pytest.raises(ConfigError, match=rf"eval\.benchmarks: 'digits': {message}"):
        measure.run(settings, inputs, directory, tmp_path, lambda *_, **__: None)
    assert not (directory / "metrics.json").exists()


def test_a_reference_that_no_grader_reads_names_its_problem(tmp_path, generated):
    settings, output = generated
    table = pq.read_table(output / "generations.parquet")
    graders = pa.array(["date"] * table.num_rows)
    pq.write_table(
        table.set_column(table.column_names.index("grader"), "grader", graders), output / "generations.parquet"
    )
    with pytest.raises(ConfigError, match="'digits': problem 'digits-0': answer: '0' is not a date"):
        measure.run(settings, {"generations": output}, tmp_path, tmp_path, lambda *_, **__: None)


def test_a_stage_measures_exactly_one_thing(tmp_path):
    settings = make_settings()
    with pytest.raises(ConfigError, match=r"name exactly one, found \[\]"):
        generate.run(settings, {}, tmp_path, tmp_path, lambda *_, **__: None)
    settings.held_out, settings.task = True, SimpleNamespace(name="mmlu")
    with pytest.raises(ConfigError, match=r"found \['task', 'held_out'\]"):
        measure.run(settings, {"generations": tmp_path}, tmp_path, tmp_path, lambda *_, **__: None)


def test_a_problem_that_is_too_long_to_answer_counts_as_unanswered(
    tmp_path, model_directory, prepared_data, monkeypatch
):
    asked = []

    class Counting(Echo):
        def run(self, shards, heartbeat):
            shards = list(shards)
            asked.extend(request for _, requests in shards for request in requests)
            yield from super().run(shards, heartbeat)

    monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: Counting())
    problems = pq.read_table(prepared_data / "digits" / "problems.parquet").to_pylist()
    problems[3]["prompt"] = [{"role": "user", "content": "1 " * 500}]
    (tmp_path / "digits").mkdir()
    pq.write_table(pa.Table.from_pylist(problems), tmp_path / "digits" / "problems.parquet")
    settings = make_settings()
    settings.benchmark = settings.eval.benchmarks[0]
    output, scratch = tmp_path / "generated", tmp_path / "scratch"
    output.mkdir()
    inputs = {"model": model_directory(tied=True, seed=0), "problems": tmp_path / "digits"}
    generate.run(settings, inputs, output, scratch, lambda *_, **__: None)
    rows = pq.read_table(output / "generations.parquet").to_pylist()
    long = [row for row in rows if row["id"] == problems[3]["id"]]
    assert len(rows) == len(problems) * 5
    assert {(row["response"], row["finish_reason"]) for row in long} == {("", "prompt_too_long")}
    assert max(len(request.prompt) for request in asked) < settings.eval.max_length

    measured = tmp_path / "measured"
    measured.mkdir()
    measure.run(settings, {"generations": output}, measured, scratch, lambda *_, **__: None)
    counts = read_metrics(measured)["benchmarks"]["digits"]["counts"]
    assert (counts["problems"], counts["unanswered"], counts["grading"]["no_answer"]) == (len(problems), 1, 5)


@pytest.fixture
def failing(monkeypatch):
    """Factory failing(count): the grading of the first `count` answers times out."""

    def fail(count):
        graded = iter(range(1000))

        def verdict(outcome):
            found = judged(outcome)
            return type(found)(False, "timeout") if next(graded) < count else found

        monkeypatch.setattr(measure.GradingPool, "verdict", staticmethod(verdict))

    judged = measure.GradingPool.verdict
    return fail


def test_a_benchmark_whose_grading_failed_is_not_a_score(tmp_path, generated, failing):
    settings, output = generated
    failing(2)
    with pytest.raises(
        RuntimeError, match=r"'digits': 2 of 60 answers could not be graded \(problem 'digits-0' first; .*2%"
    ):
        measure.run(settings, {"generations": output}, tmp_path, tmp_path, lambda *_, **__: None)
    assert not (tmp_path / "metrics.json").exists()
    failing(1)
    measure.run(settings, {"generations": output}, tmp_path, tmp_path, lambda *_, **__: None)
    metrics = read_measured(tmp_path)["metrics"]
    for name in ("pass@1", "pass@4", "greedy"):
        assert metrics[f"at_most_{name}"]["value"] >= metrics[name]["value"]
    assert metrics["at_most_pass@1"]["value"] == pytest.approx(metrics["pass@1"]["value"] + 1 / 48)
    assert metrics["ungraded"]["value"] == pytest.approx(1 / 48)


def test_where_all_was_graded_there_is_no_bound(tmp_path, generated):
    settings, output = generated
    measure.run(settings, {"generations": output}, tmp_path, tmp_path, lambda *_, **__: None)
    found = read_measured(tmp_path)
    assert not [name for name in found["metrics"] if name.startswith("at_most")]
    assert found["metrics"]["same_problems"]["value"] == pytest.approx(found["metrics"]["pass@1"]["value"])
    assert found["protocol"]["graders"].keys() == {"math"} and found["counts"]["clamped"] == 0


def test_answers_are_cut_to_the_context_and_counted_and_begin_as_told(
    tmp_path, model_directory, prepared_data, monkeypatch
):
    monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: Echo())
    settings = make_settings(max_length=64)
    form = {"prompting": "plain", "plain": "{prompt}\n{answer}", "prefill": "So ", "max_tokens": 15}
    settings.benchmark = SimpleNamespace(**{**BENCHMARK, **form})
    output = tmp_path / "digits"
    output.mkdir()
    # Prompts of 4 + 3 characters, of two digits 5 + 3; the model's own context is 22 tokens, less than eval.max_length.
    model = tmp_path / "model"
    shutil.copytree(model_directory(tied=True, seed=0), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 22}))
    inputs = {"model": model, "problems": prepared_data / "digits"}
    generate.run(settings, inputs, output, tmp_path / "scratch", lambda *_, **__: None)
    rows = pq.read_table(output / "generations.parquet").to_pylist()
    assert {row["id"]: row["limit"] for row in rows} == {f"digits-{i}": 15 if i < 10 else 14 for i in range(12)}
    assert all(row["prompt"].endswith("+1=So ") and row["response"].startswith("So so it is") for row in rows)
    assert json.loads((output / "engine.json").read_text())["max_length"] == 22
    measure.run(settings, {"generations": output}, tmp_path, tmp_path, lambda *_, **__: None)
    assert read_measured(tmp_path)["counts"]["clamped"] == 2
    config["max_position_embeddings"] = 8  # room for one token after a prompt of one digit, for none after two
    (model / "config.json").write_text(json.dumps(config))
    generate.run(settings, inputs, output, tmp_path / "scratch", lambda *_, **__: None)
    measure.run(settings, {"generations": output}, tmp_path, tmp_path, lambda *_, **__: None)
    counts = read_measured(tmp_path)["counts"]
    assert (counts["problems"], counts["clamped"], counts["unanswered"]) == (12, 12, 2)
    config["max_position_embeddings"] = 7
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json: context=7: no problem of 'digits' leaves room .* 7 tokens"):
        generate.run(settings, inputs, output, tmp_path / "scratch", lambda *_, **__: None)


def test_forward_passes_end_the_engine_before_they_take_the_device(
    tmp_path, model_directory, prepared_data, monkeypatch
):
    order = []
    monkeypatch.setattr("evaluation.generation.engine.close_engine", lambda: order.append("engine closed"))

    def forward(*_, device, **__):
        order.append(f"passes on {device}")
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.held_out.forward", forward)
    inputs = {"model": model_directory(tied=True, seed=0), "data": prepared_data / "sft"}
    for platform in ("gpu", "cpu"):
        settings = make_settings()
        settings.held_out, settings.platform.name = True, platform
        with pytest.raises(KeyboardInterrupt):
            generate.run(settings, inputs, tmp_path, tmp_path, lambda *_, **__: None)
    assert order == ["engine closed", "passes on cuda", "passes on cpu"]

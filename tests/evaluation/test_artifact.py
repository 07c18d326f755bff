"""What may stand in metrics.json: metrics with their intervals, plain counts, settings, and nothing else."""

import copy
import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.artifact import Benchmark, HeldOut, Task, read_measured, read_metrics, write_metrics
from evaluation.compare import NOT_REPRODUCIBLE
from evaluation.generation import Sample
from evaluation.grading import Grade
from evaluation.grading.pool import GradingPool
from evaluation.held_out import ENTROPY_EDGES
from evaluation.held_out import HeldOut as Sums
from evaluation.metrics import of_benchmark, of_held_out
from evaluation.statistics import bootstrap, ratio_of_sums

SETTINGS = SimpleNamespace(k=[1, 2, 4], seed=0, resamples=100)
BENCHMARK = SimpleNamespace(name="sums", num_samples=2, balanced=True)
ANSWERS = [str(i % 2) for i in range(4)]
STATUSES = [("ok", "ok"), ("no_answer", "timeout"), ("ok", "crash"), ("ok", "error")]


def measured():
    """`of_benchmark` of eight sampled and four greedy responses, three of which no grader judged."""
    texts = [["one two three", "one two four"], ["a b", "a b"], ["c d e", "f"], ["g h i", "g h j"]]
    drawn = [[Sample(text, "stop", len(text), 0) for text in pair] for pair in texts]
    grades = [[Grade(status == "ok", status) for status in pair] for pair in STATUSES]
    both = {"sampled": grades, "greedy": [pair[:1] for pair in grades]}
    with GradingPool(workers=1) as pool:
        return of_benchmark(BENCHMARK, ANSWERS, drawn, both, SETTINGS, pool, lambda: None)


def held_out(chats=5):
    rng = np.random.default_rng(0)
    histogram = rng.integers(0, 9, size=(chats, len(ENTROPY_EDGES) - 1))
    histogram[:, 0] = 0
    tokens = histogram.sum(axis=1).astype(np.float64)
    entropy, kl = tokens * rng.random(chats), tokens * rng.random(chats)
    return Sums(entropy, tokens * 2.0, kl, tokens, histogram, entropy / 2, kl / 4)


@pytest.fixture(scope="module")
def measurements():
    """One of each kind, by kind."""
    found = held_out()
    counts = {"chats": 5, "chats_too_long": 1, "tokens": int(found.tokens.sum())}
    shown = {"exact_match,none": vars(bootstrap([0.0, 1.0, 1.0], seed=0, resamples=50))}
    engine = {"vllm": "0.28.0", "dtype": "float32", "max_length": 64, "reproducible": True}
    facts = {"engine": engine, "base_minimum": 0.5}
    return {
        "held_out": {
            **facts,
            "kind": "held_out",
            "name": "held_out",
            "protocol": {"held_out_chats": 6},
            "counts": counts,
            **of_held_out(found, 0, 100),
        },
        "benchmark": {
            **facts,
            "kind": "benchmark",
            "name": "sums",
            "protocol": {"num_samples": 2},
            "counts": {"problems": 4, "responses": 12, "grading": {"ok": 7, "no_answer": 2, "timeout": 3}},
            "metrics": measured(),
        },
        "task": {
            **facts,
            "kind": "task",
            "name": "gsm8k",
            "protocol": {"name": "gsm8k", "num_fewshot": 5},
            "counts": {"problems": 3},
            "versions": {"gsm8k": "3.0"},
            "metrics": shown,
        },
    }


def bare_numbers(node, path=()):
    """Places of the numbers that are neither in an interval, nor a count, nor a setting."""
    if isinstance(node, dict):
        if node.keys() == {"value", "low", "high", "n"}:
            assert node["low"] <= node["value"] <= node["high"] and node["n"] >= 1, path
            return []
        parts = ((key, value) for key, value in node.items() if key not in ("counts", "protocol", "engine", "edges"))
    elif isinstance(node, list):
        parts = enumerate(node)
    else:
        return [path] if isinstance(node, int | float) and path not in (("version",), ("base_minimum",)) else []
    return [place for key, value in parts for place in bare_numbers(value, (*path, key))]


def test_every_number_of_an_evaluation_is_a_metric_with_its_interval_or_a_count(tmp_path, measurements):
    for kind, one in measurements.items():
        (tmp_path / kind).mkdir()
        write_metrics(tmp_path / kind, one)
        written = json.loads((tmp_path / kind / "metrics.json").read_text())
        assert bare_numbers(written) == [] and read_measured(tmp_path / kind) == written
    merged = read_metrics([tmp_path / kind for kind in measurements])
    assert bare_numbers(merged) == []
    assert len(merged["held_out"]["entropy_histogram"]["shares"]) == len(ENTROPY_EDGES) - 1
    # The walk itself sees a number that has none.
    merged["benchmarks"]["sums"]["metrics"]["greedy"] = 0.5
    assert bare_numbers(merged) == [("benchmarks", "sums", "metrics", "greedy")]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("benchmark", "metrics", "pass@1"), 0.5, r"benchmark\.metrics\.pass@1: .* found 0\.5"),
        (("benchmark", "metrics", "pass@1", "low"), 2.0, r"low=2\.0 is above high"),
        (("benchmark", "grading"), {"ok": 8}, r"benchmark\.grading: Extra inputs are not permitted"),
        (("benchmark", "counts", "responses"), 0.5, r"counts\.responses"),
        (("held_out", "chats"), 5, r"held_out\.chats: Extra"),
        (("held_out", "metrics", "entropy", "n"), 0, r"entropy\.n"),
        (("held_out", "entropy_histogram", "shares"), [], "edges for 0 shares"),
        (("task", "metrics", "exact_match,none"), {"value": 0.5}, r"low: Field required"),
        (("task", "base_minimum"), float("nan"), "base_minimum"),
        (("task", "accuracy"), 0.5, "accuracy: Extra"),
    ],
)
def test_a_number_that_is_out_of_place_is_refused_with_its_file_and_field(
    tmp_path, measurements, place, value, message
):
    changed = copy.deepcopy(measurements)
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(ValueError, match=rf"metrics\.json: .*{message}") as caught:
        write_metrics(tmp_path, changed[place[0]])
    assert "\n" not in str(caught.value) and not (tmp_path / "metrics.json").exists()


def test_the_versions_agree():
    for kind in (Benchmark, Task, HeldOut):
        assert kind.model_json_schema()["properties"]["version"]["const"] == 4


def test_what_was_measured_of_one_model_is_read_together_and_once(tmp_path, measurements):
    for kind, one in measurements.items():
        (tmp_path / kind).mkdir()
        facts = {"vllm": None, "dtype": "float32", "max_length": 64, "reproducible": kind != "task"}
        write_metrics(tmp_path / kind, one | ({} if kind == "benchmark" else {"engine": facts}))
    merged = read_metrics([tmp_path / kind for kind in measurements])
    assert merged.keys() == {"engine", "held_out", "benchmarks", "tasks", "base_minimum"}
    assert merged["engine"] == measurements["benchmark"]["engine"] | {"reproducible": False}
    assert merged["held_out"].keys() == {"counts", "metrics", "entropy_histogram"}
    assert merged["benchmarks"]["sums"].keys() == {"protocol", "counts", "metrics"}
    assert merged["tasks"]["gsm8k"].keys() == {"protocol", "counts", "versions", "metrics"}
    assert read_metrics(tmp_path / "task")["benchmarks"] == {} and merged["base_minimum"] == 0.5
    with pytest.raises(ValueError, match="'sums' was measured twice"):
        read_metrics([tmp_path / "benchmark", tmp_path / "benchmark"])
    with pytest.raises(ValueError, match="at least one"):
        read_metrics([])


def test_responses_that_were_not_graded_are_a_share_with_an_interval():
    found = measured()
    ungraded = found["ungraded"]
    assert ungraded["value"] == 3 / 8 and ungraded["n"] == 4 and 0 <= ungraded["low"] < ungraded["high"] <= 1
    assert found["unanswered"]["value"] == 1 / 8
    assert found["pass@1"]["value"] == 4 / 8 and found["greedy"]["value"] == 3 / 4


def test_the_shares_of_the_histogram_are_token_weighted_and_an_empty_bin_is_not_certain():
    found = held_out()
    shares = of_held_out(found, 0, 100)["entropy_histogram"]["shares"]
    assert sum(share["value"] for share in shares) == pytest.approx(1.0)
    for place, share in enumerate(shares):
        tokens = found.histogram[:, place]
        assert share["value"] == pytest.approx(tokens.sum() / found.tokens.sum()) and share["n"] == 5
        if place:
            both = np.stack([tokens, found.tokens], axis=1)
            direct = bootstrap(both, seed=0, resamples=100, statistic=ratio_of_sums)
            assert (share["low"], share["high"]) == (direct.low, direct.high)
    # Clopper and Pearson's bound for none of five.
    assert (shares[0]["value"], shares[0]["low"]) == (0.0, 0.0)
    assert shares[0]["high"] == pytest.approx(1 - 0.025 ** (1 / 5))


class Echo:
    """An engine without vLLM: responses that depend on the seed alone, answers that say what is likeliest."""

    def __init__(self, reproducible):
        self.count, self.reproducible, self.description = 1, reproducible, {"vllm": "none"}

    def run(self, shards, heartbeat):
        for number, requests in shards:
            texts = [rf"so it is \boxed{{{one.seed % 3}}}" if one.seed % 5 else "none" for one in requests]
            yield number, [Sample(text, "stop", len(text), one.seed) for text, one in zip(texts, requests, strict=True)]

    def score(self, rows, heartbeat):
        return [(-float(sum(ids) % 7), False) for ids, _ in rows]


TASK = {
    "task": "local_pick",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["1", "2"],
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}


def test_a_whole_evaluation_prints_no_metric_without_an_interval(
    tmp_path, model_directory, prepared_data, evaluate_all, monkeypatch, capsys
):
    import lm_eval.tasks

    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}+{i}=", "answer": i % 2}) + "\n" for i in range(4)))
    (tmp_path / "pick.yaml").write_text(json.dumps(TASK | {"dataset_kwargs": {"data_files": {"test": str(rows)}}}))
    sampling = {"num_samples": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 12, "greedy": True}
    form = {"prompting": "chat", "plain": "{prompt}\n\n{answer}", "shots": [], "stop": [], "prefill": ""}
    benchmark = SimpleNamespace(name="digits", **sampling, **form, balanced=True)
    evaluation = {
        "benchmarks": [benchmark],
        "tasks": [SimpleNamespace(name="local_pick", num_fewshot=None, limit=None, chat=False)],
        "task_files": str(tmp_path),
        "k": [1, 2, 4],
        "resamples": 50,
        "dtype": "float32",
        "max_length": 64,
        "held_out_chats": 8,
        "batch_size": 10,
        "replicas": 1,
        "gpu_memory": 0.6,
        "eager": False,
        "tensor_parallel": 1,
        "base_minimum": None,
        "run_generated_code": False,
    }
    model = SimpleNamespace(chat_template=None, trust_remote_code=False)
    inputs = {"model": model_directory(tied=True, seed=1), "base": model_directory(tied=True, seed=0)}
    outputs = []
    for seed, reproducible in ((0, True), (1, False)):
        monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_, r=reproducible: Echo(r))
        settings = SimpleNamespace(
            eval=SimpleNamespace(**evaluation, seed=seed), model=model, platform=SimpleNamespace(name="cpu")
        )
        shown = []
        outputs.append(
            evaluate_all(
                settings,
                inputs,
                prepared_data,
                tmp_path / f"output-{seed}",
                lambda done, total, shown=shown, **metrics: shown.append(metrics),
            )
        )
        assert [one for one in shown if one][-1].keys() == {"digits/pass@1", "low", "high"}
    found = read_metrics(outputs[0])
    assert bare_numbers(found) == []
    counts = found["benchmarks"]["digits"]["counts"]
    assert counts["problems"] == 12 and sum(counts["grading"].values()) == counts["responses"] == 12 * 5
    assert found["tasks"]["local_pick"]["counts"] == {"problems": 4, "cut": 0, "clamped": 0, "ungraded": 0}
    assert found["held_out"]["counts"]["chats"] == 8 and "kl_from_base" in found["held_out"]["metrics"]

    monkeypatch.setattr(
        "sys.argv", ["evaluation", "compare", *(",".join(map(str, one)) for one in outputs), "--resamples", "50"]
    )
    assert main() == 0
    _, *lines, holm, note = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {
        "pass@1",
        "pass@2",
        "pass@4",
        "greedy",
        "balanced_accuracy",
        "acc,none",
    }
    # A value, its bounds; three times; then p-values and n.
    number = r"[+-]?\d+\.\d+"
    cell = rf"{number} \[{number}, {number}\]"
    assert all(re.fullmatch(rf"\S+ +\S+ +{cell} +{cell} +{cell} +\S+ +\S+ +\S+ +\d+", line) for line in lines)
    assert "6 comparisons" in holm and note == NOT_REPRODUCIBLE

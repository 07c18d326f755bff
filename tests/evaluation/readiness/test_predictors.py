"""Predictors against their definitions, from hand-made evidence and from artifacts."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from evaluation import readiness
from evaluation.artifact import write_metrics
from evaluation.readiness.contract import Evidence
from evaluation.readiness.stage import read_figures, run

OURS = {3: [0, 0, 0, 0], 5: [1, 0, 0, 1], 7: [1, 1, 1, 1], 9: [1, 0, 0, 0]}
BASE = {3: [0, 1, 0, 0], 5: [0, 0, 0, 0], 7: [1, 1, 1, 1], 9: [0, 1, 0, 0]}
PROMPTS = ("prompt_pass_rate", "learnable", "group_variance", "coverage_gained", "coverage_lost")


def evidence(ours=OURS, base=BASE, scale=1.0, target=None):
    correct = {prompt: np.array(one, dtype=bool) for prompt, one in ours.items()}
    before = None if base is None else {prompt: np.array(one, dtype=bool) for prompt, one in base.items()}
    scores = {prompt: scale * one.astype(float) for prompt, one in correct.items()}
    return Evidence(target or {}, {}, scores, correct, before)


def figures(found):
    return {key: one for name in readiness.names() for key, one in readiness.load(name).figures(found).items()}


def test_figures_of_the_prompts_are_what_they_are_defined_to_be():
    found = figures(evidence(scale=2.0))
    assert set(found) == set(PROMPTS)
    assert found["prompt_pass_rate"].value == pytest.approx((0 + 0.5 + 1 + 0.25) / 4)
    assert found["learnable"].value == 0.5
    assert found["group_variance"].value == pytest.approx(4 * (0 + 1 / 3 + 0 + 0.25) / 4)
    assert (found["coverage_gained"].value, found["coverage_lost"].value) == (0.25, 0.25)
    for one in found.values():
        assert one.low < one.value < one.high and one.n == 4


def test_the_base_has_no_coverage_and_other_prompts_are_refused():
    assert set(figures(evidence(base=None))) == set(PROMPTS) - {"coverage_gained", "coverage_lost"}
    with pytest.raises(ValueError, match="answered other prompts"):
        figures(evidence(base={3: [1]}))


def test_every_k_is_a_figure_and_has_a_goal():
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    found = figures(evidence(target={"pass@1": interval, "pass@16": interval, "truncated": interval}))
    assert set(found) == {*PROMPTS, "pass@1", "pass@16"}
    assert readiness.goal_of("pass@16") == "max" and readiness.goal_of("validation_loss") == "min"
    with pytest.raises(ConfigError, match=r"called 'pass@x'; allowed: .*pass@k"):
        readiness.goal_of("pass@x")


def rollouts(folder, drawn):
    folder.mkdir()
    rows = [
        {"prompt": prompt, "sample": place, "score": float(right), "correct": bool(right)}
        for prompt, one in drawn.items()
        for place, right in enumerate(one)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts.parquet")
    return folder


def test_the_stage_reads_artifacts_and_pairs_prompts_that_both_answered(tmp_path):
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    names = ("entropy", "loss", "plausible_entropy", "kl_from_base", "label_drift")
    facts = {
        "engine": {"vllm": None, "dtype": "float32", "max_length": 64, "reproducible": True},
        "base_minimum": None, "name": "held_out", "kind": "held_out", "protocol": {},
        "counts": {"chats": 9, "chats_too_long": 0, "tokens": 90},
        "metrics": {name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for name in names},
        "entropy_histogram": {"edges": [], "shares": []},
    }  # fmt: skip
    write_metrics(held_out, facts)
    inputs = {
        "rollouts": rollouts(tmp_path / "ours", {**OURS, 11: [1, 1, 1, 1]}),
        "base_rollouts": rollouts(tmp_path / "base", {**BASE, 12: [1, 1, 1, 1]}),
        "held_out": held_out,
    }
    (tmp_path / "made").mkdir()
    run(SimpleNamespace(seed=0, resamples=50), inputs, tmp_path / "made", tmp_path, lambda *_: None)
    found = read_figures(tmp_path / "made")
    assert found["learnable"] == {**found["learnable"], "value": 0.5, "n": 4}
    assert {"validation_loss", "token_entropy", "plausible_entropy", "kl_from_base", "label_drift"} <= set(found)
    (tmp_path / "made" / "metrics.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="no figures"):
        read_figures(tmp_path / "made")

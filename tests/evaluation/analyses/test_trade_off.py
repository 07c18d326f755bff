"""Trade-offs of a sweep: fronts, averages over seeds and benchmarks, pass@k, gains of RL."""

import pytest

from common.errors import ConfigError
from evaluation.analyses.trade_off import pareto
from evaluation.artifact import write_metrics

from .planted import run, sentence, table

ENGINE = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": True}


def around(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 10}


def scored(directory, line, model, name, value, seed="", **more):
    """A measured benchmark as an input."""
    metrics = {"pass@1": around(value), **{f"pass@{k}": around(v) for k, v in more.get("many", {}).items()}}
    facts = {"engine": ENGINE, "base_minimum": None, "kind": "benchmark", "name": name, "protocol": {}}
    counts = {"problems": 10, "responses": 10, "grading": {"ok": 10}}
    path = directory / f"{line}-{seed}-{model}-{name}"
    path.mkdir()
    write_metrics(path, {**facts, "counts": counts, "metrics": metrics})
    return path, {"kind": "measure", "line": line, "seed": seed, "model": model, "name": name}


def sweep(directory):
    """Two rates of two methods with two seeds each; what is planted: (target, general, pass@4 of the target)."""
    directory.mkdir()
    planted = {
        ("base model", "base"): (0.1, 0.8, 0.3),
        ("sft lr=1", "sft"): (0.5, 0.7, 0.6),
        ("sft lr=5", "sft"): (0.6, 0.3, 0.62),
        ("talr lr=1", "sft"): (0.45, 0.6, 0.7),
        ("talr lr=5", "sft"): (0.65, 0.6, 0.8),
        ("sft lr=1", "rl"): (0.7, 0.5, 0.75),
        ("talr lr=5", "rl"): (0.7, 0.2, 0.9),
    }
    given = []
    for (line, model), (target, general, many) in planted.items():
        for shift, seed in ((0.02, "seed=0"), (-0.02, "seed=1")) if model != "base" else ((0, ""),):
            given.append(scored(directory, line, model, "target", target + shift, seed, many={4: many + shift}))
            for name, apart in (("one", 0.1), ("two", -0.1)):
                given.append(scored(directory, line, model, name, general + apart, seed))
    return given


def test_the_front_and_the_averages_are_those_planted(tmp_path):
    output = run(tmp_path, "trade_off", sweep(tmp_path / "measured"))
    rows = {row["model"]: row for row in table(output, "trade_off")}
    found = rows["talr lr=5 SFT"]
    assert (found["target"], found["low"], found["general"]) == pytest.approx((0.65, 0.55, 0.6)) and found["seeds"] == 2
    on = [name for name, row in rows.items() if row["Pareto"]]
    # RL of talr is as good on the target as RL of sft and worse in general.
    assert on == ["base model", "sft lr=1 SFT", "talr lr=5 SFT", "sft lr=1 RL"]
    passes = {row["model"]: row for row in table(output, "trade_off_pass_at_k")}
    assert passes["talr lr=1 SFT"]["pass@4"] == pytest.approx(0.7) and passes["base model"]["seeds"] == 1
    gains = {row["line"]: row for row in table(output, "trade_off_rl")}
    assert gains["sft lr=1"]["gain"] == pytest.approx(0.2) and gains["talr lr=5"]["gain of pass@4"] == pytest.approx(
        0.1
    )
    assert len(gains) == 2 and "7 models 4 are on the Pareto front" in sentence(output)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "other"}, "settings.target='other': was not measured; there are target, one, two"),
        ({"general": ["three"]}, "settings.general=three: allowed: measured ones beside the target: one, two"),
        ({"k": 8}, "settings.k=8: not measured of all models; allowed: 4"),
    ],
)
def test_what_was_not_measured_is_named(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "trade_off", sweep(tmp_path / "measured"), settings)


def test_one_score_alone_is_no_trade_off(tmp_path):
    with pytest.raises(ConfigError, match="one benchmark with pass@1 alone"):
        run(tmp_path, "trade_off", [scored(tmp_path, "a", "sft", "target", 0.5)])


def test_points_that_are_equal_are_both_on_the_front():
    pairs = {"a": (1.0, 1.0), "b": (0.5, 2.0), "c": (0.5, 1.9), "d": (1.0, 1.0), "e": (0.4, 2.0)}
    assert pareto(pairs) == ["a", "d", "b"]

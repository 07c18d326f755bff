"""Drift: planted movements, correlations against scipy, fifths by initial rank, KL, contaminated references."""

import numpy as np
import pytest
from scipy import stats

from common.errors import ConfigError
from evaluation.analyses._counts import Kept, Largest, Moments, Quantiles, ordered, values_of
from evaluation.artifact import write_metrics

from .planted import data, run, sentence, table, tokens_of, write_tokens

N = 30_000


def planted(tmp_path):
    """A base, a run that drifts step by step and one that stays."""
    rng = np.random.default_rng(0)
    z = rng.normal(1, 2, N)
    p = 1 / (1 + np.exp(-z))
    rank = np.where(p > 0.5, 1, 1 + np.ceil(3 * (0.5 - p) * 4)).astype(int)
    paths = {"base": (p, None)}
    for name, sharper, noise in (("dft@10", 1.3, 0.3), ("dft@20", 1.7, 0.8), ("dft", 3.0, 1.5), ("prift", 1.05, 0.1)):
        moved = 1 / (1 + np.exp(-(sharper * z + noise * rng.normal(size=N))))
        paths[name] = (np.clip(moved, 1e-7, 1 - 1e-7), np.full(N, noise))
    for name, (found, kl) in paths.items():
        write_tokens(tmp_path / name, np.log(found), rank=rank, kl=kl)
    given = [
        tokens_of(tmp_path / "base"),
        tokens_of(tmp_path / "dft", "sft", "dft", "seed=0"),
        tokens_of(tmp_path / "dft@20", "sft@20", "dft", "seed=0"),
        tokens_of(tmp_path / "dft@10", "sft@10", "dft", "seed=0"),
        tokens_of(tmp_path / "prift", "sft", "prift_prob", "seed=0"),
    ]
    return (
        {name: np.exp(np.log(found).astype(np.float32).astype(float)) for name, (found, _) in paths.items()},
        rank,
        given,
    )


def test_planted_drift_is_recovered(tmp_path):
    p, rank, given = planted(tmp_path)
    output = run(tmp_path, "drift", given, {"width": 20})
    rows = {(row["run"], row["checkpoint"]): row for row in table(output, "drift")}
    assert list(rows) == [
        ("dft seed=0", "sft@10"), ("dft seed=0", "sft@20"), ("dft seed=0", "sft"), ("prift_prob seed=0", "sft")
    ]  # fmt: skip
    kl = {"dft@10": 0.3, "dft@20": 0.8, "dft": 1.5, "prift": 0.1}
    for (name, noise), row in zip(kl.items(), rows.values(), strict=True):
        assert row["Pearson"] == pytest.approx(np.corrcoef(p["base"], p[name])[0, 1], abs=1e-9)
        # Spearman's goes by bins of 2^-9 of a value.
        assert row["Spearman"] == pytest.approx(stats.spearmanr(p["base"], p[name]).statistic, abs=1e-4)
        assert row["mean absolute error"] == pytest.approx(np.abs(p["base"] - p[name]).mean(), abs=1e-9)
        assert row["KL from base"] == pytest.approx(noise, rel=1e-6) and row["tokens"] == N
    order = np.lexsort((-p["base"], rank))
    fifths = [order[place * N // 5 : (place + 1) * N // 5] for place in range(5)]
    found = {(row["run"], row["checkpoint"]): row for row in table(output, "drift_by_rank")}
    for key, name in ((("", "base"), "base"), (("dft seed=0", "sft"), "dft")):
        medians = [found[key][f"fifth {place}"] for place in range(1, 6)]
        assert medians == pytest.approx([np.median(p[name][one]) for one in fifths], abs=5e-3)
    assert found["dft seed=0", "sft"]["fifth 1"] > found["", "base"]["fifth 1"]
    assert found["dft seed=0", "sft"]["fifth 5"] < found["", "base"]["fifth 5"]
    heat = data(output, "drift_tokens")
    assert len(heat["p"]) == 5 * 20 and heat["p"][:20] == pytest.approx(p["base"][:20])
    assert heat["model"][20] == "dft seed=0 sft@10" and heat["p"][20:40] == pytest.approx(p["dft@10"][:20])
    assert sentence(output).startswith("dft seed=0 (sft) moves furthest from the base")


def test_contaminated_references_are_shown_by_what_they_had_seen(tmp_path):
    _, _, given = planted(tmp_path)
    for line, score in (("r0", 0.5), ("r2", 0.3)):
        one = {"value": score, "low": score - 0.1, "high": score + 0.1, "n": 10}
        counts = {"problems": 10, "responses": 10, "grading": {"ok": 10}}
        engine = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": True}
        facts = {"engine": engine, "base_minimum": None, "kind": "benchmark", "name": "target", "protocol": {}}
        (tmp_path / line).mkdir()
        write_metrics(tmp_path / line, {**facts, "counts": counts, "metrics": {"pass@1": one}})
        what = {"kind": "measure", "line": line, "seed": "", "model": "sft", "name": "target"}
        given.append((tmp_path / line, what))
    output = run(tmp_path, "drift", given, {"references": {"r2": 2000, "r0": 0}})
    rows = table(output, "drift_references")
    assert [(row["line"], row["pass@1"]) for row in rows] == [("r0", 0.5), ("r2", 0.3)]
    with pytest.raises(ConfigError, match="no score of 'target' of line 'r9'; there are r0, r2"):
        run(tmp_path, "drift", given, {"references": {"r9": 1}}, "refused")


def test_what_cannot_be_compared_is_named(tmp_path):
    _, _, given = planted(tmp_path)
    with pytest.raises(ConfigError, match="the base model alone"):
        run(tmp_path, "drift", given[:1], output="alone")
    with pytest.raises(ConfigError, match="no held-out tokens of the base model"):
        run(tmp_path, "drift", given[1:], output="baseless")
    with pytest.raises(ConfigError, match=r"settings\.chat=99999: no token"):
        run(tmp_path, "drift", given, {"chat": 99999}, "chatless")
    write_tokens(tmp_path / "other", np.full(N, -1.0), length=24)
    with pytest.raises(ConfigError, match="tokens of different texts"):
        run(tmp_path, "drift", [given[0], tokens_of(tmp_path / "other", "sft", "x")], output="other_texts")


def test_streams_are_summed_as_whole_arrays_are():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=5000) * 10.0 ** rng.integers(-8, 8, 5000), [0.0, 1.0, -1.0]])
    values = values.astype(np.float32)
    bins = ordered(values)
    assert np.all(np.diff(bins[np.argsort(values)]) >= 0)
    assert values_of(bins) == pytest.approx(values.astype(float), rel=2**-11, abs=1e-38)
    quantiles, moments, largest, kept = Quantiles(), Moments(), Largest(7), Kept(50, 3)
    noise = values + rng.normal(size=len(values)).astype(np.float32)
    for part in np.array_split(np.arange(len(values)), 13):
        quantiles.add(values[part])
        moments.add(values[part], noise[part])
        largest.add(values[part], place=part)
        kept.add(part)
    assert quantiles.at([0.25, 0.5, 0.9]) == pytest.approx(
        np.quantile(values, [0.25, 0.5, 0.9], method="inverted_cdf"), rel=1e-3
    )
    bound = quantiles.above(0.9)
    assert np.quantile(values, 0.9) < bound and (values < bound).mean() == pytest.approx(0.9, abs=2e-3)
    assert moments.correlation == pytest.approx(np.corrcoef(values, noise)[0, 1], abs=1e-12)
    assert largest.rows["place"].tolist() == np.argsort(-values, kind="stable")[:7].tolist()
    chosen = np.array(sorted(int(one) for one in kept.items))
    assert len(set(chosen)) == 50 and 0.3 < chosen.mean() / len(values) < 0.7

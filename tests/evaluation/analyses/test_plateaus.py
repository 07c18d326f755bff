"""Plateaus: planted frequencies, the envelope, examples with their most probable ids."""

import numpy as np
import pytest

from common.errors import ConfigError
from evaluation.analyses._envelope import lowest_ratio
from evaluation.analyses.plateaus import plateau_of
from evaluation.token_table import TOP

from .planted import cache_of, data, run, sentence, table, tokens_of, write_cache, write_tokens

PLANTED = {1: 0.5, 2: 0.2, 3: 0.1, 4: 0.08, 10: 0.02}  # the rest is no plateau


def effective(q):
    """N1 and N2 of (n, w) distributions."""
    return np.exp(-np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0), -1)), 1 / np.sum(q**2, -1)


def planted(n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    k = rng.permutation(np.repeat([*PLANTED, 0], [round(n * share) for share in PLANTED.values()] + [n // 10]))
    steep = 0.5 ** np.arange(1, 31)
    q = np.stack([np.where(np.arange(30) < one, 1 / max(one, 1), 0) if one else steep / steep.sum() for one in k])
    q = q * np.exp(0.02 * rng.standard_normal(q.shape))
    return k, q / q.sum(-1, keepdims=True)


def test_planted_plateaus_are_found_with_the_planted_frequencies(tmp_path):
    k, q = planted()
    n1, n2 = effective(q)
    cache = write_cache(tmp_path / "cache", lengths=(6000, 4000), shards=2, n1=n1, n2=n2)
    top = np.log(np.maximum(np.sort(q)[:, ::-1][:, :TOP], 1e-30))
    base = write_tokens(tmp_path / "base", np.log(q.max(-1)), n1=n1, n2=n2, top_log_p=top)
    # The tuned model is certain of half of what the base was undecided about between two.
    two = np.flatnonzero(k == 2)[::2]
    n1[two], n2[two] = 1.0, 1.0
    tuned = write_tokens(tmp_path / "tuned", np.log(q.max(-1)), n1=n1, n2=n2)
    given = [cache_of(cache), tokens_of(base), tokens_of(tuned, "sft", "lp_sft")]
    output = run(tmp_path, "plateaus", given, {"examples": 2})
    rows = {row["source"]: row for row in table(output, "plateau_shares")}
    for name in ("base, training chats", "base"):
        found = {one: rows[name][f"k = {one}"] for one in range(1, 13)}
        assert found == pytest.approx({one: PLANTED.get(one, 0.0) for one in range(1, 13)}, abs=1e-9)
        assert rows[name]["tokens"] == 20_000 and rows[name]["below the envelope"] == 0
    assert rows["lp_sft sft"]["k = 2"] == pytest.approx(0.1) and rows["lp_sft sft"]["k = 1"] == pytest.approx(0.6)
    ridges = {row["source"]: row for row in table(output, "plateau_ridges")}["base"]
    assert ridges["k = 3"] == 1.0 and ridges["k = 6"] is None
    examples = table(output, "plateau_examples")
    assert [row["k"] for row in examples] == [2, 2, 3, 3, 4, 4, 10, 10]
    assert all(abs(row["N1"] - row["k"]) < 0.3 and row["R"] > 0.95 for row in examples)
    assert examples[0]["top 10"].startswith("' w0' 0.5") and examples[0]["token"].startswith(" w")
    assert sum(data(output, "plateau_density")["tokens"]) == 60_000
    assert "k = 2, 20.00% of tokens" in sentence(output)
    assert "the base has 38.00% and lp_sft sft 28.00%" in sentence(output)


def test_a_model_without_a_plateau_is_said_to_have_none(tmp_path):
    n1, n2 = np.full(500, 6.5), np.full(500, 5.0)
    cache = write_cache(tmp_path / "cache", lengths=(300, 200), shards=1, n1=n1, n2=n2)
    base = write_tokens(tmp_path / "base", np.full(500, -1.5), n1=n1, n2=n2)
    output = run(tmp_path, "plateaus", [cache_of(cache), tokens_of(base)])
    assert "none is on a plateau of 2 to 12" in sentence(output)
    assert all(row["k = 2"] == 0 for row in table(output, "plateau_shares"))
    left = {path.stem for path in output.rglob("*") if path.suffix in (".json", ".svg")}
    assert left == {"findings", "plateau_shares", "plateau_density"}, "no empty table and no empty picture"
    assert not (output / "figures" / "plateau_shares.svg").exists()


def test_examples_depend_on_the_seed_alone(tmp_path):
    _, q = planted(2000)
    n1, n2 = effective(q)
    base = write_tokens(tmp_path / "base", np.log(q.max(-1)), n1=n1, n2=n2)
    found = [
        table(run(tmp_path, "plateaus", [tokens_of(base)], {"seed": seed}, f"out{place}"), "plateau_examples")
        for place, seed in enumerate((0, 0, 1))
    ]
    assert found[0] == found[1] != found[2]


def test_no_distribution_is_below_the_envelope():
    grid = np.linspace(1, 30, 59)
    assert np.allclose(lowest_ratio(grid, 30), lowest_ratio(grid, 30, (30,)), atol=1e-9)
    fine = np.linspace(1, 30, 30_001)
    lowest = lowest_ratio(fine, 30, (30,))
    assert lowest.min() == pytest.approx(0.3566, abs=1e-4)
    assert fine[lowest.argmin()] == pytest.approx(9.46, abs=0.01)
    rng = np.random.default_rng(0)
    least = np.inf
    for alpha in (0.01, 0.03, 0.1, 0.3, 1.0):
        for _ in range(10):
            q = rng.gamma(alpha, size=(20_000, 30)) + 1e-12
            # Half of the draws are of the extremal kind: one likely id, the others alike.
            q[::2] = 1 + 0.001 * q[::2] / q[::2].sum(-1, keepdims=True)
            q[::2, 0] = rng.uniform(1, 300, len(q[::2]))
            n1, n2 = effective(q / q.sum(-1, keepdims=True))
            apart = n2 / n1 - lowest_ratio(n1, 30, (30,))
            least = min(least, np.nanmin(apart))
    assert -1e-8 <= least < 1e-4  # a million draws touch it and none falls below


def test_the_bounds_of_a_plateau_belong_to_it():
    n1 = np.array([0.99, 1.3, 1.31, 1.69, 1.7, 2.3, 2.5], dtype=np.float32)
    assert plateau_of(n1).tolist() == [1, 1, 0, 0, 2, 2, 0]


def test_nothing_to_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing to analyse; it reads cache, generate"):
        run(tmp_path, "plateaus", [])

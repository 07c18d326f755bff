"""Planted quadrants of student and teacher, in caches and held-out tokens, and Rescue and Filter tokens of a text."""

import numpy as np
import pytest

from common.errors import ConfigError

from .planted import cache_of, data, run, sentence, table, tokens_of, write_cache, write_tokens

SHARES = {"Q1 rescue": 0.15, "Q2 filter": 0.2, "Q3 agreed": 0.6, "Q4 doubted": 0.05}
N = 20_000


def planted():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0.001, 0.499, (2, N)), rng.uniform(0.5001, 0.9999, (2, N))
    quadrant = rng.permutation(np.repeat(np.arange(4), [round(N * share) for share in SHARES.values()]))
    student = np.where(np.isin(quadrant, (0, 1)), low[0], high[0])
    teacher = np.where(np.isin(quadrant, (1, 3)), low[1], high[1])
    return quadrant, np.log(student), np.log(teacher)


def test_planted_quadrants_are_found(tmp_path):
    quadrant, student, teacher = planted()
    given = [
        cache_of(write_cache(tmp_path / "a", (6000, 4000), 2, label_logprob=student), "base"),
        # The same chats in other shards.
        cache_of(write_cache(tmp_path / "b", (6000, 4000, 6000, 4000), 1, label_logprob=teacher), "teacher"),
        tokens_of(write_tokens(tmp_path / "c", student)),
        tokens_of(write_tokens(tmp_path / "d", teacher), "teacher"),
    ]
    output = run(tmp_path, "alignment", given, {"tokens": 20, "bins": 20})
    rows = table(output, "alignment")
    for source in ("training chats", "held-out chats"):
        assert {row["quadrant"]: row[source] for row in rows} == pytest.approx(SHARES)
    found = data(output, "alignment")
    assert sum(found["tokens"]) == 2 * N
    columns = {}
    for source, student_from, density in zip(found["source"], found["student_from"], found["density"], strict=True):
        columns[source, student_from] = columns.get((source, student_from), 0) + density
    assert len(columns) == 40 and list(columns.values()) == pytest.approx([1.0] * 40)
    captions = (output / "findings.json").read_text()
    rescued, filtered = (int((quadrant[:20] == one).sum()) for one in (0, 1))
    assert f"Chat 0: {rescued} Rescue tokens" in captions and f"{filtered} Filter tokens" in captions
    assert "60.0% are likely for both models; teacher rescues 15.0%" in sentence(output)


def test_a_bound_between_two_bins_still_divides_the_quadrants(tmp_path):
    _, student, teacher = planted()
    given = [
        tokens_of(write_tokens(tmp_path / "c", student)),
        tokens_of(write_tokens(tmp_path / "d", teacher), "sft", "dft"),
    ]
    settings = {"bound": 0.33, "bins": 7, "teacher": "dft sft"}
    rows = {row["quadrant"]: row for row in table(run(tmp_path, "alignment", given, settings), "alignment")}
    high = [np.exp(one.astype(np.float32).astype(float)) >= 0.33 for one in (student, teacher)]
    assert rows["Q1 rescue"]["held-out chats"] == pytest.approx((~high[0] & high[1]).mean(), abs=1e-12)
    assert rows["Q4 doubted"]["held-out chats"] == pytest.approx((high[0] & ~high[1]).mean(), abs=1e-12)


def test_what_is_missing_is_named(tmp_path):
    _, student, _ = planted()
    given = [tokens_of(write_tokens(tmp_path / "c", student))]
    with pytest.raises(ConfigError, match=r"both 'base' and 'teacher'; there are base; set model\.teacher"):
        run(tmp_path, "alignment", given)
    caches = [
        cache_of(write_cache(tmp_path / "a", (1000,), label_logprob=student[:1000])),
        cache_of(write_cache(tmp_path / "b", (900,), label_logprob=student[:900]), "teacher"),
    ]
    with pytest.raises(ConfigError, match="caches of different chats"):
        run(tmp_path, "alignment", caches, output="other")

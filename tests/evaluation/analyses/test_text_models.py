"""Exploration and difficulty: planted masses, thresholds, easy shares, hard tokens and TALR weights."""

import numpy as np
import pytest

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses._counts import Chats
from evaluation.analyses._models import Model, colours
from evaluation.analyses._text import laid_out
from evaluation.token_table import TOP

from .planted import data, run, sentence, table, tokens_of, write_tokens

N = 10_000


def masses(rng, first):
    """(n, TOP) decreasing log-probabilities with the given most probable one."""
    rest = np.sort(rng.dirichlet(np.full(TOP - 1, 0.3), len(first)))[:, ::-1] * (1 - first)[:, None]
    rest = np.minimum(rest, first[:, None])
    return np.log(np.maximum(np.concatenate([first[:, None], rest], axis=1), 1e-30))


def test_exploration_finds_planted_masses_and_what_thresholds_select(tmp_path):
    rng = np.random.default_rng(0)
    found = {}
    for name, certain in (("base", 0.3), ("sft", 0.8)):
        first = np.where(rng.random(N) < certain, 0.999, rng.uniform(0.3, 0.9, N))
        top = masses(rng, first).astype(np.float32)
        found[name] = np.exp(top.astype(float)).cumsum(-1)
        write_tokens(tmp_path / name, np.log(first), top_log_p=top)
    given = [tokens_of(tmp_path / "base"), tokens_of(tmp_path / "sft", "sft", "sed")]
    output = run(tmp_path, "exploration", given, {"tokens": 120})
    rows = {(row["model"], row["k"]): row for row in table(output, "exploration_mass")}
    for label, name in (("base", "base"), ("sed sft", "sft")):
        for k in (1, 2, 3, 10):
            wanted = np.quantile(found[name][:, k - 1], [0.25, 0.5, 0.95])
            row = rows[label, k]
            assert [row["25%"], row["50%"], row["95%"]] == pytest.approx(list(wanted), rel=2e-3)
    for row in table(output, "exploration_selected"):
        of_base, tuned = (found[name][:, row["k"] - 1] for name in ("base", "sft"))
        assert row["threshold"] == pytest.approx(np.quantile(of_base, 1 - row["r"]), rel=2e-3)
        # Of the base a threshold selects 1 - r; the tuned model is certain more often. Equal values lie in one bin.
        assert row["base"] <= 1 - row["r"] + 0.01
        assert row["sed sft"] == pytest.approx((tuned < row["threshold"]).mean(), abs=0.01)
    text = data(output, "exploration_text")
    assert len(text["token"]) == 25 and text["token"][3] == " w3"
    threshold = next(
        row["threshold"] for row in table(output, "exploration_selected") if (row["r"], row["k"]) == (0.7, 2)
    )
    assert text["selected"] == [mass < threshold for mass in found["base"][:25, 1]]
    assert sentence(output).startswith(f"With r = 0.7 and k = 2 the threshold is {threshold:.3f}")


def test_a_run_has_one_colour_and_base_and_teacher_their_own(tmp_path):
    named = (("", "base"), ("a", "sft@3"), ("a", "sft"), ("", "teacher"), ("b", "sft"), ("a", "rl"), ("b", "rl"))
    found = colours(Model(tmp_path, line, "", model, {}) for line, model in named)
    assert found["base"] == _style.GREY and found["teacher"] == _style.BLACK
    assert found["a sft@3"] == found["a sft"] == found["a rl"] == _style.COLOURS[0]
    assert found["b sft"] == found["b rl"] == _style.COLOURS[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": [21]}, r"settings\.top_k=21: allowed: 1 to 20"),
        ({"fractions": [1.0]}, r"settings\.fractions=1\.0: allowed: above 0 and below 1"),
        ({"chat": 12345}, r"settings\.chat=12345: no token"),
    ],
)
def test_settings_that_select_nothing_are_named(tmp_path, settings, message):
    write_tokens(tmp_path / "base", np.full(50, -0.5))
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "exploration", [tokens_of(tmp_path / "base")], settings)


def test_difficulty_finds_hard_tokens_easy_shares_and_weights(tmp_path):
    rng = np.random.default_rng(1)
    given, kept = [], {}
    for name, easier in (("base", 1.0), ("sft@5", 2.0), ("sft", 4.0)):
        log_p = -rng.gamma(0.3, 1.5, N) / easier - 1e-4
        if name == "base":
            log_p[[77, 4321]] = (-14.0, -15.0)
        write_tokens(tmp_path / name, log_p, length=37, rank=np.arange(N) + 1)
        kept[name] = log_p.astype(np.float32).astype(float)
        given.append(tokens_of(tmp_path / name, name, "" if name == "base" else "talr"))
    output = run(tmp_path, "difficulty", given, {"hardest": 2, "threshold": 0.3, "w_min": 0.05})
    rows = {row["model"]: row for row in table(output, "difficulty")}
    assert list(rows) == ["base", "talr sft@5", "talr sft"]
    for (name, log_p), row in zip(kept.items(), rows.values(), strict=True):
        p = np.exp(log_p)
        assert row["share of p >= 0.3"] == pytest.approx((p >= 0.3).mean(), abs=1e-12)
        assert row["p, 50%"] == pytest.approx(np.median(p), rel=1e-3) and row["tokens"] == N, name
        losses = [-log_p[start : start + 37].mean() for start in range(0, N, 37)]
        assert row["tau"] == pytest.approx(np.quantile(losses, 0.5, method="inverted_cdf"), rel=1e-3)
        assert row["mean TALR weight"] == pytest.approx(np.maximum(p ** (1 / row["tau"]), 0.05).mean(), rel=1e-6)
    first, second = table(output, "difficulty_hardest")
    assert (first["chat"], first["position"], first["rank"]) == (4321 // 37, 5 + 4321 % 37, 4322)
    assert (second["chat"], second["token"]) == (77 // 37, f" w{77 % 40}")
    assert first["p"] == pytest.approx(np.exp(-15)) and first["before"].endswith(f" w{4320 % 40}")
    assert "most tokens are easy" in sentence(output)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_sums_of_chats_do_not_depend_on_the_batches(size):
    chat = np.repeat(np.array([0, 1, 2, 5, 6], dtype=np.int32), [1, 4, 1, 7, 2])
    values = np.random.default_rng(0).standard_normal(len(chat))
    chats, found = Chats(), []
    for start in range(0, len(chat), size):
        found.append(chats.add(chat[start : start + size], values[start : start + size]))
    found.append(chats.close())
    numbers, sums, tokens = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert numbers.tolist() == [0, 1, 2, 5, 6] and tokens.tolist() == [1, 4, 1, 7, 2]
    assert sums == pytest.approx([values[chat == one].sum() for one in numbers])
    for empty in (Chats().close(), Chats().add(chat[:0], values[:0])):
        assert [len(part) for part in empty] == [0, 0, 0]


def test_a_text_is_laid_out_in_lines():
    placed, lines = laid_out(["ab", " cd", "e\n", "fgh", "i" * 20], across=6)
    assert [(line, column) for line, column, _ in placed] == [(0, 0), (0, 2), (1, 0), (2, 0), (3, 0)]
    assert lines == 4 and placed[2][2] == "e\u23ce" and len(placed[4][2]) == 6

"""Tasks of reasoning-gym as chats, prompts and benchmarks that ask different questions."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.problems import plain
from data_prep.sources import load
from data_prep.sources.reasoning_gym import ReasoningGym

SIZES = {"sft_examples": 21, "sft_val_examples": 4, "rl_prompts": 8, "rl_val_prompts": 4, "problems": 6}
SUMS = {"max_terms": 3, "max_digits": 2}


def section(**changes):
    return ReasoningGym(**{"tasks": {"chain_sum": SUMS, "spell_backward": {}}, **SIZES, **changes})


def rows(found, seed=0):
    parts = load("reasoning_gym").parts(found, {}, seed)
    return {name: [row.value for row in part] for name, part in parts.items()}


def question(row):
    return row["prompt"] if "prompt" in row else row["messages"][0]["content"]


def test_every_part_has_its_size_and_no_question_is_asked_twice():
    found = rows(section())
    assert {name: len(part) for name, part in found.items()} == {
        "sft_train": 21, "sft_val": 4, "rl_train": 8, "rl_val": 4,
        "benchmark/chain_sum": 6, "benchmark/spell_backward": 6,
    }  # fmt: skip
    asked = [plain(question(row)) for part in found.values() for row in part]
    ids = [row["id"] for part in found.values() for row in part]
    assert len(set(asked)) == len(asked) and len(set(ids)) == len(ids)
    assert [row["data_source"] for row in found["rl_train"][:4]] == ["chain_sum", "spell_backward"] * 2


def test_a_demonstration_states_the_answer():
    chat = next(row for row in rows(section())["sft_train"] if row["id"].startswith("sft_train-chain_sum"))
    asked, told = (turn["content"] for turn in chat["messages"])
    terms = asked.partition(":")[2].rstrip(" =")
    assert told == f"The answer is \\boxed{{{eval(terms)}}}."


def test_a_seed_gives_its_rows_and_more_prompts_leave_the_demonstrations_alone():
    first, again, other = rows(section()), rows(section(rl_prompts=16)), rows(section(), seed=1)
    assert first["sft_train"] == again["sft_train"] and first["rl_train"] == again["rl_train"][:8]
    assert first["sft_train"] != other["sft_train"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {"chainsum": {}}}, r"tasks\.chainsum: is no task of reasoning-gym; allowed: .*chain_sum"),
        ({"tasks": {"chain_sum": {"terms": 3}}}, r"tasks\.chain_sum\.terms: is no setting .*allowed: min_terms"),
        ({"tasks": {"chain_sum": {"min_terms": 5, "max_terms": 3}}}, r"tasks\.chain_sum: max_terms must be >="),
        (
            {"tasks": {"chain_sum": {"max_terms": 2, "max_digits": 1}}, "sft_examples": 900},
            r"has \d+ different questions, 922 are asked for; ask for fewer",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        rows(section(**changes))


def test_a_version_of_the_package_is_another_identity(monkeypatch):
    import importlib.metadata

    source = load("reasoning_gym")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7")
    assert source.identity(section(), "sft")["installed"] == "7"
    assert source.benchmarks(section()) == ["chain_sum", "spell_backward"]

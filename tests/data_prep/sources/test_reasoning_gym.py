"""Tasks of reasoning-gym as chats, prompts and benchmarks that ask different questions."""

from __future__ import annotations

import importlib.metadata
import random

import pytest
from pydantic import ValidationError

from common.errors import ConfigError
from common.problems import plain
from data_prep.sources import load
from data_prep.sources.reasoning_gym import TASKS, ReasoningGym
from evaluation import graders

SIZES = {"sft_examples": 21, "sft_val_examples": 4, "rl_prompts": 8, "rl_val_prompts": 4, "problems": 6}
SUMS = {"max_terms": 3, "max_digits": 2}


def section(**changes):
    return ReasoningGym(**{"tasks": {"spell_backward": {}, "chain_sum": SUMS}, **SIZES, **changes})


def rows(found, seed=0):
    parts = load("reasoning_gym").parts(found, {}, seed)
    return {name: [row.value for row in part] for name, part in parts.items()}


def question(row):
    return plain(row["prompt"] if "prompt" in row else row["messages"][0]["content"])


def test_every_part_has_its_size_and_no_question_is_asked_twice():
    found = rows(section())
    assert {name: len(part) for name, part in found.items()} == {
        "sft_train": 21, "sft_val": 4, "rl_train": 8, "rl_val": 4,
        "benchmark/chain_sum": 6, "benchmark/spell_backward": 6,
    }  # fmt: skip
    asked = [question(row) for part in found.values() for row in part]
    ids = [row["id"] for part in found.values() for row in part]
    assert len(set(asked)) == len(asked) and len(set(ids)) == len(ids)
    assert [row["data_source"] for row in found["rl_train"][:4]] == ["chain_sum", "spell_backward"] * 2
    assert [row["grader"] for row in found["rl_train"][:2]] == ["math", "exact"]


def test_parts_stay_apart_whatever_the_sizes_of_the_others():
    first, second = rows(section()), rows(section(sft_examples=60, sft_val_examples=30, problems=20))
    assert second["sft_train"][:21] == first["sft_train"] and second["rl_train"] == first["rl_train"]
    asked = [{question(row) for row in part} for part in (*first.values(), *second.values())]
    names = [*first, *second]
    for place, one in enumerate(asked):
        for other in range(place):
            assert names[other] == names[place] or not one & asked[other]


def test_a_demonstration_states_the_answer():
    chat = next(row for row in rows(section())["sft_train"] if row["id"].startswith("sft_train-chain_sum"))
    asked, told = (turn["content"] for turn in chat["messages"])
    terms = asked.partition(":")[2].rstrip(" =").split()
    total, sign = 0, 1
    for term in terms:
        total, sign = (total + sign * int(term), 1) if term not in "+-" else (total, 1 if term == "+" else -1)
    assert told == f"The answer is \\boxed{{{total}}}."


def test_a_seed_gives_its_rows_and_another_seed_others():
    first, again, other = rows(section()), rows(section()), rows(section(), seed=1)
    assert first == again
    for name in first:
        both = {question(row) for row in first[name]} & {question(row) for row in other[name]}
        assert len(both) <= len(first[name]) / 3, name


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_repeats_and_its_own_answer_is_right(task):
    small = section(tasks={task: {}}, **dict.fromkeys(SIZES, 2))
    state = random.getstate()
    first = rows(small)[f"benchmark/{task}"]
    assert random.getstate() == state
    random.random()
    assert rows(small)[f"benchmark/{task}"] == first
    grader = graders.load(TASKS[task])
    for row in first:
        assert grader.grade(small.response.replace("{answer}", row["answer"]), row["answer"]).correct
        assert not grader.grade("The answer is \\boxed{nothing of it}.", row["answer"]).correct


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {}}, r"tasks is empty; name one"),
        ({"tasks": {"chainsum": {}}}, r"tasks\.chainsum: is no task with one right answer; allowed: .*chain_sum"),
        ({"tasks": {"countdown": {}}}, r"tasks\.countdown: is no task with one right answer"),
        ({"tasks": {"chain_sum": {"terms": 3}}}, r"tasks\.chain_sum\.terms: is no setting .*allowed: min_terms"),
        ({"tasks": {"chain_sum": {"min_terms": 5, "max_terms": 3}}}, r"tasks\.chain_sum: max_terms must be >="),
        (
            {"tasks": {"chain_sum": {"max_terms": 2, "max_digits": 1}}, "sft_examples": 900},
            r"has \d+ different questions for sft_train, 900 are asked for; lower data\.reasoning_gym\.sft_examples",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, said):
    wrong = section(**changes)
    with pytest.raises(ConfigError, match=said):
        load("reasoning_gym").inputs(wrong, "sft")
        rows(wrong)


def test_a_demonstration_without_the_answer_is_refused():
    with pytest.raises(ValidationError, match=r"has to have \{answer\} in it"):
        section(response="I do not know.")


def test_a_part_is_identified_by_what_it_depends_on(monkeypatch):
    source, parts = load("reasoning_gym"), ("sft", "rl", "benchmark/chain_sum", "benchmark/spell_backward")

    def changed(**changes):
        return {part for part in parts if source.identity(section(), part) != source.identity(section(**changes), part)}

    assert changed(rl_prompts=9) == {"rl"} and changed(sft_val_examples=5) == {"sft"}
    assert changed(response="{answer}") == {"sft"}
    assert changed(problems=7) == {"benchmark/chain_sum", "benchmark/spell_backward"}
    assert changed(tasks={"spell_backward": {}, "chain_sum": {}}) == {"sft", "rl", "benchmark/chain_sum"}
    before = source.identity(section(), "sft")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7")
    assert source.identity(section(), "sft") == before | {"installed": "7"}
    assert source.graders(section(), "rl") == {"math", "exact"}

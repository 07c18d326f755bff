"""Responses with the verdict they must get, in pairs/: of public suites and data sets, and kinds of our own."""

import json
import pathlib

import pytest

from evaluation.graders.choice import chosen
from evaluation.graders.extraction import after_thoughts
from evaluation.grading import GradingPool

PAIRS = pathlib.Path(__file__).with_name("pairs")
DEFAULT = {"mathematics": "math"}
# Loaded machines are slow; no pair needs a second on a free one.
TIMEOUT_SECONDS = 60.0


def read_pairs(name: str) -> list[dict]:
    return [json.loads(line) for line in (PAIRS / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["mathematics", "choice", "other", "own"])
def test_every_pair_gets_its_verdict(name):
    pairs = read_pairs(name)
    with GradingPool(workers=2, timeout_seconds=TIMEOUT_SECONDS) as pool:
        grader = DEFAULT.get(name)
        found = pool.grade_many([(p["response"], p["answer"], p.get("grader", grader)) for p in pairs])
    assert not [(p, grade) for p, grade in zip(pairs, found, strict=True) if grade.failed]
    assert [p for p, grade in zip(pairs, found, strict=True) if grade.correct != p["expected"]] == []


@pytest.mark.timeout(600)
def test_a_box_gets_the_same_verdict_from_both_graders():
    pairs = [
        p for p in read_pairs("mathematics") if p["response"].startswith("\\boxed{") and p["response"].endswith("}")
    ]
    assert len(pairs) > 100
    with GradingPool(workers=2, timeout_seconds=TIMEOUT_SECONDS) as pool:
        found = pool.grade_many([(p["response"], p["answer"], "boxed") for p in pairs])
    assert [p for p, grade in zip(pairs, found, strict=True) if grade.correct != p["expected"]] == []


def test_the_letter_that_a_response_settles_on():
    pairs = [p for p in read_pairs("own") if "chosen" in p]
    assert len(pairs) > 150
    assert [p for p in pairs if chosen(after_thoughts(p["response"])) != p["chosen"]] == []

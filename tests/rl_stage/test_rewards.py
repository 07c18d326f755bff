"""Rewards: right and wrong answers, and what becomes of a reward that raises, hangs or answers nonsense."""

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import ConfigError
from rl_stage import rewards

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "response", "answer", "right"),
    [
        ("math", r"so \boxed{\frac{1}{2}}", "0.5", True),
        ("math", "the answer is 12", "12", True),
        ("math", r"\boxed{13}", "12", False),
        ("boxed", r"\boxed{12}", "12", True),
        ("boxed", "the answer is 12", "12", False),
        ("exact", r"\boxed{High Risk}", "high risk", True),
        ("numeric", "The answer is 101", "100", False),
        ("date", r"\boxed{March 5, 2021}", "2021-03-05", True),
        ("range", r"\boxed{20.5}", "[19.5, 21.5]", True),
        ("range", r"\boxed{22}", "[19.5, 21.5]", False),
        ("medcalc", '<answer>{"answer": "20.5"}</answer>', "[19.5, 21.5]", True),
        ("medcalc", '<answer>{"answer": "22"}</answer>', "[19.5, 21.5]", False),
        ("medcalc", '<answer>{"answer": "05/08/2021"}</answer>', "2021-05-08", True),
        ("medcalc", '<answer>{"answer": "3 weeks, 2 days"}</answer>', "3 weeks, 2 days", True),
        ("choice", "The answer is (C)", "C", True),
        ("has_boxed_answer", r"\boxed{ }", "12", False),
        ("has_boxed_answer", r"text \boxed{1}", "12", True),
    ],
)
def test_graders(name, response, answer, right):
    assert rewards.load_reward(name, {})(response, answer) is right


def test_mathematical_equality_has_a_function_of_its_own():
    assert rewards.grade_math("the answer is 12", "12") is True
    assert rewards.grade_math(r"\boxed{13}", "12") is False


def test_the_names_are_the_graders_and_cost_no_imports():
    program = (
        "import json, sys; from rl_stage import rewards; names = rewards.names();"
        "print(json.dumps([names, sorted({'torch', 'verl', 'vllm', 'ray', 'sympy', 'numpy'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    names, heavy = json.loads(done.stdout)
    assert {"math", "boxed", "medcalc", "code", "has_boxed_answer", "format"} <= set(names)
    assert heavy == []


def test_numeric_tolerance_is_relative():
    settings = {"tolerance": 0.05}
    assert rewards.load_reward("numeric", settings)("The answer is 101", "100", **settings)


def test_format_is_the_whole_response():
    settings: dict[str, Any] = {"pattern": r"<think>.*</think>\s*<answer>.*</answer>"}
    reward = rewards.load_reward("format", settings)
    assert reward("<think>a\nb</think> <answer>1</answer>", "1", **settings)
    assert not reward("so <think>a</think><answer>1</answer>", "1", **settings)
    assert score("format", "<think>a</think> <answer>:</answer>", **settings)["acc"] == 1.0


def test_unknown_rewards_and_settings_are_named():
    with pytest.raises(ConfigError, match=r"rl\.reward\.name: 'mth' is not one of .*math"):
        rewards.load_reward("mth", {})
    with pytest.raises(ConfigError, match=r"rl\.reward\.name: cannot import 'rl_stage.rewards.nothing'"):
        rewards.load_reward("rl_stage.rewards.nothing", {})
    with pytest.raises(ConfigError, match=r"rl\.reward\.settings: .*slack"):
        rewards.load_reward("numeric", {"slack": 1})
    with pytest.raises(ConfigError, match=r"rl\.reward\.settings\.pattern: format: needs a regular expression"):
        rewards.load_reward("format", {})
    with pytest.raises(ConfigError, match=r"rl\.reward\.settings: tolerance does not fit math"):
        rewards.load_reward("math", {"tolerance": 0.1})


def test_a_name_that_cannot_be_called_or_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("def reward(response, answer:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"rl\.reward\.name: cannot import 'half_written.reward'"):
        rewards.load_reward("half_written.reward", {})
    with pytest.raises(ConfigError, match=r"rl\.reward\.name: 'rl_stage.rewards.ARGUMENTS' is a dict; name a function"):
        rewards.load_reward("rl_stage.rewards.ARGUMENTS", {})


def test_a_program_reaches_the_sandboxs_limit_before_the_rewards(monkeypatch):
    """One that never ends is wrong; killed from outside it would count as a failed reward."""
    from concurrent.futures import Future

    from evaluation.grading import GradingPool, Outcome
    from evaluation.sandbox import Limits

    allowed = []

    class Instant(GradingPool):
        def __init__(self):
            self._pid, self._closed = os.getpid(), False

        def submit(self, *_, timeout_seconds):
            allowed.append(timeout_seconds)
            done: Future[Outcome] = Future()
            done.set_result(Outcome("ok", {"correct": False, "status": "ok"}))
            return done

    monkeypatch.setattr("evaluation.grading.pool._default", Instant())
    assert score("code", timeout=10.0, run_generated_code=True)["acc"] == 0.0
    reward = SimpleNamespace(name="code", settings={"run_generated_code": True}, correct=1.0, wrong=0.0, timeout=10.0)
    rewards.score_many(reward, [("x", "y")], lambda done: None)
    assert min(allowed) > 2 * Limits().seconds
    assert score("exact", timeout=10.0)["acc"] == 0.0
    assert allowed[2:] == [10.0]


def test_code_runs_only_when_allowed():
    answer = '{"prefix": "", "entry_point": "double", "test": "assert double(2) == 4"}'
    allowed = {"run_generated_code": True}
    with pytest.raises(ConfigError, match="run_generated_code=true"):
        rewards.load_reward("code", {})
    assert rewards.load_reward("code", allowed)("def double(x): return 2 * x", answer, **allowed) is True
    reward = SimpleNamespace(name="code", settings=allowed, correct=1.0, wrong=0.0, timeout=30.0)
    responses = ("def double(x): return 2 * x", "def double(x): return x")
    found = rewards.score_many(reward, [(response, answer) for response in responses], lambda done: None)
    assert [result.correct for result in found] == [True, False]
    assert not any(result.failed for result in found)


# Rewards of one's own, named by their dotted path; pool workers import them.
OWN = """
import time
def raises(response, answer):
    raise KeyError("no such thing")
def hangs(response, answer):
    time.sleep(60)
def exits(response, answer):
    import os
    os._exit(3)
def share_of_digits(response, answer, weight=1.0):
    return weight * sum(c.isdigit() for c in response) / len(response)
def not_a_number(response, answer):
    return float("nan")
def of_numpy(response, answer):
    import numpy
    return numpy.array([response == answer])[0]
from evaluation.graders import Grade, Grader
def judge(response, answer, argument):
    if not response:
        return Grade(False, "no_answer")
    return Grade(len(response) > int(argument or 0), "ok")
longer = Grader("longer", judge, check=lambda argument: int(argument or 0))
"""


@pytest.fixture(scope="module")
def own_rewards(tmp_path_factory):
    """Puts the module `own_rewards` on the path of this process and of its grading pool."""
    from evaluation.grading import default_pool

    directory = tmp_path_factory.mktemp("own")
    (directory / "own_rewards.py").write_text(OWN)
    sys.path.insert(0, str(directory))
    default_pool().close()  # the next use starts a pool that has the new path
    yield "own_rewards"
    sys.path.remove(str(directory))
    default_pool().close()


def score(name, response="12", answer="12", timeout=5.0, correct=1.0, wrong=-1.0, **settings):
    return asyncio.run(
        rewards.compute_score(
            "source",
            response,
            answer,
            {},
            reward=name,
            settings=settings,
            correct=correct,
            wrong=wrong,
            timeout=timeout,
        )
    )


def test_scores_of_right_wrong_and_missing_answers():
    assert score("boxed", r"\boxed{12}") == {"score": 1.0, "acc": 1.0, "no_answer": 0.0, "failed": 0.0}
    assert score("boxed", r"\boxed{13}") == {"score": -1.0, "acc": 0.0, "no_answer": 0.0, "failed": 0.0}
    assert score("boxed", "twelve") == {"score": -1.0, "acc": 0.0, "no_answer": 1.0, "failed": 0.0}


@pytest.mark.parametrize("name", ["raises", "exits", "not_a_number"])
def test_a_failing_reward_is_counted_and_does_not_raise(name, own_rewards):
    assert score(f"{own_rewards}.{name}") == {"score": -1.0, "acc": 0.0, "no_answer": 0.0, "failed": 1.0}


def test_a_hanging_reward_ends_at_its_time_limit_and_blocks_nobody(own_rewards):
    async def both():
        began = time.monotonic()
        options = {"settings": {}, "correct": 1.0, "wrong": 0.0}
        slow = asyncio.create_task(
            rewards.compute_score("s", "1", "1", reward=f"{own_rewards}.hangs", timeout=3.0, **options)
        )
        quick = await rewards.compute_score("s", r"\boxed{1}", "1", reward="boxed", timeout=30.0, **options)
        assert quick["acc"] == 1.0
        assert not slow.done()
        result = await slow
        return result, time.monotonic() - began

    result, seconds = asyncio.run(both())
    assert result["failed"] == 1.0
    assert seconds < 30


def test_a_float_is_the_score_itself(own_rewards):
    assert score(f"{own_rewards}.share_of_digits", "a1") == {"score": 0.5, "acc": 0.0, "no_answer": 0.0, "failed": 0.0}
    assert score(f"{own_rewards}.share_of_digits", "a1", weight=2.0)["acc"] == 1.0


def test_a_grader_of_ones_own_is_a_reward(own_rewards):
    name = f"{own_rewards}.longer"
    assert rewards.load_reward(name, {"argument": 2})("abc", "", argument=2) is True
    assert score(name, "12") == {"score": 1.0, "acc": 1.0, "no_answer": 0.0, "failed": 0.0}
    assert score(f"{own_rewards}:longer", "12", argument=2)["score"] == -1.0
    assert score(name, "")["no_answer"] == 1.0
    with pytest.raises(ConfigError, match=r"rl\.reward\.settings: weight does not fit longer; allowed: argument"):
        rewards.load_reward(name, {"weight": 2})
    with pytest.raises(ConfigError, match=r"rl\.reward\.settings\.argument: longer: invalid literal"):
        rewards.load_reward(name, {"argument": "many"})


def test_a_bool_of_numpy_is_a_bool(own_rewards):
    assert score(f"{own_rewards}.of_numpy", "12")["score"] == 1.0
    assert score(f"{own_rewards}.of_numpy", "13") == {"score": -1.0, "acc": 0.0, "no_answer": 0.0, "failed": 0.0}


@pytest.mark.parametrize(
    ("response", "answer", "acc"),
    [("20.5", "[19.5, 21.5]", 1.0), ("22", "[19.5, 21.5]", 0.0), ("May 8, 2021", "2021-05-08", 1.0)],
)
def test_medcalc_is_judged_by_what_its_reference_is(response, answer, acc):
    found = score("medcalc", rf"\boxed{{{response}}}", answer)
    assert (found["acc"], found["failed"]) == (acc, 0.0)


def test_an_unusable_reference_answer_is_a_failure_not_a_zero():
    assert score("numeric", "12", answer="twelve")["failed"] == 1.0


def test_many_at_once_keep_their_order():
    reward = SimpleNamespace(name="exact", settings={}, correct=1.0, wrong=0.0, timeout=10.0)
    seen: list[int] = []
    found = rewards.score_many(reward, [("a", "a"), ("b", "c"), ("c", "c")], seen.append)
    assert [result.correct for result in found] == [True, False, True]
    assert seen == [1, 2, 3]


# rows with a grader of their own


def mixed(grader, response, answer, name="math", **settings):
    return asyncio.run(
        rewards.compute_score(
            "source",
            response,
            answer,
            {"grader": grader, "index": 0},
            reward=name,
            settings=settings,
            correct=1.0,
            wrong=-1.0,
            timeout=30.0,
        )
    )


def test_a_rows_own_grader_judges_it(own_rewards):
    assert mixed("choice", "The answer is (B)", "B")["score"] == 1.0
    assert mixed("choice", "The answer is (C)", "B")["score"] == -1.0
    assert mixed(None, r"\boxed{2}", "2")["score"] == 1.0  # of a table in which other rows have one
    assert mixed("numeric:0.1", "The answer is 105", "100")["score"] == 1.0
    assert mixed("numeric", "The answer is 105", "100", name="numeric", tolerance=0.1)["score"] == -1.0
    assert mixed("exact", "b", "b", name=f"{own_rewards}.raises") == {
        "score": 1.0, "acc": 1.0, "no_answer": 0.0, "failed": 0.0,
    }  # fmt: skip
    assert mixed(f"{own_rewards}:longer:2", "abc", "")["score"] == 1.0


def test_the_filter_scores_rows_by_their_own_graders():
    reward = SimpleNamespace(name="math", settings={}, correct=1.0, wrong=0.0, timeout=30.0)
    pairs = [("(B)", "B"), (r"\boxed{2}", "2"), ("two", "two")]
    found = rewards.score_many(reward, pairs, lambda done: None, ["choice", None, "exact"])
    assert [result.correct for result in found] == [True, True, True]
    found = rewards.score_many(reward, pairs, lambda done: None, ["choice", None, "choice"])
    assert [result.correct for result in found] == [True, True, False]


def write_rows(path, *graders):
    import pyarrow
    import pyarrow.parquet as pq

    rows = [
        {"extra_info": {"index": n} if grader == "" else {"index": n, "grader": grader}}
        for n, grader in enumerate(graders)
    ]
    pq.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_graders_of_rows_are_checked_before_anything_runs(tmp_path):
    rewards.check_rows(write_rows(tmp_path / "none.parquet", "", ""), {})
    rewards.check_rows(write_rows(tmp_path / "some.parquet", None, "choice", "numeric:0.1"), {})
    with pytest.raises(ConfigError, match=r"bad\.parquet: extra_info\.grader: unknown grader 'chioce'; did you mean"):
        rewards.check_rows(write_rows(tmp_path / "bad.parquet", "chioce"), {})
    programs = write_rows(tmp_path / "code.parquet", "math", "code")
    with pytest.raises(
        ConfigError, match=r"grader code, which runs programs .*rl\.reward\.settings\.run_generated_code"
    ):
        rewards.check_rows(programs, {})
    rewards.check_rows(programs, {"run_generated_code": True})


def test_leave_for_programs_goes_with_any_reward(own_rewards):
    leave = {"run_generated_code": True}
    assert rewards.load_reward("math", leave)("so 2", "2", **leave)
    rewards.load_reward(f"{own_rewards}.share_of_digits", {**leave, "weight": 2.0})
    assert score(f"{own_rewards}.share_of_digits", "a1", weight=1.0, **leave)["score"] == 0.5
    answer = '{"prefix": "", "entry_point": "double", "test": "assert double(2) == 4"}'
    assert mixed("code", "def double(x): return 2 * x", answer, **leave)["score"] == 1.0
    assert mixed("code", "def double(x): return 2 * x", answer)["failed"] == 1.0

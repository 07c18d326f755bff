import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from evaluation.grading import Grade, GradingPool, grade
from evaluation.grading.pool import MAX_PENDING, Outcome
from evaluation.grading.server import STARVED_SECONDS, Backlog, Worker

# A sum that keeps sympy busy for hours.
HANGING = r"\boxed{\sum_{k=1}^{10^9} \frac{1}{k^3+k+1}}"


@pytest.fixture(scope="module")
def pool():
    with GradingPool(workers=3, timeout_seconds=2.0) as pool:
        pool.grade(r"\boxed{1}", "1")
        yield pool


def test_hanging_answers_are_killed_and_the_others_are_graded_in_order(pool):
    tasks = [(HANGING if i % 10 == 3 else rf"\boxed{{\frac{{{i}}}{{7}}}}", f"{i}/7", "math") for i in range(30)]
    done = []
    grades = pool.grade_many(tasks, progress=done.append)
    hanging = [Grade(False, "timeout") if i % 10 == 3 else Grade(True, "ok") for i in range(30)]
    assert grades == hanging and done[-1] == 30


def test_crashes_and_exceptions_have_their_own_status_and_the_pool_lives_on(pool):
    assert pool.submit("os:abort").result() == Outcome("crash", None)
    assert pool.submit("os:_exit", 0).result() == Outcome("crash", None)
    assert pool.submit("sys:exit", 3).result() == Outcome("error", "SystemExit: 3")
    assert pool.submit("no_such_module:f").result().status == "error"
    assert pool.submit("time:sleep", 60, timeout_seconds=0.3).result() == Outcome("timeout", None)
    assert pool.submit("operator:add", 2, 3).result() == Outcome("ok", 5)
    assert pool.grade(r"\boxed{2}", "2") == Grade(True, "ok")


def test_memory_of_a_worker_is_bounded():
    with GradingPool(workers=1, memory_bytes=1 << 30) as small:
        outcome = small.submit("operator:mul", "x", 2 << 30).result()
        assert outcome.status == "error" and outcome.value.startswith("MemoryError")


def test_workers_are_forked_with_what_their_tasks_import(pool):
    for name in ("math_verify", "sacrebleu"):
        loaded = f"{name!r} in __import__('sys').modules"
        assert pool.submit("builtins:eval", loaded).result() == Outcome("ok", True)


def test_a_grader_that_prints_stays_silent(pool, capfd):
    assert pool.submit("builtins:print", "noise").result() == Outcome("ok", None)
    assert capfd.readouterr() == ("", "")


def test_grading_works_in_threads_where_sigalrm_cannot():
    verdicts = []
    threads = [threading.Thread(target=lambda: verdicts.append(grade(r"\boxed{\frac{2}{4}}", "0.5"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Grade(True, "ok")] * 4


def test_bad_references_and_graders_reach_the_caller(pool):
    with pytest.raises(ValueError, match="not one number"):
        pool.grade("3", "three", "numeric")
    with pytest.raises(ValueError, match="grader"):
        pool.submit_grade("3", "3", "guess")


def test_a_dead_grading_process_fails_its_tasks_and_refuses_more():
    pool = GradingPool(workers=1)
    pool.grade("1", "1")
    sleeping = pool.submit("time:sleep", 60, timeout_seconds=60)
    os.kill(pool._process.pid, signal.SIGKILL)
    assert sleeping.result(timeout=10) == Outcome("crash", None)
    with pytest.raises(RuntimeError, match="died"):
        pool.submit("time:sleep", 0)


def test_submitting_never_waits_for_grading():
    with GradingPool(workers=1) as slow:
        slow.grade("1", "1")
        sleeping = slow.submit("time:sleep", 5, timeout_seconds=60)
        futures = [slow.submit("operator:add", i, 1) for i in range(MAX_PENDING + 100)]
        assert not sleeping.done()
        assert [future.result().value for future in futures] == list(range(1, len(futures) + 1))


def test_a_worker_goes_on_with_the_question_it_knows_and_the_others_take_the_oldest():
    backlog = Backlog()
    for number, (response, answer) in enumerate(zip("abcdef", "112213", strict=True)):
        backlog.add([number, "grade", [response, answer, "math"], 3.0])
    first, task = backlog.take(None, set())
    assert task[0] == 0
    second, task = backlog.take(None, {first})
    assert task[0] == 2
    assert [backlog.take(known, {first, second})[1][0] for known in (second, first)] == [3, 1]
    # Everybody else's question, rather than none; a postponed one comes last.
    backlog.postpone(first)
    assert backlog.take(first, set())[1][0] == 4
    assert backlog.take(first, {first, second})[1][0] == 5 and not backlog
    backlog.add([6, "grade", ["g", "1", "math"], 3.0])
    backlog.add([7, "grade", ["h", "9", "math"], 3.0])
    backlog.postpone(first)
    assert [backlog.take(None, set())[1][0] for _ in range(2)] == [7, 6]


def test_a_task_that_was_kept_from_running_goes_on_and_one_that_ran_or_slept_or_waited_long_does_not(tmp_path):
    def give(function, *arguments):
        worker = Worker(1 << 32, tmp_path)
        worker.give(0, function, list(arguments), 3.0)
        return worker

    busy, asleep = give("operator:pow", 9, 10**9), give("time:sleep", 60)
    try:
        deadline = time.monotonic() + 60
        while not busy.starved():
            assert time.monotonic() < deadline
        assert 0 < busy.deadline - time.monotonic() <= STARVED_SECONDS
        given_up_at, busy.given_up_at = busy.given_up_at, 0.0
        assert not busy.starved()
        busy.given_up_at = given_up_at
        while busy.starved():
            assert time.monotonic() < deadline
            time.sleep(STARVED_SECONDS / 5)
        while asleep.starved():
            assert time.monotonic() < deadline
        assert not asleep.starved()
    finally:
        busy.kill()
        asleep.kill()


def test_killing_the_user_of_a_pool_leaves_no_process_behind():
    code = (
        "import os, signal; from evaluation.grading import GradingPool; p = GradingPool(workers=2);"
        "print(p.submit('os:getpid').result().value, p._process.pid, flush=True);"
        "p.submit('time:sleep', 600, timeout_seconds=600); os.kill(os.getpid(), signal.SIGKILL)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    deadline = time.monotonic() + 10
    for pid in map(int, output.split()):
        while _alive(pid):
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

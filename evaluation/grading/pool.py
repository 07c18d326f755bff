"""Graders behind a pool of subprocesses with hard time-outs; safe from threads, Ray workers and event loops."""

import atexit
import contextlib
import itertools
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from common.errors import ConfigError
from evaluation.graders import Grade
from evaluation.grading.answers import check_grader, grade_answer

TIMEOUT_SECONDS = 3.0
MEMORY_BYTES = 4 << 30
MAX_PENDING = 4096


@dataclass(frozen=True)
class Outcome:
    """What became of a call: status `ok`, `timeout`, `error` (value: the message) or `crash`; value: its result."""

    status: str
    value: Any


class GradingPool:
    """Persistent worker processes that call functions by name ("module:function") with JSON arguments and results.

    workers: several times the cores by default. At most two tasks a core compete; one that runs longer than a
    quarter of a second gives way and leaves its place to another worker, so that hung tasks do not hold up the rest.
    A worker keeps verdicts, and goes on with the question it knows while there are responses to it. timeout_seconds:
    wall time of one task, counted from its start; a task that a loaded machine kept from running gets more, until it
    has run for half a second, up to ten times as much. memory_bytes: address space of one worker. A killed or crashed
    worker is replaced by a fork. `submit` never waits: a thread passes the tasks on, at most 4096 at a time.
    """

    def __init__(
        self,
        workers: int | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ):
        if workers is not None and workers < 1:
            raise ValueError(f"GradingPool: workers={workers} must be at least 1")
        cores = len(os.sched_getaffinity(0))
        workers = workers or min(64, 8 * cores)
        self.timeout_seconds = timeout_seconds
        self._pid = os.getpid()
        task_read, task_write = os.pipe()
        result_read, result_write = os.pipe()
        root = str(pathlib.Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
        # No accelerator and one thread: a worker is arithmetic on short strings.
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        numbers = (task_read, result_write, workers, min(workers, 2 * cores), memory_bytes)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evaluation.grading.server", *(str(number) for number in numbers)],
            pass_fds=(task_read, result_write),
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        os.close(task_read)
        os.close(result_write)
        self._tasks = Connection(task_write, readable=False)
        self._results = Connection(result_read, writable=False)
        self._futures: dict[int, Future[Outcome]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(MAX_PENDING)
        self._outgoing: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._send, name="grading-tasks", daemon=True).start()
        threading.Thread(target=self._collect, name="grading-results", daemon=True).start()

    def submit(self, function: str, *arguments: Any, timeout_seconds: float | None = None) -> "Future[Outcome]":
        """Call "module:function" in a worker. The future never raises for what the function did: see `Outcome`."""
        future: Future[Outcome] = Future()
        # Running from the start: there is no taking a task back, and an event loop must not cancel it under us.
        future.set_running_or_notify_cancel()
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        with self._lock:
            if self._closed:
                raise RuntimeError("grading pool: it is closed, or its process died")
            number = next(self._numbers)
            message = json.dumps([number, function, arguments, seconds]).encode()
            self._futures[number] = future
            self._outgoing.put(message)
        return future

    def submit_grade(
        self,
        response: str,
        answer: str,
        grader: str = "math",
        *,
        run_generated_code: bool = False,
        timeout_seconds: float | None = None,
    ) -> "Future[Outcome]":
        """Start grading one response; turn the outcome into a `Grade` with `GradingPool.verdict`.

        run_generated_code: leave for the grader `code` to run the response in the sandbox, which has its own limits.
        timeout_seconds: as in `submit`; a grader with a time of its own has at least that.
        """
        judge, _ = check_grader(grader)
        return self.submit(
            "evaluation.grading.pool:grade_as_json",
            response,
            answer,
            grader,
            run_generated_code,
            timeout_seconds=max(judge.timeout or 0, timeout_seconds or 0) or None,
        )

    @staticmethod
    def verdict(outcome: Outcome) -> Grade:
        """The grade of a finished `submit_grade`. Raises ConfigError if the reference answer was unusable."""
        if outcome.status != "ok":
            return Grade(False, outcome.status)  # type: ignore[arg-type]
        if "bad_reference" in outcome.value:
            raise ConfigError(outcome.value["bad_reference"])
        return Grade(**outcome.value)

    def grade(self, response: str, answer: str, grader: str = "math") -> Grade:
        """Grade one response; waits at most the queue plus `timeout_seconds`."""
        return self.verdict(self.submit_grade(response, answer, grader).result())

    def grade_many(
        self, tasks: Iterable[tuple[str, str, str]], progress: Callable[[int], None] | None = None
    ) -> list[Grade]:
        """Grades of (response, answer, grader) triples, in order; `progress(done)` is called as they finish."""
        futures = [self.submit_grade(*task) for task in tasks]
        grades = []
        for done, future in enumerate(futures, start=1):
            grades.append(self.verdict(future.result()))
            if progress is not None:
                progress(done)
        return grades

    def close(self) -> None:
        """End the pool; pending tasks become `crash`."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            self._stop()
        self._process.wait()

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        self._closed = True
        # Wakes the sending thread, which closes the pipe, which ends the process.
        self._outgoing.put(b"")
        self._slots.release()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                message = self._outgoing.get()
                self._slots.acquire()
                if not self._closed:
                    self._tasks.send_bytes(message)
        self._tasks.close()

    def _collect(self) -> None:
        try:
            while True:
                number, status, value = json.loads(self._results.recv_bytes())
                self._futures.pop(number).set_result(Outcome(status, value))
                self._slots.release()
        except (EOFError, OSError):
            with self._lock:
                if not self._closed:
                    self._stop()
                lost, self._futures = self._futures, {}
            for future in lost.values():
                future.set_result(Outcome("crash", None))
            self._results.close()


def grade_as_json(response: str, answer: str, grader: str, run_generated_code: bool) -> dict:
    """`grade_answer` for a worker: a bad reference answer is data's fault and travels apart from a grader's failure."""
    try:
        return asdict(grade_answer(response, answer, grader, run_generated_code=run_generated_code))
    except ValueError as error:
        return {"bad_reference": str(error)}


_default: GradingPool | None = None
_default_lock = threading.Lock()


def default_pool() -> GradingPool:
    """The process's own pool, started at first use, again after a fork or if its process died, closed at exit."""
    global _default
    with _default_lock:
        if _default is None or _default._pid != os.getpid() or _default._closed:
            _default = GradingPool()
            atexit.register(_default.close)
        return _default


def grade(response: str, answer: str, grader: str = "math") -> Grade:
    """Grade one response in the process's own pool: bounded in time, callable from any thread. See `grade_answer`."""
    return default_pool().grade(response, answer, grader)

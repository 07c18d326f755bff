"""The grading process: forks workers, hands each one task at a time, kills those past their time, forks new ones.

Run as `python -m evaluation.grading.server <read fd> <write fd> <workers> <concurrency> <memory bytes>`. It is
single-threaded and has imported math-verify and sacrebleu once, so that a replacement worker costs a fork
(milliseconds) and not an interpreter start. Messages are length-prefixed JSON. In: [task id, "module:function",
arguments, seconds]. Out: [task id, status, value].
"""

import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection
from multiprocessing.connection import Connection, wait
from pathlib import Path

from common.processes import end_with_parent
from evaluation.diversity import of_problem
from evaluation.grading.answers import grade_answer
from evaluation.grading.folders import PAUSE_SECONDS, Folders

# A task older than this gives way: it is likely to hang, so it gets a smaller share of the CPU and stops counting
# against the concurrency. Hung tasks then cost the others little until they are killed.
SLOW_SECONDS = 0.25
SLOWER_BY = 10
# A task that ran for less than this until its deadline was kept waiting by others: it goes on until it has run for so
# long, but not past ten times its seconds.
STARVED_SECONDS = 0.5
PATIENCE = 10
SHORTEST_PAUSE = 0.05
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
# (answer, response) of each kind that teaches the LaTeX parser other decisions.
WARM_UP = (
    (r"\frac{1}{2}", "0.5"),
    (r"3x^2+\sqrt{2}", r"3x^2+\sqrt{3}"),
    ("(x+3)^2", "x^2+6x+9"),
    ("(-1,2]", "(-1,3]"),
    (r"\left(2, \frac{\pi}{3}\right)", r"(3, \frac{\pi}{3})"),
    (r"\{1,2\}", r"\{2,3\}"),
    (r"\sqrt{12}", r"3\sqrt{3}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("5", "x=6"),
    ("1,234", "1,235"),
)


# Tasks in a row that a worker takes because it knows their question.
IN_A_ROW = 32


class Backlog:
    """Waiting tasks, oldest question first. Tasks that differ in their first argument alone, the response, ask the same
    question: a worker goes on with the one it knows, since equal answers to it cost nothing."""

    def __init__(self):
        self._tasks: dict[int, deque[list]] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def add(self, task: list) -> None:
        """task: [id, function, arguments, seconds]."""
        question = hash(json.dumps([task[1], task[2][1:]]))
        self._tasks.setdefault(question, deque()).append(task)

    def take(self, known: int | None, others: Collection[int | None]) -> tuple[int, list]:
        """The next task and its question: the `known` one, else the oldest that none of `others` is at, else the
        oldest."""
        question = known
        if question is None or question not in self._tasks:
            question = next((one for one in self._tasks if one not in others), next(iter(self._tasks)))
        tasks = self._tasks[question]
        task = tasks.popleft()
        if not tasks:
            del self._tasks[question]
        return question, task

    def postpone(self, question: int) -> None:
        """Let all other questions go first."""
        if question in self._tasks:
            self._tasks[question] = self._tasks.pop(question)


class Worker:
    """A forked child, the task it holds and its temporary folder."""

    def __init__(self, memory_bytes: int, folder: Path):
        ours, theirs = socket.socketpair()
        self.folder = folder
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            _serve(Connection(theirs.detach()), memory_bytes)
        theirs.close()
        self.connection = Connection(ours.detach())
        self.task: int | None = None
        self.deadline = 0.0
        self.seconds = 0.0
        self.given_up_at = 0.0
        self.ran_before = 0.0
        self.slow_at = 0.0
        self.slow = False
        self.question: int | None = None
        self.in_a_row = 0

    def take(self, waiting: Backlog, others: Collection[int | None]) -> None:
        """Start on the next waiting task; `others` are the questions that other workers are at."""
        if self.question is not None and self.in_a_row >= IN_A_ROW:
            waiting.postpone(self.question)
            self.question = None
        question, task = waiting.take(self.question, others)
        self.in_a_row = self.in_a_row + 1 if question == self.question else 1
        self.question = question
        self.give(*task)

    def give(self, task: int, function: str, arguments: list, seconds: float) -> None:
        now = time.monotonic()
        self.task, self.deadline, self.slow_at = task, now + seconds, now + SLOW_SECONDS
        self.seconds, self.given_up_at = seconds, now + PATIENCE * seconds
        self.connection.send_bytes(json.dumps([function, arguments]).encode())

    def starved(self) -> bool:
        """Whether the task, at its deadline, has hardly run though it could; if so, the deadline moves."""
        with open(f"/proc/{self.pid}/stat") as file:
            values = file.read().rpartition(")")[2].split()
        state, used = values[0], (int(values[11]) + int(values[12])) / CLOCK_TICKS
        missing = min(STARVED_SECONDS, self.seconds) - (used - self.ran_before)
        now = time.monotonic()
        if state != "R" or missing <= 0 or now >= self.given_up_at:
            return False
        self.deadline = min(now + max(missing, SHORTEST_PAUSE), self.given_up_at)
        return True

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.connection.close()


def _serve(connection: Connection, memory_bytes: int) -> None:
    """The worker's loop; never returns."""
    parent = os.getppid()
    end_with_parent()
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Only our sockets may speak for this process: a grader that prints must not reach the trainer's console.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while True:
        try:
            function, arguments = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        try:
            module, _, name = function.partition(":")
            value = getattr(importlib.import_module(module), name)(*arguments)
            reply = json.dumps(["ok", value, time.process_time()])
        except BaseException as error:
            # BaseException: a SystemExit raised by a reward function is its failure, not the end of this worker.
            reply = json.dumps(["error", f"{type(error).__name__}: {error}"[:500], time.process_time()])
        connection.send_bytes(reply.encode())


def main(read_fd: int, write_fd: int, workers: int, concurrency: int, memory_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The LaTeX parser builds its tables while parsing: done once here, every fork starts with them.
    for answer, response in WARM_UP:
        grade_answer(rf"\boxed{{{response}}}", answer)
    grade_answer("The final answer is $7$.", "8")
    # A fork that imports sacrebleu itself is slow on a busy machine, so it is replaced: by one that imports it again.
    of_problem(("a b", "a c"))
    requests, replies = Connection(read_fd, writable=False), Connection(write_fd, readable=False)
    # No child needs to walk, and so to copy, what is there already.
    gc.collect()
    gc.freeze()
    # The children must not hold the client's end of the pipes open: they would outlive it unnoticed.
    os.set_inheritable(read_fd, False)
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + SLOWER_BY)
    folders = Folders()
    pool = [Worker(memory_bytes, folders.new()) for _ in range(workers)]
    waiting = Backlog()

    def reply(task: int | None, status: str, value) -> None:
        replies.send_bytes(json.dumps([task, status, value]).encode())

    def replaced(worker: Worker) -> Worker:
        worker.kill()
        folders.drop(worker.folder)
        return Worker(memory_bytes, folders.new())

    try:
        while True:
            now = time.monotonic()
            for index, worker in enumerate(pool):
                if worker.task is None:
                    continue
                if now >= worker.deadline and not worker.starved():
                    pool[index] = replaced(worker)
                    reply(worker.task, "timeout", None)
                elif not worker.slow and now >= worker.slow_at:
                    worker.slow = True
                    os.setpriority(os.PRIO_PROCESS, worker.pid, niceness)
            idle = sorted(
                (worker for worker in pool if worker.task is None), key=lambda worker: worker.question is None
            )
            free = concurrency - sum(worker.task is not None and not worker.slow for worker in pool)
            others = {worker.question for worker in pool if worker.task is not None and not worker.slow}
            for worker in idle[: max(0, free)]:
                if waiting:
                    worker.take(waiting, others)
                    others.add(worker.question)
            busy = [worker for worker in pool if worker.task is not None]
            alarms = [w.deadline if w.slow else min(w.slow_at, w.deadline) for w in busy]
            pause = max(0.0, min(alarms) - time.monotonic()) if alarms else None
            if not folders.clear():
                pause = PAUSE_SECONDS if pause is None else min(pause, PAUSE_SECONDS)
            ready = set(wait([requests, *(worker.connection for worker in busy)], pause))
            if requests in ready:
                waiting.add(json.loads(requests.recv_bytes()))
            for worker in busy:
                if worker.connection not in ready:
                    continue
                task = worker.task
                try:
                    status, value, worker.ran_before = json.loads(worker.connection.recv_bytes())
                    worker.task = None
                except (EOFError, OSError):
                    status, value = "crash", None
                if worker.slow or status == "crash":
                    # An unprivileged process cannot lower its niceness again.
                    pool[pool.index(worker)] = replaced(worker)
                reply(task, status, value)
    except (EOFError, OSError):
        pass
    finally:
        for worker in pool:
            worker.kill()
        folders.close()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:6]))

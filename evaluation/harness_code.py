"""Harness tasks that run programs, in our sandbox: what `evaluate.load("code_eval")` gives them.

The harness' code tasks (humaneval, mbpp and what includes them) load the metric `code_eval` from the hub when their
functions are imported, try it at once, and run every program in a bare process. Here they get a metric of the same name
and the same verdicts: a program is a candidate and after it a test, right where it runs to its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.errors import ConfigError
from evaluation.sandbox import Limits, run_code
from evaluation.statistics import pass_at_k

NAME = "code_eval"
LIMITS = Limits(seconds=30.0, cpu_seconds=3)  # three seconds, as code_eval's own; of the processor, whatever the load
WORKERS = 2


class CodeEval:
    """`code_eval` of the package evaluate, of which the harness calls `compute`."""

    def __init__(self, run_generated_code: bool, beat: Callable[[], None]) -> None:
        self.run_generated_code, self.beat = run_generated_code, beat

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[bool]]]:
        """({"pass@k": mean over the references}, right or wrong by reference and candidate).

        Raises ConfigError without leave to run programs, and RuntimeError where there is no sandbox.
        """
        if not self.run_generated_code:
            raise ConfigError(
                "eval.tasks: a task runs programs that the model writes; set eval.run_generated_code=true"
            )
        passed: dict[int, list[bool]] = {}
        with ThreadPoolExecutor(WORKERS) as pool:
            for number, (test, candidates) in enumerate(zip(references, predictions, strict=True)):
                passed[number] = list(pool.map(lambda program, test=test: self._passes(program, test), candidates))
                self.beat()
        shares = {
            f"pass@{one}": sum(pass_at_k(len(row), sum(row), one) for row in passed.values()) / len(passed)
            for one in k
            if all(len(row) >= one for row in passed.values())
        }
        return shares, passed

    def _passes(self, candidate: str, test: str) -> bool:
        # The test comes as text in a call, so that an unfinished string of the candidate cannot swallow it.
        whole = f"{candidate}\nexec({test!r}, globals())\n"
        return run_code(whole, run_generated_code=True, limits=LIMITS).status == "passed"


_current: CodeEval | None = None


class _Current:
    """What a task's functions keep: the `CodeEval` that is in force when they call it."""

    def compute(self, **options: Any) -> Any:
        """See `CodeEval.compute`. Nothing where none is in force: functions try it when they are imported."""
        return ({}, {}) if _current is None else _current.compute(**options)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """While it lasts, tasks that are loaded get our `code_eval` and nothing from the hub."""
    try:
        import evaluate
    except ModuleNotFoundError:  # no task that runs programs can be loaded without it
        yield
        return

    load = evaluate.load

    def ours(path: str, *arguments: Any, **options: Any) -> Any:
        return _Current() if path == NAME else load(path, *arguments, **options)

    evaluate.load = ours
    try:
        yield
    finally:
        evaluate.load = load


@contextlib.contextmanager
def running(run_generated_code: bool, beat: Callable[[], None]) -> Iterator[None]:
    """While it lasts, what was loaded by `loading` runs programs, in the sandbox. beat() is called for each problem."""
    global _current
    before, _current = _current, CodeEval(run_generated_code, beat)
    try:
        yield
    finally:
        _current = before


def check_runner(name: str, task: Any) -> None:
    """Raises ConfigError for a harness task that runs programs by other means than `code_eval`, and so unguarded."""
    functions = [*getattr(task, "_metric_fn_list", {}).values(), task.config.process_results]
    for function in functions:
        function = getattr(function, "__self__", function)  # the harness keeps a function's own `__call__`
        if any(isinstance(value, _Current) for value in getattr(function, "__globals__", {}).values()):
            return
    raise ConfigError(
        f"eval.tasks: {name!r} runs programs that the model writes by means of its own, outside the sandbox; leave it "
        f"out, or write a task file whose metric uses evaluate.load('code_eval')"
    )

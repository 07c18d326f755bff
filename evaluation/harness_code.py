"""Harness tasks that run programs, in our sandbox: what `evaluate.load("code_eval")` gives them.

The harness' code tasks (humaneval, mbpp and what includes them) load the metric `code_eval` from the hub when their
functions are imported, try it at once, and run every program in a bare process. Here they get a metric of the same name
and the same verdicts on programs that mean well: one is right where it loads and the test then runs to its end, with
nothing imported for it. The test runs in a process of its own and calls the program (docs/sandbox.md).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.errors import ConfigError
from evaluation.sandbox import Limits, Sandbox
from evaluation.sandbox.extraction import tested_function
from evaluation.statistics import pass_at_k

NAME = "code_eval"
LIMITS = Limits(seconds=30.0, cpu_seconds=3)  # three seconds, as code_eval's own; of the processor, whatever the load
WORKERS = 2


class CodeEval:
    """`code_eval` of the package evaluate, of which the harness calls `compute`.

    prompts: by test, what the model was given to complete, whose helpers the test uses. verdicts: how many programs
    `passed`, `failed` and were `ungraded`, which count as wrong.
    """

    def __init__(self, run_generated_code: bool, beat: Callable[[], None], prompts: Mapping[str, str]) -> None:
        self.run_generated_code, self.beat, self.prompts = run_generated_code, beat, prompts
        self.verdicts: Counter[str] = Counter()

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
                verdicts = list(pool.map(lambda program, test=test: self._verdict(program, test), candidates))
                self.verdicts.update(verdicts)
                passed[number] = [verdict == "passed" for verdict in verdicts]
                self.beat()
        shares = {
            f"pass@{one}": sum(pass_at_k(len(row), sum(row), one) for row in passed.values()) / len(passed)
            for one in k
            if all(len(row) >= one for row in passed.values())
        }
        return shares, passed

    def _verdict(self, candidate: str, test: str) -> str:
        prompt = self.prompts.get(test, "")
        # Nothing of a model's runs beside a test: helpers are the data set's.
        prefix = prompt if candidate.startswith(prompt) else ""
        entry = tested_function(test)
        with Sandbox(candidate, LIMITS, run_generated_code=True, mentions=test) as sandbox:
            if sandbox.load(entry, tested=True, recursion=False, plain=True).kind != "value":
                return "failed"
            return sandbox.test(test, entry, prefix).verdict


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
def running(run_generated_code: bool, beat: Callable[[], None], prompts: Mapping[str, str]) -> Iterator[Counter[str]]:
    """While it lasts, what was loaded by `loading` runs programs, in the sandbox; their verdicts are counted. beat() is
    called for each problem; prompts: of `code_prompts`."""
    global _current
    before, _current = _current, CodeEval(run_generated_code, beat, prompts)
    try:
        yield _current.verdicts
    finally:
        _current = before


def code_prompts(task: Any) -> dict[str, str]:
    """By test, the code that a harness task gives the model to complete; nothing where it gives none."""
    return {
        str(task.doc_to_target(doc)): doc["prompt"]
        for doc in task.eval_docs
        if isinstance(doc.get("prompt"), str) and "entry_point" in doc
    }


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

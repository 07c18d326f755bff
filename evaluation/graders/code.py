"""Programs that a model wrote, judged by tests in the sandbox.

The reference answer of the grader `code` is JSON, one of

    {"prefix": str, "entry_point": str, "test": str}    the program, then the test program, which raises where it fails
    {"cases": [[stdin, stdout], ...]}              the program reads stdin and writes stdout
    {"function": name, "cases": [[[arguments], result], ...]}    a function, or a method of a class `Solution`

`prefix` is what the model was given to complete; it is put before a program that does not define `entry_point`.
Only inputs reach the program; what comes back is compared here, or by the test's own process (docs/sandbox.md).
"""

from __future__ import annotations

import json
from typing import Any

from common.errors import ConfigError
from evaluation.graders._code_compare import same_output, same_value
from evaluation.graders.contract import Grade, Grader
from evaluation.sandbox import Limits, Sandbox, extract_code
from evaluation.sandbox.extraction import defines
from evaluation.sandbox.sandbox import Answer
from evaluation.sandbox.values import Untrusted, decode

LIMITS = Limits()
# The sandbox has limits of its own, for each case; this one is for a sandbox that hangs.
TIMEOUT_SECONDS = 3600.0
RIGHT, WRONG = Grade(True, "ok"), Grade(False, "ok")
# The value cannot be judged: a class of the program's own, or bytes that stand for nothing.
UNGRADED = Grade(False, "error")


def check_code_answer(answer: str) -> dict[str, Any]:
    """The tests of a reference answer. Raises ConfigError, naming what is allowed, if they are none of the three."""
    try:
        tests = json.loads(answer)
    except ValueError:
        tests = None
    if not isinstance(tests, dict) or not ({"prefix", "entry_point", "test"} == set(tests) or "cases" in tests):
        raise ConfigError(
            f"answer: {answer[:60]!r} holds no tests; the code grader needs JSON: prefix, entry_point and test, or "
            "cases"
        )
    if "cases" in tests and not tests["cases"]:
        raise ConfigError(f"answer: {answer[:60]!r} has no cases; a program would pass without being run")
    for case in tests.get("cases", ()):
        first = list if "function" in tests else str
        if not isinstance(case, list) or len(case) != 2 or not isinstance(case[0], first):
            wanted = "[[arguments], result]" if first is list else "[stdin, stdout]"
            raise ConfigError(f"answer: the case {str(case)[:60]} is not {wanted}")
    return tests


def grade_code(response: str, answer: str, *, run_generated_code: bool) -> Grade:
    """Run the program of `response` against the tests of `answer`, each case in a process of its own.

    `error`: a function returned a value that cannot be judged. Raises ConfigError for unreadable tests or without
    run_generated_code, RuntimeError where there is no sandbox.
    """
    return code.grade(response, answer, run_generated_code=run_generated_code)


def _judge(response: str, answer: str, _: str) -> Grade:
    tests = check_code_answer(answer)
    program = extract_code(response, tests.get("function") or tests.get("entry_point") or "")
    if not program.strip():
        return Grade(False, "no_answer")
    if "test" in tests:
        return _by_test(program, **tests)
    if "function" in tests:
        return _by_calls(program, tests["function"], tests["cases"])
    return _by_output(program, tests["cases"])


def _by_test(program: str, prefix: str, entry_point: str, test: str) -> Grade:
    if not defines(program, entry_point):
        program = prefix + program
    with Sandbox(program, LIMITS, run_generated_code=True, mentions=test) as sandbox:
        if sandbox.load(entry_point, prefix, tested=True, recursion=False).kind != "value":
            return WRONG
        verdict = sandbox.test(test, entry_point, prefix).verdict
    return {"passed": RIGHT, "failed": WRONG, "ungraded": UNGRADED}[verdict]


def _by_calls(program: str, function: str, cases: list[list]) -> Grade:
    with Sandbox(program, LIMITS, run_generated_code=True) as sandbox:
        if sandbox.load(function).kind != "value":
            return WRONG
        for arguments, expected in cases:
            (found,) = sandbox.call([arguments])
            if (grade := _of_value(found, expected)) is not RIGHT:
                return grade
        # The benchmarks call one program for all cases. One that answers differently then keeps something from call to
        # call; that it takes too much of a limit in all is nothing against it.
        together = sandbox.call([arguments for arguments, _ in cases]) if len(cases) > 1 else []
    for found, (_, expected) in zip(together, cases, strict=False):
        if found.kind in ("value", "raised") and _of_value(found, expected) is WRONG:
            return WRONG
    return RIGHT


def _of_value(found: Answer, expected: Any) -> Grade:
    if found.kind == "unserialisable":
        return UNGRADED
    if found.kind != "value":
        return WRONG
    try:
        return RIGHT if same_value(decode(found.content), expected) else WRONG
    except Untrusted:
        return UNGRADED


def _by_output(program: str, cases: list[list]) -> Grade:
    with Sandbox(program, LIMITS, run_generated_code=True) as sandbox:
        for stdin, expected in cases:
            ended = sandbox.run(stdin)
            if ended.limit or ended.status or not same_output(ended.output.decode(errors="replace"), expected):
                return WRONG
    return RIGHT


code = Grader("code", _judge, version=2, timeout=TIMEOUT_SECONDS, runs_code=True)

"""Programs that a model wrote, judged by tests in the sandbox.

The reference answer of the grader `code` is JSON, one of

    {"prefix": str, "entry_point": str, "test": str}    the program, then the test program, which raises where it fails
    {"cases": [[stdin, stdout], ...]}              the program reads stdin and writes stdout
    {"function": name, "cases": [[[arguments], result], ...]}    a function, or a method of a class `Solution`

`prefix` is what the model was given to complete; it is put before a program that does not define `entry_point`.
"""

from __future__ import annotations

import json
import re

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.sandbox import Limits, extract_code, run_code

LIMITS = Limits()
# The sandbox stops a program after 10 s; many of them at once start slowly.
TIMEOUT_SECONDS = 60.0
CALL = """
import json as _json
_function = globals().get({name!r}) or getattr(Solution(), {name!r})
for _arguments, _expected in _json.loads({cases!r}):
    _found = _function(*_arguments)
    _found = _json.loads(_json.dumps(_found))
    assert _found == _expected, "wrong answer"
"""


def check_code_answer(answer: str) -> dict:
    """The tests of a reference answer. Raises ConfigError, naming what is allowed, if they are none of the three."""
    try:
        tests = json.loads(answer)
    except ValueError:
        tests = None
    if isinstance(tests, dict) and ({"prefix", "entry_point", "test"} == set(tests) or "cases" in tests):
        return tests
    raise ConfigError(
        f"answer: {answer[:60]!r} holds no tests; the code grader needs JSON: prefix, entry_point and test, or cases"
    )


def grade_code(response: str, answer: str, *, run_generated_code: bool) -> Grade:
    """Run the last code block of `response` against the tests of `answer`, each case in a sandbox of its own.

    Raises ConfigError for unreadable tests or without run_generated_code, RuntimeError where there is no sandbox.
    """
    return code.grade(response, answer, run_generated_code=run_generated_code)


def _judge(response: str, answer: str, _: str) -> Grade:
    tests = check_code_answer(answer)
    program = extract_code(response)
    if not program.strip():
        return Grade(False, "no_answer")
    if "test" in tests:
        if not re.search(rf"^(?:async )?def {re.escape(tests['entry_point'])}\b", program, re.MULTILINE):
            program = tests["prefix"] + program
        # The test program comes as text in a call, so that an unfinished string of the program cannot swallow it.
        whole = f"{program}\nexec({tests['test']!r}, globals())\n"
        passed = run_code(whole, run_generated_code=True, limits=LIMITS).status == "passed"
        return Grade(passed, "ok")
    if "function" in tests:
        whole = program + CALL.format(name=tests["function"], cases=json.dumps(tests["cases"]))
        return Grade(run_code(whole, run_generated_code=True, limits=LIMITS).status == "passed", "ok")
    for stdin, expected in tests["cases"]:
        ran = run_code(program, run_generated_code=True, stdin=stdin, limits=LIMITS)
        if ran.status != "passed" or not _same_output(ran.output, expected):
            return Grade(False, "ok")
    return Grade(True, "ok")


def _same_output(found: str, expected: str) -> bool:
    """Equal line by line, up to spaces at the ends and the notation of numbers."""
    lines = [[line.strip() for line in text.strip().splitlines()] for text in (found, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    return all(a == b or (_numbers(a) is not None and _numbers(a) == _numbers(b)) for a, b in zip(*lines, strict=True))


def _numbers(line: str) -> list[float] | None:
    try:
        return [float(word) for word in line.split()]
    except ValueError:
        return None


code = Grader("code", _judge, timeout=TIMEOUT_SECONDS, runs_code=True)

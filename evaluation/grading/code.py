"""Programs that a model wrote, judged by tests in the sandbox.

The reference answer of the grader `code` is JSON, one of

    {"prefix": str, "entry_point": str, "test": str}    the program, then the test program, which raises where it fails
    {"cases": [[stdin, stdout], ...]}              the program reads stdin and writes stdout
    {"function": name, "cases": [[[arguments], result], ...]}    a function, or a method of a class `Solution`

`prefix` is what the model was given to complete; it is put before a program that does not define `entry_point`.
"""

import json
import re

from evaluation.grading.answers import Grade
from evaluation.sandbox import Limits, extract_code, run_code

LIMITS = Limits()
CALL = """
import json as _json
_function = globals().get({name!r}) or getattr(Solution(), {name!r})
for _arguments, _expected in _json.loads({cases!r}):
    _found = _function(*_arguments)
    _found = _json.loads(_json.dumps(_found))
    assert _found == _expected, "wrong answer"
"""


def check_code_answer(answer: str) -> dict:
    """The tests of a reference answer. Raises ValueError, naming what is allowed, if they are none of the three."""
    try:
        tests = json.loads(answer)
    except ValueError:
        tests = None
    if isinstance(tests, dict) and ({"prefix", "entry_point", "test"} == set(tests) or "cases" in tests):
        return tests
    raise ValueError(
        f"answer: {answer[:60]!r} holds no tests; the code grader needs JSON: prefix, entry_point and test, or cases"
    )


def grade_code(response: str, answer: str, *, run_generated_code: bool, limits: Limits = LIMITS) -> Grade:
    """Run the last code block of `response` against the tests of `answer`, each case in a sandbox of its own.

    Raises ValueError for unreadable tests or without run_generated_code, RuntimeError where there is no sandbox.
    """
    tests = check_code_answer(answer)
    if not run_generated_code:
        raise ValueError(
            "grader: code runs programs that the model wrote; set eval.run_generated_code=true to allow it"
        )
    program = extract_code(response)
    if not program.strip():
        return Grade(False, "no_answer")
    if "test" in tests:
        if not re.search(rf"^(?:async )?def {re.escape(tests['entry_point'])}\b", program, re.MULTILINE):
            program = tests["prefix"] + program
        # The test program comes as text in a call, so that an unfinished string of the program cannot swallow it.
        whole = f"{program}\nexec({tests['test']!r}, globals())\n"
        passed = run_code(whole, run_generated_code=True, limits=limits).status == "passed"
        return Grade(passed, "ok")
    if "function" in tests:
        whole = program + CALL.format(name=tests["function"], cases=json.dumps(tests["cases"]))
        return Grade(run_code(whole, run_generated_code=True, limits=limits).status == "passed", "ok")
    for stdin, expected in tests["cases"]:
        ran = run_code(program, run_generated_code=True, stdin=stdin, limits=limits)
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

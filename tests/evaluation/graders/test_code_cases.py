"""Responses as models write them: which program is taken from them, how it is run, what counts as equal."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from evaluation.graders._code_compare import same_output, same_value
from evaluation.graders.code import check_code_answer, grade_code
from evaluation.sandbox import Limits, extract_code
from evaluation.sandbox.values import Other, Untrusted, decode, encode

CASES = [json.loads(line) for line in Path(__file__).with_name("code_cases.jsonl").read_text().splitlines()]
TEST = {"prefix": "def add(a, b):\n", "entry_point": "add", "test": "assert add(1, 2) == 3\nassert add(3, 4) == 7\n"}
CALLS = {"function": "add", "cases": [[[1, 2], 3], [[3, 4], 7]]}
SUM = {"cases": [["1 2\n", "3\n"], ["10 -4\n", "6\n"]]}
ADD = "def add(a, b):\n    return a + b\n"
READ = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_cases_of_judges_and_harnesses(case):
    grade = grade_code(case["response"], case["answer"], run_generated_code=True)
    assert (grade.correct, grade.failed) == (case["expected"], False)


FUNCTIONS = {
    "python3": f"```python3\n{ADD}```",
    "py with a number": f"```Python 3.10\n{ADD}```",
    "tildes": f"~~~python\n{ADD}~~~",
    "usage in the block": f"```python\n{ADD}\nprint(add(int(input()), 2))\n```",
    "usage that is assigned": f"```python\n{ADD}\nresult = add(int(input()), 2)\nprint(result)\n```",
    "usage that fails": f"```python\n{ADD}\nassert add(1, 1) == 3\n```",
    "usage that leaves": f"```python\n{ADD}\nprint(add(1, 2))\nexit()\n```",
    "usage that leaves before": f"```python\nimport sys\nif len(sys.argv) < 9: sys.exit(1)\n{ADD}```",
    "usage in a block of its own": f"```python\n{ADD}```\nExample:\n```python\nprint(add(1, 2))  # 3\n```",
    "the shell's block after": f"```python\n{ADD}```\nRun it:\n```bash\npython add.py\n```",
    "main block": f"```python\n{ADD}\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))\n```",
    "annotated without an import": "```python\ndef add(a: int, b: int, more: List[int] = None) -> Optional[int]:\n"
    "    return a + b + sum(more or [])\n```",
    "a library without an import": "```python\ndef add(a, b):\n"
    "    return reduce(lambda x, y: x + y, deque([a, b]))\n```",
    "cut off in the usage": f"```python\n{ADD}\ndef main():\n    print(add(1,",
    "prose after the code": f"```python\n{ADD}\nThis function adds its arguments.\n```",
    "no fence": f"Here is it.\n\n{ADD}\nIt adds.",
    "answer tag": f"<answer>\n```python\n{ADD}```\n</answer>",
    "two answers": f"```python\ndef add(a, b):\n    return 0\n```\nNo:\n```python\n{ADD}```",
    "Windows": f"```python\n{ADD}```".replace("\n", "\r\n"),
    "lambda": "```python\nadd = lambda a, b: a + b\n```",
    "dataclass": "```python\nfrom __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\n"
    "class Pair:\n    a: int\n    b: int\n\ndef add(a, b):\n    p = Pair(a, b)\n    return p.a + p.b\n```",
    "defines exec": f"```python\ndef exec(*a): return 0\n{ADD}```",
    "prints": "```python\ndef add(a, b):\n    print(a)\n    return a + b\n```",
    "changes its arguments": "```python\ndef add(a, b):\n    x = [a, b]\n    return x.pop() + x.pop()\n```",
    "a helper in a block before": "```python\ndef plus(x, y):\n    return x + y\n```\nNow\n```python\n"
    "def add(a, b):\n    return plus(a, b)\n```",
    "an import in a block before": "```python\nimport operator as o\n```\n```python\n"
    "def add(a, b):\n    return o.add(a, b)\n```",
    "an indented block": "```python\n    def add(a, b):\n        return a + b\n```",
    "a fence at the end of a line": "```python\ndef add(a, b): return a + b```",
    "a fence in a line": "It is ```def add(a, b): return a + b```.",
    "under a condition": "```python\nif True:\n    def add(a, b):\n        return a + b\n```",
    "usage that imports it": f"```python\n{ADD}```\n```python\nfrom solution import add\nassert add(1, 2) == 3\n```",
    "usage that ends the process": f"```python\n{ADD}\nimport os\nos._exit(0)\n```",
    "usage without end": f"```python\n{ADD}\nwhile True: pass\n```",
    "callable object": "```python\nclass Add:\n    def __call__(self, a, b):\n        return a + b\nadd = Add()\n```",
    "cache": f"```python\n@lru_cache(None)\n{ADD}```",
}


@pytest.mark.parametrize("tests", [TEST, CALLS], ids=["test", "calls"])
@pytest.mark.parametrize("response", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_right_function_is_found_in_a_response(response, tests, monkeypatch):
    monkeypatch.setattr("evaluation.graders.code.LIMITS", Limits(cpu_seconds=1))
    assert grade_code(response, json.dumps(tests), run_generated_code=True).correct


PROGRAMS = {
    "exit": f"```python\n{READ}exit()\n```",
    "quit": f"```python\n{READ}quit(0)\n```",
    "left early": "```python\nimport os\na, b = map(int, input().split())\nprint(a + b, flush=True)\nos._exit(0)\n```",
    "main": "```python\ndef main():\n    print(sum(map(int, input().split())))\n"
    "if __name__ == '__main__':\n    main()\n```",
    "iterator over stdin": "```py\nimport sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n```",
    "printed at exit": "```python\nimport atexit, sys\nout = []\natexit.register(lambda: sys.stdout.write(out[0]))\n"
    "out.append(str(sum(map(int, input().split()))))\n```",
    "deep recursion": "```python\nimport sys\nsys.setrecursionlimit(10**6)\n"
    "def f(n):\n    return 0 if n == 0 else f(n - 1)\n"
    f"f(60000)\n{READ}```",
    "deep recursion in C": "```python\nimport functools, sys\nsys.setrecursionlimit(10**6)\n"
    "@functools.lru_cache(None)\n"
    f"def f(n):\n    return 0 if n == 0 else f(n - 1)\nf(20000)\n{READ}```",
    "asyncio": "```python\nimport asyncio\nasync def main():\n"
    "    print(sum(map(int, input().split())))\nasyncio.run(main())\n```",
    "a helper in a block before": "```python\ndef plus(a, b):\n    return a + b\n```\nMain:\n```python\n"
    "print(plus(*map(int, input().split())))\n```",
    "a block that runs it": f"```python\n{READ}```\n```python\nimport subprocess\n"
    "print(subprocess.run(['python', 'a.py'], input='1 2', text=True).stdout)\n```",
    "a block that shows its use": f"```python\n{READ}```\n```python\nprint('3')\n```",
}


@pytest.mark.parametrize("response", PROGRAMS.values(), ids=PROGRAMS)
def test_a_right_program_is_found_in_a_response(response):
    assert grade_code(response, json.dumps(SUM), run_generated_code=True).correct


@pytest.mark.parametrize(
    ("response", "tests"),
    [
        (f"```python\n{READ}raise SystemExit('no')\n```", SUM),
        (f"```python\n{READ}print()\nprint(0)\n```", SUM),
        (f"```python\n{READ}1 / 0\n```", SUM),
        ("```python\nprint(3)\n```", SUM),
        ("```python\ndef add(a, b):\n    yield a + b\n```", CALLS),
        ("```python\ndef add(a, b):\n    return {a + b}\n```", CALLS),
        ("```python\ndef add(a, b):\n    return str(a + b)\n```", CALLS),
        ("```python\ndef plus(a, b):\n    return a + b\n```", CALLS),
        ("```python\ndef add(a, b):\n    while True: pass\n```", TEST),
    ],
)
def test_wrong_ones_are_wrong(response, tests, monkeypatch):
    monkeypatch.setattr("evaluation.graders.code.LIMITS", Limits(cpu_seconds=2))
    grade = grade_code(response, json.dumps(tests), run_generated_code=True)
    assert (grade.correct, grade.status) == (False, "ok")


def test_a_value_that_cannot_be_judged_is_counted():
    strange = "class Three:\n    pass\ndef add(a, b):\n    return Three()\n"
    for tests in (TEST, CALLS):
        assert grade_code(strange, json.dumps(tests), run_generated_code=True).status == "error"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (
            "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef f(p):\n    return p.a + p.b",
            "f(Pair(1, 2)) == 3",
        ),
        (
            "class Node:\n    pass\ndef f(n):\n    return n.next.x",
            "[setattr(a, 'next', b), setattr(b, 'x', 3), f(a)][2] == 3",
        ),
        ("def f(n):\n    yield from range(n)", "list(f(3)) == [0, 1, 2]"),
        ("def f(n):\n    return lambda m: n + m", "f(1)(2) == 3"),
        ("async def f(n):\n    return n", "__import__('asyncio').run(f(3)) == 3"),
        ("def f(n):\n    raise ValueError('no')", "raised(ValueError, f, 3)"),
        (
            "def f(n):\n    return {(1, 2): {n}, 'x': b'y', 'z': [1.5, None, 1 + 2j]}",
            "f(3) == {(1, 2): {3}, 'x': b'y', 'z': [1.5, None, 1 + 2j]}",
        ),
        ("import numpy\ndef f(n):\n    return numpy.int64(n), numpy.arange(n)", "f(2) == (2, [0, 1])"),
        ("def f(n):\n    return range(n)", "list(f(3)) == [0, 1, 2] and f(3) == range(3)"),
        (
            "def f(n):\n    return {n: 1}.keys(), {n: 1}.values(), {n: 1}.items()",
            "list(map(list, f(3))) == [[3], [1], [(3, 1)]]",
        ),
        ("from collections import deque\ndef f(n):\n    return deque([n])", "f(3) != [3] and list(f(3)) == [3]"),
        (
            "import datetime as d\n"
            "def f(n):\n    return d.date(2024, 1, n), d.timedelta(n), d.datetime(2024, 1, n), bytearray(n)",
            "f(3)[0].day == f(3)[1].days == len(f(3)[3]) == 3 and f(3)[2].isoformat() == '2024-01-03T00:00:00'",
        ),
        ("def f(n):\n    return 10 ** n", "f(5000) == 10 ** 5000 and f(20) != 10 ** 20 + 1"),
        ("f = 3", "f == 3"),
        ("def f(n):\n    return helper(n)", "f(3) == helper(3) == 6"),
    ],
)
def test_tests_use_what_a_program_defines(program, test):
    setup = (
        "def raised(kind, f, *a):\n    try: f(*a)\n    except kind: return True\n    return False\n"
        "if 'Node' in globals(): a, b = Node(), Node()\n"
    )
    prefix = "def helper(n):\n    return 2 * n\n\n\ndef f(n):\n"
    tests = {"prefix": prefix, "entry_point": "f", "test": f"{setup}assert {test}\n"}
    assert grade_code(program, json.dumps(tests), run_generated_code=True).correct
    assert not grade_code(
        program, json.dumps({**tests, "test": f"{setup}assert not ({test})\n"}), run_generated_code=True
    ).correct


def test_output_is_compared_as_livecodebench_does():
    same = [("3", "3\n"), (" 3 \n\n", "3"), ("10.0 2", "10 2"), ("1e3", "1000"), ("nan", "nan"), ("Yes\n", "Yes")]
    other = [
        ("3", "4"),
        ("0.30000000000000004", "0.3"),
        ("1\n\n2", "1\n2"),
        ("9007199254740993", "9007199254740992"),
        ("1 2", "1 2 3"),
        ("yes", "Yes"),
        ("3 x", "3.0 x"),
        ("sNaN", "nan"),
        ("", "0"),
        ("1e999999999", "1"),
    ]
    assert all(same_output(*pair) for pair in same)
    assert not any(same_output(*pair) for pair in other)


def test_values_are_compared_exactly():
    assert same_value((1, [2, (3,)]), [1, [2, [3]]]) and same_value({1: "a"}, {"1": "a"}) and same_value(3.0, 3)
    assert same_value(2**53 + 1, 2**53 + 1) and not same_value(float(2**53), 2**53 + 1)
    assert not same_value({1, 2}, [1, 2]) and not same_value(Other("generator"), None) and not same_value("3", 3)


def test_bytes_that_nobody_vouches_for_become_plain_values_or_are_refused():
    values = [
        None,
        True,
        -3,
        10**5000,
        1.5,
        float("inf"),
        "ü\ud800",
        b"\0",
        [1, (2,)],
        {"a": {3}},
        {(1,): frozenset()},
        2j,
    ]
    assert decode(encode(values)) == values
    for data in (b"", b"{", b"[" * 100_000, b'{"s": [[1]]}', b'{"x": 1}', b'{"i": "zz"}', b'{"a": 1, "b": 2}', b"\xff"):
        with pytest.raises(Untrusted):
            decode(data)


def test_a_block_ends_where_its_fence_does():
    assert extract_code("```\nx = 1\n```\n```text\n1\n```") == "x = 1\n"
    assert extract_code("- a\n  ```py\n  if x:\n    y\n  ```") == "if x:\n  y\n"
    assert extract_code("```python\ns = '''\n```\n'''\n```\nend") == "s = '''\n```\n'''\n"
    assert extract_code("````python\n```\n````") == "```\n"
    assert extract_code("```python\na\n```\n```python\nb\n```", entry="missing") == "b\n"
    assert extract_code("x = 1\n```") == "x = 1"
    assert extract_code("I cannot.") == "I cannot."
    draft = "```python\na = 1\nb = a\n```\n```python\nc = 1\n```\n```python\na = 2\nprint(a + b)\n```"
    assert extract_code(draft) == "a = 2\nprint(a + b)\n"
    local = "```python\nn = 1\nprint(n)\n```\n```python\ndef f(m):\n    n = m\n    return n\nprint(f(2))\n```"
    assert extract_code(local) == "def f(m):\n    n = m\n    return n\nprint(f(2))\n"


def test_text_that_parsers_choke_on_is_a_program_like_any_other():
    for text in (
        "(" * 10_000,
        "-" * 200_000 + "1",
        "x = " + "[" * 500,
        "\0",
        "def f(:\n" * 500,
        "```python\n" + "'''" * 9999,
    ):
        assert isinstance(extract_code(text), str)
    assert grade_code("-" * 100_000 + "1", json.dumps(SUM), run_generated_code=True).status == "ok"


@pytest.mark.parametrize(
    "tests", ['{"cases": []}', '{"cases": [["a"]]}', '{"function": "f", "cases": [["a", 1]]}', "{}"]
)
def test_tests_that_are_none_are_refused(tests):
    with pytest.raises(ConfigError, match="answer: "):
        check_code_answer(tests)

"""Programs that set out to be judged right without being so (docs/sandbox.md lists them)."""

import json
import time

import pytest

from evaluation.benchmarks.code import humaneval_plus
from evaluation.graders.code import grade_code
from evaluation.harness_code import CodeEval
from evaluation.sandbox.values import Untrusted, decode

CALLS = {"function": "add", "cases": [[[1, 2], 3], [[5, 6], 11]]}
TEST = {
    "prefix": "def add(a, b):\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 6) == 11\ncheck(add)",
}
OUTPUT = {"cases": [["1 2\n", "3\n"], ["5 6\n", "11\n"]]}

ALWAYS_EQUAL = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __bool__(self): return True
    def __hash__(self): return 3
"""
# Each is put before a function that returns nothing useful.
ATTACKS = {
    "def exec": "def exec(*a, **k): pass\ndef eval(*a, **k): return True\n",
    "builtins.exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n",
    "patched json": "import json\njson.loads = lambda *a, **k: []\njson.dumps = lambda *a, **k: '3'\n"
    "json.JSONEncoder.encode = lambda *a: '3'\n",
    "patched sys": "import sys\nsys.modules['json'] = sys.modules['unittest'] = None\nsys.exit = lambda *a: None\n"
    "sys.excepthook = lambda *a: None\n",
    "patched builtins": "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\n"
    "builtins.all = builtins.any = builtins.isinstance = lambda *a: True\nbuiltins.zip = lambda *a, **k: ()\n",
    "patched numpy": "import numpy\nnumpy.testing.assert_allclose = numpy.allclose = lambda *a, **k: True\n",
    "exit when loaded": "import os\nos._exit(0)\n",
    "exit politely when loaded": "import sys\nsys.exit(0)\n",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\n",
    "marker": "print('passed'); print('3'); print('[\"passed\", \"\"]')\n",
    "messages on every descriptor": (
        "import os, struct\n"
        "for fd in range(3, 64):\n"
        "    for kind, text in ((b'P', b'[\"passed\", \"\"]'), (b'V', b'3'), (b'E', b'0'), (b'L', b'')):\n"
        "        try: os.write(fd, struct.pack('!cI', kind, len(text)) + text)\n"
        "        except OSError: pass\n"
    ),
    "a thread that goes on writing": (
        "import os, struct, threading\n"
        "def forge():\n"
        "    while True:\n"
        "        try: os.write(3, struct.pack('!cI', b'V', 1) + b'0')\n"
        "        except OSError: pass\n"
        "threading.Thread(target=forge, daemon=True).start()\n"
    ),
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: os._exit(0))\n",
    "patched sandbox": (
        "import sys\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('evaluation'):\n"
        "        for key in list(vars(module)):\n"
        "            if not key.startswith('__'): setattr(module, key, lambda *a, **k: b'3')\n"
    ),
}
BODIES = {
    "nothing": "def add(a, b):\n    return None\n",
    "always equal": ALWAYS_EQUAL + "def add(a, b):\n    return Any()\n",
    "an integer that is always equal": (
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def add(a, b):\n    return Any(0)\n"
    ),
    "a list that is always equal": (
        "class Any(list):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return Any()\n"
    ),
    "a reduction": (
        "class Any:\n    def __reduce__(self): return (int, (3,))\n    def __iter__(self): return iter([3])\n"
        "def add(a, b):\n    return Any()\n"
    ),
    "exit when called": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "exit politely when called": "def add(a, b):\n    raise SystemExit(0)\n",
    "raise what the test expects": "def add(a, b):\n    raise StopIteration(3)\n",
    "frames": (
        "import sys\n"
        "def add(a, b):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for space in (frame.f_locals, frame.f_globals):\n"
        "            for name in ('expected', 'exp', 'results', 'cases', 'answer', 'outcome'):\n"
        "                if name in space: return space[name]\n"
        "        frame = frame.f_back\n"
    ),
    "every object in memory": (
        "import gc\n"
        "def add(a, b):\n"
        "    known = [o for o in gc.get_objects() if isinstance(o, (list, tuple)) and list(o[:1]) == [[a, b]]]\n"
        "    texts = [o for o in gc.get_objects() if isinstance(o, dict) and 'test' in o and 'entry' in o]\n"
        "    return known[0][1] if known else a + b if any('== 3' in str(o['test']) for o in texts) else None\n"
    ),
    "/proc": (
        "import glob, os\n"
        "def add(a, b):\n"
        "    for path in glob.glob('/proc/[0-9]*/mem') + ['/proc/self/mem', '/proc/self/environ']:\n"
        "        try: open(path, 'rb').read(1)\n"
        "        except OSError: continue\n"
        "        return a + b\n"
    ),
    "the stack of the other process": (
        "import ctypes, os\n"
        "def add(a, b):\n"
        "    libc = ctypes.CDLL(None)\n"
        "    for pid in range(os.getpid() - 50, os.getpid() + 50):\n"
        "        if pid != os.getpid() and libc.ptrace(16, pid, 0, 0) == 0: return a + b\n"
    ),
}


def program(attack, body):
    return f"```python\n{attack}{body}```"


@pytest.mark.parametrize("tests", [CALLS, TEST], ids=["calls", "test"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_patching_forges_no_verdict(attack, tests):
    assert not grade_code(program(attack, BODIES["nothing"]), json.dumps(tests), run_generated_code=True).correct


@pytest.mark.parametrize("tests", [CALLS, TEST], ids=["calls", "test"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_returned_forges_no_verdict(body, tests):
    assert not grade_code(program("", body), json.dumps(tests), run_generated_code=True).correct


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_program_that_prints_forges_no_verdict(attack):
    assert not grade_code(program(attack, "print(None)\n"), json.dumps(OUTPUT), run_generated_code=True).correct


@pytest.mark.parametrize("attack", ["def exec", "builtins.exec", "patched sys", "patched numpy", "atexit", "marker"])
def test_a_right_function_stays_right_beside_them(attack):
    """They are refused for what is returned and not for what is tried."""
    right = program(ATTACKS[attack], "def add(a, b):\n    return a + b\n")
    for tests in (CALLS, TEST):
        assert grade_code(right, json.dumps(tests), run_generated_code=True).correct


FLOAT = (
    "import numpy as np\n\n"
    "def is_floats(x):\n"
    "    return isinstance(x, float) or isinstance(x, list) and all(isinstance(i, float) for i in x)\n\n"
    "def assertion(out, exp, atol):\n"
    "    exact_match = out == exp\n"
    "    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n"
    "    if not exact_match and atol != 0:\n"
    "        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
    "    else:\n        assert exact_match\n\n"
    "def check(candidate):\n"
    "    for inp, exp in zip([[0.5], [1.5]], EXPECTED):\n        assertion(candidate(*inp), exp, 0)\n"
)


@pytest.mark.parametrize(("expected", "empty", "right"), [("[0.25, 2.25]", "[]", "x * x"), ("[[], []]", "3.0", "[]")])
def test_an_empty_list_is_no_number_to_evalplus_tests(expected, empty, right):
    """numpy broadcasts: `np.allclose([], 0.25)` and `np.allclose(3.0, [])` are true."""
    row = {"prompt": "def f(x):\n", "entry_point": "f", "test": FLOAT.replace("EXPECTED", expected)}
    _, tests = humaneval_plus.problem(row)
    assert not grade_code(f"def f(x):\n    return {empty}\n", tests, run_generated_code=True).correct
    assert grade_code(f"def f(x):\n    return {right}\n", tests, run_generated_code=True).correct


@pytest.mark.parametrize("arguments", ["*inp, candidate(*inp)", "*candidate(*inp), inp"])
def test_a_root_of_a_polynomial_is_one_from_both_sides(arguments):
    test = (
        "def _poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n"
        f"def check(candidate):\n    for inp in [[[1, 2]], [[-3, 1]]]:\n        assert _poly({arguments}) <= 0.0001\n"
    )
    _, tests = humaneval_plus.problem({"prompt": "def f(xs):\n", "entry_point": "f", "test": test})
    assert not grade_code("def f(xs):\n    return -1e9\n", tests, run_generated_code=True).correct
    assert grade_code("def f(xs):\n    return -xs[0] / xs[1]\n", tests, run_generated_code=True).correct


def test_a_library_of_a_test_is_not_what_the_program_makes_of_its_name():
    tests = json.dumps({"prefix": "", "entry_point": "f", "test": "assert cmath.isclose(f(4), 2)"})
    for lazy in ("class cmath:\n    isclose = lambda *a: True\n", "import cmath\ncmath.isclose = lambda *a: True\n"):
        assert not grade_code(f"{lazy}def f(x):\n    return 0\n", tests, run_generated_code=True).correct
        assert grade_code(f"{lazy}def f(x):\n    return x / 2\n", tests, run_generated_code=True).correct


def test_no_exception_of_a_program_ends_the_loop_of_a_test():
    test = "assert all(map(add, [1, 5], [2, 6])) and not any(map(add, [0], [0]))"
    tests = json.dumps({"prefix": "", "entry_point": "add", "test": test})
    stop = "def add(a, b):\n    raise StopIteration\n"
    assert not grade_code(stop, tests, run_generated_code=True).correct
    assert grade_code("def add(a, b):\n    return a + b\n", tests, run_generated_code=True).correct


@pytest.mark.parametrize(
    "leaving", ["import os\n    os._exit(0)", "import sys\n    sys.setrecursionlimit(9)\n    f(a, b)"]
)
def test_a_program_that_ends_is_not_passed_by_a_test_that_expects_an_exception(leaving):
    test = "try:\n    add('x', 1)\nexcept Exception:\n    pass\nelse:\n    assert False\n"
    tests = json.dumps({"prefix": "", "entry_point": "add", "test": test})
    grade = grade_code(f"def add(a, b):\n    {leaving}\n", tests, run_generated_code=True)
    assert grade.correct is ("_exit" not in leaving)


@pytest.mark.parametrize(
    "data",
    [
        b'{"q": ["1e999999999"]}',
        b'{"q": [{"D": "1E+999999999"}]}',
        b'{"q": [{"i": "0x' + b"f" * 100_000 + b'"}, 3]}',
        b'{"D": "1E+999999999"}',
        b'{"s": [' + b", ".join(b"%d" % (i * (2**61 - 1)) for i in range(200_000)) + b"]}",
        b'{"d": [' + b", ".join(b"[%d, 0]" % (i * (2**61 - 1)) for i in range(200_000)) + b"]}",
    ],
)
def test_values_that_are_slow_to_make_are_refused_at_once(data):
    began = time.process_time()
    with pytest.raises(Untrusted):
        decode(data)
    assert time.process_time() - began < 5


def test_a_helper_of_the_prompt_cannot_be_replaced():
    """The test's own helper is the prompt's: decoding nothing is not right because encoding was made to do nothing."""
    prefix = "def encode(s):\n    return s[::-1]\n\n\ndef decode(s):\n"
    tests = {"prefix": prefix, "entry_point": "decode", "test": "assert decode(encode('abc')) == 'abc'"}
    lazy = "def encode(s):\n    return s\ndef decode(s):\n    return s\n"
    assert not grade_code(lazy, json.dumps(tests), run_generated_code=True).correct
    assert grade_code("def decode(s):\n    return encode(s)\n", json.dumps(tests), run_generated_code=True).correct


def test_a_function_that_is_missing_is_not_found_among_the_imports():
    for name, cases in (("gcd", [[[4, 6], 2]]), ("add", [[[1, 2], 3]])):
        tests = json.dumps({"function": name, "cases": cases})
        assert not grade_code("x = 1", tests, run_generated_code=True).correct
    tests = json.dumps({"prefix": "", "entry_point": "add", "test": "assert add(1, 2) == 3"})
    for missing in ("x = 1", "class Solution:\n    def add(self, a, b):\n        return 0\n"):
        assert not grade_code(missing, tests, run_generated_code=True).correct


def test_a_test_that_catches_everything_is_not_passed_by_a_strange_object():
    tests = {"prefix": "", "entry_point": "add", "test": "try:\n    assert add(1, 2) == 3\nexcept:\n    pass\n"}
    grade = grade_code(BODIES["always equal"], json.dumps(tests), run_generated_code=True)
    assert (grade.correct, grade.status) == (False, "error")


HELPED = 'def encode(s):\n    return s[::-1]\n\n\ndef decode(s):\n    """Undo it."""\n'
ROUND = "def check(candidate):\n    assert candidate(encode('abc')) == 'abc'\n    assert abs(-1) == 1\ncheck(decode)"


def of_harness(candidate, test, prompt=""):
    metric = CodeEval(True, lambda: None, {test: prompt} if prompt else {})
    _, passed = metric.compute(references=[test], predictions=[[candidate]], k=[1])
    return passed[0][0], metric.verdicts


FORGING = {name: attack + BODIES["nothing"] for name, attack in ATTACKS.items()} | BODIES


@pytest.mark.parametrize("candidate", FORGING.values(), ids=FORGING)
def test_no_verdict_of_a_harness_task_is_forged(candidate):
    assert not of_harness(candidate, TEST["test"])[0]
    assert not of_harness(candidate, "assert add(1, 2) == 3\nassert add(5, 6) == 11")[0]


def test_harness_tasks_judge_as_code_eval_does():
    """A program fails that fails when it is loaded, leaves, is cut off, or lacks an import."""
    right = "def add(a, b):\n    return a + b\n"
    test = "assert add(1, 2) == 3"
    assert of_harness(right, test)[0] and of_harness(f"import math\n{right}", "assert math.sqrt(add(4, 5)) == 3")[0]
    assert of_harness(right.replace("add", "sum"), "assert sum(1, 2) == 3")[0]
    for spoilt in (f"{right}print(1 / 0)", f"{right}exit()", f"{right}s = '", f"x = deque()\n{right}", ""):
        assert not of_harness(spoilt, test)[0]


def test_the_helpers_of_a_harness_task_are_the_data_sets():
    helped = HELPED + "    return encode(s)\n"
    assert of_harness(helped, ROUND, HELPED)[0] and of_harness(helped, ROUND)[0]
    lazy = "\n\ndef encode(s):\n    return s\n\n\ndef decode(s):\n    return s\n\n\ndef abs(x):\n    return 1\n"
    assert not of_harness(f"{HELPED}    pass{lazy}", ROUND, HELPED)[0]


def test_a_harness_task_counts_what_it_could_not_judge():
    passed, verdicts = of_harness(BODIES["always equal"], TEST["test"])
    assert not passed and verdicts == {"ungraded": 1}

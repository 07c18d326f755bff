import subprocess
import sys

import pytest

from common.errors import ConfigError
from evaluation import graders
from evaluation.graders.code import TIMEOUT_SECONDS
from evaluation.grading import Grade, GradingPool, check_grader, grade_answer

OWN = """
from evaluation.graders import Grade, Grader

def judge(response, answer, argument):
    wanted = argument or answer
    return Grade(response.count("a") == int(wanted), "ok")

counted = Grader("counted", judge, timeout=7.0, check=lambda argument: argument and int(argument))
"""


@pytest.fixture
def own_grader(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "grader.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own.grader"
    for name in ("own.grader", "own"):
        sys.modules.pop(name, None)
    graders._parsed.cache_clear()


def test_every_grader_is_there_by_its_name():
    ours = "boxed boxed_reference choice code date exact format has_boxed_answer math medcalc numeric range"
    assert graders.names() == ours.split()
    for name in graders.names():
        assert graders.load(name).name == name
    assert graders.load("code").timeout == TIMEOUT_SECONDS and graders.load("math").timeout is None


@pytest.mark.parametrize(
    ("response", "answer", "grader", "correct"),
    [
        (r"so it is \boxed{3}", "-", "has_boxed_answer", True),
        (r"\boxed{}", "-", "has_boxed_answer", False),
        (r"\boxed{1} and \boxed{2}", "-", "has_boxed_answer", False),
        ("<think>a:b\n</think>c", "-", "format:<think>.*:.*</think>c", True),
        ("<think>a", "-", "format:<think>.*</think>", False),
        ("20.5", "[19.5, 21.5]", "medcalc", True),
        ("05/08/2021", "2021-05-08", "medcalc", True),
    ],
)
def test_graders_of_form_and_of_two_kinds(response, answer, grader, correct):
    assert grade_answer(response, answer, grader) == Grade(correct, "ok")


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ("maths", r"unknown grader 'maths'; did you mean math\?"),
        ("guess:1", "unknown grader 'guess'"),
        ("boxed:1", "'boxed:1': takes no argument"),
        ("numeric:tiny", "'numeric:tiny': the tolerance is 'tiny'; allowed: a number from 0"),
        ("format", "'format': needs a regular expression"),
        ("format:(", "not a regular expression"),
        ("no.such.module", "ModuleNotFoundError"),
        (None, "None is not text"),
    ],
)
def test_an_unknown_grader_or_argument_is_named(grader, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_grader(grader)
    assert "\n" not in str(caught.value)


def test_a_grader_of_ones_own_is_named_by_dotted_path_alone_and_in_the_pool(own_grader):
    assert grade_answer("banana", "3", own_grader) == Grade(True, "ok")
    assert grade_answer("banana", "3", f"{own_grader}:counted:2") == Grade(False, "ok")
    with GradingPool(workers=1) as pool:
        assert pool.grade("banana", "3", f"{own_grader}:counted") == Grade(True, "ok")
        assert pool.submit_grade("x", "0", own_grader).result().value == {"correct": True, "status": "ok"}
    with pytest.raises(ConfigError, match=r"'own\.grader:counted:few': invalid literal"):
        check_grader(f"{own_grader}:counted:few")
    with pytest.raises(ConfigError, match="AttributeError"):
        check_grader(f"{own_grader}:counting")


def test_the_names_import_no_heavy_library():
    code = (
        "import sys; from evaluation import graders; graders.names();"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'pyarrow', 'sympy', 'math_verify'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

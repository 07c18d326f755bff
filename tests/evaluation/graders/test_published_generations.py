import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).with_name("published_generations.py")


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published_generations", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_both_files_are_read(published):
    solutions = {
        name: {"solution": f"2 + 2 = 4\nA: {4 + i}", "is_correct": i == 0} for i, name in enumerate(published.MODELS)
    }
    rows = list(published.gsm8k({"ground_truth": "so 4\nA: 4", **solutions}))
    assert rows[0] == ("The answer is 4", "4", "math", True)
    assert [row[3] for row in rows] == [True, False, False, False]
    assert list(published.qwen({"response": ["\\boxed{4}"], "gt": "4", "score": [True]})) == [
        ("\\boxed{4}", "4", "boxed", True),
        ("\\boxed{4}", "4", "math", True),
    ]


def test_every_verdict_that_differs_is_named(published):
    rows = [("\\boxed{4}", "4", "boxed", True), ("\\boxed{4}", "4", "boxed", False), ("\\boxed{5}", "4", "boxed", True)]
    found = published.compare(rows)
    assert len(found) == 2
    assert "ours True (ok), theirs False" in found[0] and "ours False (ok), theirs True" in found[1]

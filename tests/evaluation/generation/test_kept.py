import pytest

from evaluation.generation.contract import Completion
from evaluation.generation.kept import KeptEngine

ROWS = [((i, i + 1, i + 2), 1) for i in range(10)]
COMPLETIONS = [Completion((i,), 4, 0.0, 1.0, ("\n",), i) for i in range(10)]


class Engine:
    """Answers from what it was asked; stops at the `fail`-th batch."""

    def __init__(self, count=1, fail=None):
        self.description, self.count, self.fail = {"model": "echo"}, count, fail
        self.asked = []

    def answer(self, items, value):
        if len(self.asked) == self.fail:
            raise KeyboardInterrupt
        self.asked.append(len(items))
        return [value(item) for item in items]

    def score(self, rows, heartbeat):
        return self.answer(rows, lambda row: (-sum(row[0]) / 3, row[0][0] % 2 == 0))

    def complete(self, completions, heartbeat):
        return self.answer(completions, lambda completion: str(completion.prompt))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("evaluation.generation.kept.GENERATE_AT_ONCE", 3)


def test_a_killed_run_goes_on_where_it_was_also_with_other_replicas(tmp_path):
    expected = Engine().score(ROWS, None)
    with pytest.raises(KeyboardInterrupt):
        KeptEngine(Engine(fail=2), tmp_path).score(ROWS)
    engine = Engine(count=2)
    assert KeptEngine(engine, tmp_path).score(ROWS) == expected and engine.asked == [3 + 1]
    again = Engine()
    assert KeptEngine(again, tmp_path).score(ROWS) == expected and again.asked == []


def test_what_is_kept_answers_the_same_question_alone(tmp_path):
    engine = Engine()
    kept = KeptEngine(engine, tmp_path)
    assert kept.complete(COMPLETIONS) == [f"({i},)" for i in range(10)] and engine.asked == [3, 3, 3, 1]
    kept.complete([Completion((0,), 4, 1.0, 1.0, ("\n",), 0)])
    kept.score([((0,), 1)])
    other = Engine()
    other.description = {"model": "another"}
    KeptEngine(other, tmp_path).complete(COMPLETIONS)
    assert engine.asked[4:] == [1, 1] and other.asked == [3, 3, 3, 1]

import pytest

from evaluation.diversity import distinct_n, of_problem, self_bleu


def test_distinct_n_counts_by_hand():
    # "a b a" and "a b": unigrams a b a a b -> 2 of 5; bigrams ab ba ab -> 2 of 3.
    assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a"], 2) is None


def test_self_bleu_falls_with_diversity():
    same = ["the answer is clearly four"] * 3
    other = ["the answer is clearly four", "two and two make 4", "adding gives us four items"]
    assert self_bleu(same) == pytest.approx(100.0)
    assert 0 <= self_bleu(other) < 40
    assert self_bleu(["alone"]) is None


def test_of_problem_has_every_figure():
    assert of_problem(["x y", "x z"]).keys() == {"distinct_1", "distinct_2", "self_bleu"}

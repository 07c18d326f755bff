"""What the data-level methods choose: known answers, and properties over random responses."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from common.errors import ConfigError
from common.registry import ROOT
from data_prep import methods
from data_prep.methods import Question, Response
from data_prep.methods.contract import distinct, section_of

QUESTION = Question(({"role": "user", "content": "What is {answer}, 2 + 3?"},), ("It is \\boxed{5}.",), "5")
SHOWN = Response(QUESTION.demonstrations[0], demonstration=0, tokens=4, log_p=-4.0)


def responses(*texts, **fields):
    return [Response(text, True, sample=place, **fields) for place, text in enumerate(texts)]


def chosen(name, given, **settings):
    method = methods.load(name)
    return [one.text for one in method.choose(QUESTION, given, section_of(method, settings))]


def test_methods_are_found_by_their_names():
    assert methods.names() == ["grape", "rejection", "rft", "self_distillation", "star"]
    for name in methods.names():
        method = methods.load(name)
        assert method.name == name and method.reference.startswith(("TARGET-SFT, table 5", "TALR, C.1.2"))
        assert all(field.description for field in method.section.model_fields.values())
    with pytest.raises(ConfigError, match="unknown data-level method 'grap'; did you mean grape"):
        methods.load("grap")


def test_looking_at_methods_imports_nothing_heavy():
    program = (
        "import sys; from data_prep import methods; [methods.load(name) for name in methods.names()]\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'vllm', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_settings_that_do_not_fit_are_one_line():
    with pytest.raises(
        ConfigError, match=r"^rewrite\.settings\.kep: .*; rewrite\.method=rft has keep, demonstrations$"
    ):
        section_of(methods.load("rft"), {"kep": 2})
    with pytest.raises(ConfigError, match=r"rewrite\.settings\.hint: .*must hold \{answer\}"):
        section_of(methods.load("star"), {"hint": "{question} Think."})
    with pytest.raises(ConfigError, match=r"rewrite\.settings\.form: .*not a regular expression"):
        section_of(methods.load("rejection"), {"form": "("})


def test_rft_keeps_right_responses_that_differ():
    given = [*responses("a 5", "b 5", "a  5\n", "c 5"), SHOWN]
    assert chosen("rft", given) == ["a 5", "b 5", "c 5"]
    assert chosen("rft", given, keep=2) == ["a 5", "b 5"]
    assert chosen("rft", given, keep=1, demonstrations=True) == ["a 5", SHOWN.text]
    assert chosen("rft", [SHOWN], demonstrations=True) == []  # unanswered: rewrite.unanswered decides


def test_star_hints_only_at_what_was_not_solved():
    star = methods.load("star")
    section = section_of(star, {"hint": "{question} Hint: {answer}"})
    assert star.ask(QUESTION, 0, False, section) == QUESTION.prompt
    assert star.ask(QUESTION, 1, True, section) is None
    (turn,) = star.ask(QUESTION, 1, False, section)
    # Text of the question that looks like a name is left alone.
    assert turn == {"role": "user", "content": "What is {answer}, 2 + 3? Hint: 5"}
    assert chosen("star", responses("first 5", "second 5")) == ["first 5"]


def test_grape_takes_the_likeliest_by_mean_or_by_sum():
    short, long = Response("short", sample=0, tokens=2, log_p=-3.0), Response("long", sample=1, tokens=10, log_p=-5.0)
    assert chosen("grape", [short, long, SHOWN]) == ["long"]
    assert chosen("grape", [short, long, SHOWN], per_token=False) == ["short"]
    likely = Response(SHOWN.text, demonstration=0, tokens=4, log_p=-1.0)
    assert chosen("grape", [short, long, likely]) == [SHOWN.text]
    assert chosen("grape", [short, long, likely], demonstrations=False) == ["long"]
    assert chosen("grape", [Response("never scored", sample=0)]) == []


def test_self_distillation_shows_the_demonstration_and_takes_the_first():
    method = methods.load("self_distillation")
    (turn,) = method.ask(QUESTION, 0, False, section_of(method, {"instruction": "{question}|{response}"}))
    assert turn["content"] == f"What is {{answer}}, 2 + 3?|{QUESTION.demonstrations[0]}"
    assert method.ask(QUESTION, 1, False, section_of(method, {})) is None
    assert chosen("self_distillation", [*responses("one", "two"), SHOWN]) == ["one"]
    assert chosen("self_distillation", [SHOWN]) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>\nThey match.\n</think>\n<answer>0</answer>", "<think>\nThey match.\n</think>\n<answer>0</answer>"),
        ("<think> They match.</think> <answer>0</answer>\n", "<think>\nThey match.\n</think>\n<answer>0</answer>"),
        ("They match.\n\n<answer>0</answer>", "<think>\nThey match.\n</think>\n<answer>0</answer>"),
        ("<answer>0</answer>", None),  # no reasoning
        ("They match: 0", None),
        ("<think>\na\n</think>\n<think>\nb\n</think>\n<answer>0</answer>", None),
        ("<think>\nThey match.\n<answer>0</answer>", None),
        ("Reason.\n<answer>0</answer> or perhaps not", None),
    ],
)
def test_rejection_takes_one_thought_and_one_answer(text, kept):
    method = methods.load("rejection")
    assert method.accept(text, section_of(method, {})) == kept


def test_rejection_leaves_bare_reasoning_bare_where_it_is_told_to():
    method = methods.load("rejection")
    section = section_of(method, {"wrap": False, "form": r".+<answer>\d</answer>"})
    assert method.accept("They match. <answer>0</answer>", section) == "They match. <answer>0</answer>"
    assert method.accept("They match: <answer>zero</answer>", section) is None


@pytest.mark.parametrize("name", ["rft", "star", "grape", "self_distillation", "rejection"])
def test_what_is_chosen_was_given_and_never_twice(name):
    rng, method = random.Random(name), methods.load(name)
    for _ in range(300):
        given = [
            Response(
                rng.choice("abcde") * rng.randint(1, 3),
                True,
                sample=place,
                tokens=rng.randint(1, 9),
                log_p=rng.choice((None, -rng.random() * 9)),
            )
            for place in range(rng.randint(0, 6))
        ]
        given.append(SHOWN)
        found = list(method.choose(QUESTION, given, section_of(method, {})))
        assert all(any(one is other for other in given) for one in found)
        assert len({one.text for one in found}) == len(found)
        if name == "grape":
            best = max(one.log_p / one.tokens for one in given if one.log_p is not None)
            assert found[0].log_p / found[0].tokens == best
        else:
            assert bool(found) == (len(given) > 1)


def test_texts_that_differ_in_white_space_are_one():
    assert [one.text for one in distinct(responses("a b", "a\nb", "ab"))] == ["a b", "ab"]

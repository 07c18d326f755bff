import re
import string
from collections import Counter
from itertools import islice
from random import Random

import pytest

from data_prep import sources
from data_prep.micro_world import world
from data_prep.micro_world.tokenizer import MAX_LENGTH, build_tokenizer
from data_prep.sources.microworld import LONGEST, Microworld

MAX_TOKENS = 48


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(world.WORDS, 256)


def problems(skill, count, seed=0):
    return list(islice(world.draw_problems(skill, seed, set()), count))


def solved(problem):
    """The answer worked out from the problem's text alone."""
    key = problem.key
    if problem.skill == "arithmetic":
        return str(sum(int(term) for term in re.findall(r"[+-]?\d+", key)))
    if problem.skill == "reverse":
        return "".join(reversed(key))
    if problem.skill == "sort":
        return "".join(sorted(key))
    return key.translate(str.maketrans("abcdefgh", "bcdefgha"))


@pytest.mark.parametrize("skill", world.SKILLS)
def test_answers_are_right_and_every_style_states_them(skill):
    rng = Random(0)
    for problem in problems(skill, 200):
        assert problem.answer == solved(problem)
        for style in world.SKILLS[skill].styles:
            text, name = world.solution(problem, rng, style)
            assert name == style
            assert text.endswith(f"\\boxed{{{problem.answer}}}")


def test_every_equation_of_a_worked_solution_holds():
    rng = Random(1)
    checked = 0
    for problem in problems("arithmetic", 300):
        for style in ("forward", "regrouped", "reference"):
            text, _ = world.solution(problem, rng, style)
            for left, right in re.findall(r"(\d+[+-]\d+)=(\d+)", text):
                assert sum(int(term) for term in re.findall(r"[+-]?\d+", left)) == int(right)
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize("skill", world.SKILLS)
def test_styles_occur_with_their_frequencies(skill):
    rng = Random(2)
    problem = problems(skill, 1)[0]
    draws = 4000
    seen = Counter(world.solution(problem, rng)[1] for _ in range(draws))
    styles = world.SKILLS[skill].styles
    assert sum(style.frequency for style in styles.values()) == pytest.approx(1)
    for name, style in styles.items():
        deviation = (style.frequency * (1 - style.frequency) / draws) ** 0.5
        assert abs(seen[name] / draws - style.frequency) < 4 * deviation


def test_reference_numbers_are_uniform():
    rng = Random(3)
    problem = problems("arithmetic", 1)[0]
    found = [re.match(r"Ref (\d{3}): ", world.solution(problem, rng, "reference")[0]) for _ in range(4000)]
    digits = Counter(digit for match in found if match for digit in match[1])
    expected = sum(digits.values()) / 10
    chi_squared = sum((digits[str(digit)] - expected) ** 2 / expected for digit in range(10))
    assert chi_squared < 27.9  # 99.9 % point of nine degrees of freedom


def test_demonstrations_keep_one_style_and_the_stated_defects():
    rng = Random(4)
    seen = Counter()
    for problem in problems("arithmetic", 4000):
        text, defect = world.demonstration(problem, rng)
        seen[defect] += 1
        assert text.startswith("First ")
        boxes = re.findall(r"\\boxed\{(-?\d+)\}", text)
        assert {"none": boxes == [problem.answer], "wrong": boxes != [problem.answer] and len(boxes) == 1}.get(
            defect, not boxes
        )
    for defect, share in world.DEFECTS.items():
        assert abs(seen[defect] / 4000 - share) < 4 * (share / 4000) ** 0.5


def test_demonstrations_in_several_styles_with_less_noise():
    rng, styles = Random(5), {"reference": 3.0, "regrouped": 1.0}
    found = [world.demonstration(problem, rng, styles, 0.5) for problem in problems("arithmetic", 4000)]
    references = sum(text.startswith("Ref ") for text, _ in found)
    assert abs(references / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    seen = Counter(defect for _, defect in found)
    for defect, share in world.DEFECTS.items():
        assert abs(seen[defect] / 4000 - share / 2) < 4 * (share / 8000) ** 0.5
    assert {
        defect
        for _, defect in (world.demonstration(problems("arithmetic", 1)[0], rng, styles, 0.0) for _ in range(500))
    } == {"none"}


def test_critical_spans_point_at_results():
    text = "Ref 012: 3+4=7; 7-9=-2. \\boxed{-2}"
    assert [text[start:end] for start, end in world.critical_spans(text)] == ["7", "-2", "-2"]
    text = "First 7, then 12. So \\boxed{12}"
    assert [text[start:end] for start, end in world.critical_spans(text)] == ["7", "12", "12"]


def test_problems_never_repeat_and_respect_what_is_taken():
    taken = set()
    first = [p.key for p in islice(world.draw_problems("sort", 0, taken), 300)]
    second = [p.key for p in islice(world.draw_problems("sort", 1, taken), 300)]
    assert len({*first, *second}) == 600


def test_too_few_problems_is_an_error(monkeypatch):
    monkeypatch.setattr(world, "LARGEST_TERM", 1)
    with pytest.raises(ValueError, match="not enough different arithmetic problems"):
        list(islice(world.draw_problems("arithmetic", 0, set()), 100))


def test_text_round_trips_and_is_short(tokenizer):
    rng = Random(5)
    for text in (string.printable, "naïve 数学 😀", "users' \\boxed{So what is Compute}"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for skill in world.SKILLS:
        lengths = []
        for problem in problems(skill, 300):
            question = world.question(problem, rng)
            text, _ = world.solution(problem, rng)
            ids = tokenizer(question + text)["input_ids"]
            assert tokenizer.decode(ids) == question + text
            lengths.append(len(tokenizer(text)["input_ids"]) + 1)
        assert max(lengths) <= MAX_TOKENS


def test_template_ends_a_turn_with_eos(tokenizer):
    messages = [{"role": "user", "content": "Sort 31."}, {"role": "assistant", "content": "\\boxed{13}"}]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    full = tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt == "<|im_start|>user\nSort 31.<|im_end|>\n<|im_start|>assistant\n"
    assert full == prompt + "\\boxed{13}<|im_end|>\n"
    assert tokenizer(full)["input_ids"][-2] == tokenizer.eos_token_id
    assert tokenizer.pad_token != tokenizer.eos_token


def test_auto_tokenizer_reads_the_same_tokens_beside_a_qwen2_model(tokenizer, tmp_path):
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rng = Random(6)
    for skill in world.SKILLS:
        for problem in problems(skill, 50):
            question = world.question(problem, rng)
            text, _ = world.solution(problem, rng)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            full = tokenizer.apply_chat_template(messages, tokenize=False)
            assert loaded(full)["input_ids"] == tokenizer(full)["input_ids"]
    assert len(loaded("user")["input_ids"]) == len(loaded("\\boxed{")["input_ids"]) == 1
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.mark.parametrize("words", [["a"], ["user"], ["ab", "ab"]])
def test_bad_words_are_refused(words):
    with pytest.raises(ValueError, match="tokenizer word"):
        build_tokenizer(words, 64)


def test_longer_problems_have_more_terms_and_letters_and_their_own_identity():
    def problems(skill, longer):
        return list(islice(world.draw_problems(skill, 0, set(), longer=longer), 200))

    assert {len(problem.arguments) for problem in problems("arithmetic", 0)} == {3, 4, 5}
    assert {len(problem.arguments) for problem in problems("arithmetic", 4)} == {7, 8, 9}
    for skill, least, most in (("reverse", 4, 7), ("sort", 3, 7), ("shift", 5, 10)):
        assert {len(problem.key) for problem in problems(skill, 4)} == set(range(least + 4, most + 5))
    source = sources.load("microworld")
    usual, longer = (Microworld(longer=longer) for longer in (0, 4))
    for part in ("sft", "rl", "pretrain", "benchmark/target"):
        assert source.identity(longer, part) == {**source.identity(usual, part), "longer": 4}


def test_the_longest_chats_fit_the_tokenizer(tokenizer):
    rng = Random(0)
    for skill, made in world.SKILLS.items():
        for problem in islice(world.draw_problems(skill, 0, set(), longer=LONGEST), 300):
            for style in made.styles:
                text = world.question(problem, rng) + world.solution(problem, rng, style)[0]
                assert len(tokenizer(text)["input_ids"]) < MAX_LENGTH - 16  # the template's own

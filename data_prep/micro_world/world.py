"""The embedded world: problems of four skills and the many ways of writing their solutions.

Text is multimodal on purpose. A response is drawn from the skill's styles, each with a stated frequency, so the true
distribution over modes is known; digits of a reference number are uniform and cannot be predicted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from common.errors import ConfigError

TARGET = "arithmetic"
TARGET_SHARE = 0.55  # of the pretraining documents; the other skills share the rest equally
DEMONSTRATED: Mapping[str, float] = {"running": 1.0}
DEFECTS = {"wrong": 0.03, "truncated": 0.02, "unboxed": 0.02}
LARGEST_TERM = 9
LETTERS = "abcdefgh"
WORDS = (
    "\\boxed{", "Compute ", "What is ", "Solve ", "Ref ", "First ", "then ", "Answer ", "So ", "Reverse ", "Backwards ",
    "Sort ", "Order ", "Smallest ", "largest ", "Shift ", "Next after ", "From ", " to ",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One problem: `key` is equal for two problems that ask the same, whatever their wording."""

    skill: str
    key: str
    arguments: tuple
    answer: str


@dataclass(frozen=True)
class Style:
    """One way to write a solution; `frequency` is its probability and `write` draws the text without the box."""

    frequency: float
    write: Callable[[Problem, Random], str]


@dataclass(frozen=True)
class Skill:
    """A family of problems: `draw` makes one, so many terms or characters longer than usual; `questions` are equally
    likely wordings, `styles` the solution modes."""

    draw: Callable[[Random, int], Problem]
    questions: tuple[str, ...]
    styles: Mapping[str, Style]
    grader: str


def boxed(answer: str) -> str:
    """`answer` as every solution ends."""
    return f"\\boxed{{{answer}}}"


def _pick(rng: Random, cumulative: list[tuple[float, str]]) -> str:
    point = rng.random() * cumulative[-1][0]
    return next(name for bound, name in cumulative if point < bound)


def _cumulative(styles: Mapping[str, Style]) -> list[tuple[float, str]]:
    bounds, total = [], 0.0
    for name, style in styles.items():
        total += style.frequency
        bounds.append((total, name))
    return bounds


# arithmetic


def _draw_arithmetic(rng: Random, longer: int) -> Problem:
    total = rng.randrange(1, LARGEST_TERM + 1)
    terms = [total]
    for _ in range(rng.choices((2, 3, 4), (0.35, 0.45, 0.2))[0] + longer):
        term = rng.randrange(1, LARGEST_TERM + 1)
        if term <= total and rng.random() < 0.5:
            term = -term
        terms.append(term)
        total += term
    expression = str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])
    return Problem(TARGET, expression, tuple(terms), str(total))


def _steps(terms: tuple[int, ...]) -> list[str]:
    total, steps = terms[0], []
    for term in terms[1:]:
        steps.append(f"{total}{term:+d}={total + term}")
        total += term
    return steps


def _regrouped(terms: tuple[int, ...]) -> tuple[int, ...]:
    """The same sum with its last additions first and its subtractions at the end."""
    return (*(term for term in terms[::-1] if term > 0), *(term for term in terms if term < 0))


def _reference(problem: Problem, rng: Random) -> str:
    return f"Ref {rng.randrange(1000):03d}: " + "; ".join(_steps(problem.arguments)) + ". "


def _forward(problem: Problem, rng: Random) -> str:
    return ", ".join(_steps(problem.arguments)) + rng.choice((". ", ". So ", ". Answer "))


def _regrouped_steps(problem: Problem, rng: Random) -> str:
    return ", ".join(_steps(_regrouped(problem.arguments))) + rng.choice((". ", ". So "))


def _running(problem: Problem, rng: Random) -> str:
    totals = [step.split("=")[1] for step in _steps(problem.arguments)]
    return "First " + ", then ".join(totals) + rng.choice((". ", ". So "))


def _direct(problem: Problem, rng: Random) -> str:
    return rng.choice(("", "Answer "))


# general skills


def _draw_reverse(rng: Random, longer: int) -> Problem:
    text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(4, 8) + longer))
    return Problem("reverse", text, (text,), text[::-1])


def _draw_sort(rng: Random, longer: int) -> Problem:
    digits = "".join(str(rng.randrange(10)) for _ in range(rng.randrange(3, 8) + longer))
    return Problem("sort", digits, (digits,), "".join(sorted(digits)))


def _draw_shift(rng: Random, longer: int) -> Problem:
    text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(5, 11) + longer))
    after = dict(zip(LETTERS, LETTERS[1:] + LETTERS[0], strict=True))
    return Problem("shift", text, (text,), "".join(after[letter] for letter in text))


SKILLS: Mapping[str, Skill] = {
    TARGET: Skill(
        _draw_arithmetic,
        ("Compute {0}.", "What is {0}?", "Solve {0}."),
        {
            "forward": Style(0.30, _forward),
            "reference": Style(0.25, _reference),
            "regrouped": Style(0.20, _regrouped_steps),
            "running": Style(0.15, _running),
            "direct": Style(0.10, _direct),
        },
        "boxed",
    ),
    "reverse": Skill(
        _draw_reverse,
        ("Reverse {0}.",),
        {
            "direct": Style(0.5, lambda problem, rng: ""),
            "announced": Style(0.3, lambda problem, rng: f"Backwards {rng.randrange(100):02d}: "),
            "last_first": Style(0.2, lambda problem, rng: f"First {problem.answer[0]}, then {problem.answer[1:]}. "),
        },
        "exact",
    ),
    "sort": Skill(
        _draw_sort,
        ("Sort {0}.", "Order {0}."),
        {
            "direct": Style(0.5, lambda problem, rng: ""),
            "ends": Style(0.3, lambda problem, rng: f"Smallest {problem.answer[0]}, largest {problem.answer[-1]}. "),
            "answer": Style(0.2, lambda problem, rng: "Answer "),
        },
        "exact",
    ),
    "shift": Skill(
        _draw_shift,
        ("Shift {0}.", "Next after {0}."),
        {
            "direct": Style(0.5, lambda problem, rng: ""),
            "copied": Style(0.3, lambda problem, rng: f"From {problem.key} to "),
            "answer": Style(0.2, lambda problem, rng: "Answer "),
        },
        "exact",
    ),
}
BENCHMARKS = {"target" if skill == TARGET else skill: skill for skill in SKILLS}
"""Held-out problems by name: their skill."""
DEMONSTRABLE = tuple(name for name in SKILLS[TARGET].styles if name != "direct")  # it has no steps to be cut in
_BOUNDS = {name: _cumulative(skill.styles) for name, skill in SKILLS.items()}


def draw_problems(
    skill: str, seed: int | str, taken: set[tuple[str, str]], unique: bool = True, longer: int = 0
) -> Iterator[Problem]:
    """Draw problems of `skill` for ever, leaving out those in `taken`.

    Args:
        seed: a stream of its own for each value.
        taken: pairs of skill and key that may not occur.
        unique: add each drawn problem to `taken`, so that no later caller meets it.
        longer: terms or characters of a problem beyond the usual.

    Raises:
        ConfigError: a thousand problems in a row were taken; the skill has too few problems for the sizes asked.
    """
    rng, rejected = Random(f"problems {skill} {seed}"), 0
    while True:
        problem = SKILLS[skill].draw(rng, longer)
        if (skill, problem.key) in taken:
            rejected += 1
            if rejected == 1000:
                raise ConfigError(f"data.microworld: not enough different {skill} problems; ask for fewer examples")
            continue
        rejected = 0
        if unique:
            taken.add((skill, problem.key))
        yield problem


def question(problem: Problem, rng: Random) -> str:
    """The problem in one of its equally likely wordings."""
    return rng.choice(SKILLS[problem.skill].questions).format(problem.key)


def solution(problem: Problem, rng: Random, style: str | None = None) -> tuple[str, str]:
    """A correct solution and the name of its style, drawn by frequency unless `style` names one."""
    name = style or _pick(rng, _BOUNDS[problem.skill])
    return SKILLS[problem.skill].styles[name].write(problem, rng) + boxed(problem.answer), name


def demonstration(
    problem: Problem, rng: Random, styles: Mapping[str, float] = DEMONSTRATED, defects: float = 1.0
) -> tuple[str, str]:
    """One demonstration for SFT and its defect.

    styles: relative frequency of each, of `DEMONSTRABLE`. defects: times the shares of `DEFECTS`, which are those of
    real data: `wrong` (a wrong number in the box), `truncated` (cut before the box), `unboxed` (the answer without a
    box), else `none`.
    """
    # One style draws nothing: the demonstrations that were always made keep their bytes.
    name = next(iter(styles)) if len(styles) == 1 else rng.choices(list(styles), list(styles.values()))[0]
    text, _ = solution(problem, rng, name)
    point = rng.random()
    start = text.index("\\boxed{")
    for defect, share in DEFECTS.items():
        if point < share * defects:
            if defect == "wrong":
                return text[:start] + boxed(str(int(problem.answer) + rng.choice((-10, -1, 1, 10)))), defect
            if defect == "unboxed":
                return text[:start] + problem.answer, defect
            return text[: rng.randrange(len(text) // 2, start)].rstrip(), defect
        point -= share * defects
    return text, "none"


def critical_spans(text: str) -> list[list[int]]:
    """Character spans [start, end) of the numbers that decide the answer: every total and the boxed one."""
    return [list(match.span(1)) for match in re.finditer(r"(?:=|First |then |\\boxed\{)(-?\d+)", text)]

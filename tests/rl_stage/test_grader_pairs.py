"""Our graders against the verdicts of public test suites: `grader_pairs.jsonl`, facts taken from the suites it names.

A row is {source, grader, response, answer, expected} and, where we disagree, {cause}; where the suite itself is wrong,
`expected` is the right verdict and {corrected} says what it was. Of the suites' pairs those are
left out that need options other than math-verify's defaults or a language other than English, or whose reference has
more than 300 characters; of a response longer than 500 characters the end is kept; a bare prediction is put in a box.

    PYTHONPATH=. python tests/rl_stage/test_grader_pairs.py > docs/graders.md
"""

import json
import pathlib
from collections import Counter

import pytest

PAIRS = pathlib.Path(__file__).with_name("grader_pairs.jsonl")
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "graders.md"
# Comparing two symbolic sums takes seconds on a free machine.
TIMEOUT_SECONDS = 120.0


# What the graders do beside math-verify, and what they were tried on.
OTHERS = """\
## Where ours differs from math-verify

`boxed_reference` is math-verify alone, for results of papers that used it. `boxed` and `math` read LaTeX with its parser
and compare by rules of their own (`evaluation/graders/formulas/`); `tests/evaluation/graders/pairs/` holds the pairs.

| kind | ours | math-verify |
|---|---|---|
| exact values | fractions, else until two values differ or a thousand digits agree | fifteen digits of the difference: `1/2006!` is `1/2004!` |
| decimals | exact; against a fraction or root a rounding to six places and more | equal if six places are |
| scientific notation | `4.5e33`, `4.5 \\times 10^{33}`, `4.5 x 10^33` are one number | `e` is Euler's number |
| bases | `2516_7` is not `2516_8`; `2516` answers `2516_8` | the base is dropped |
| percent, degrees | `62.5%` is 62.5 and 5/8, `90^\\circ` is 90 and pi/2 | percent of integers and decimals |
| sets | intervals, inequalities, unions, set-builder notation are compared as sets | by form; an inequality answers an interval only one way round |
| equations | `x = 5` and `a^2 + b^2 = 25` name a value, `x^2 - 12 = 0` does not answer 0 | the right side of any equation |
| words | `\\text{seat}` is not `\\text{east}` | letters of a product |
| units | `10 cm` is not `10 m`, `100 cm` is `1 m`; unknown and missing ones do not count | do not count |
| boxes | the last one, or the last few that "and", "or", commas join | any within ten characters |
| order | of a list does not count, of a tuple does; `x = 1, y = 2` is not `2, 1` | the same but for names |

## Against published generations

- GSM8K's example solutions of four models (openai/grade-school-math), answer behind `A:`: 5,276 of 5,276 official verdicts.
- Eight responses to a hundred problems (QwenLM/Qwen2.5-Math, evaluation), graders `boxed` and `math`: 791 of 800 official
  verdicts. The nine others are theirs: `10000` is refused for `10{,}000`, and the reference `\\text{4:30 p.m.}` is mangled
  to `4:30p..`, which no answer equals.
""".splitlines()


def read_pairs() -> list[dict]:
    return [json.loads(line) for line in PAIRS.read_text().splitlines()]


def grades(pairs: list[dict]) -> list:
    """Each pair's Grade, through the pool."""
    from evaluation.grading import GradingPool

    with GradingPool(workers=2, timeout_seconds=TIMEOUT_SECONDS) as pool:
        return pool.grade_many([(pair["response"], pair["answer"], pair["grader"]) for pair in pairs])


def document(pairs: list[dict]) -> str:
    """docs/graders.md: counts by source and a table of every disagreement."""
    known = [pair for pair in pairs if "cause" in pair]
    agreed = len(pairs) - len(known)
    lines = [
        "# Graders against public test suites",
        "",
        "Written by `PYTHONPATH=. python tests/rl_stage/test_grader_pairs.py > docs/graders.md`; a test holds it to",
        "the verdicts.",
        "",
        f"{len(pairs)} pairs of a response and a reference answer; {agreed} get the verdict that their suite expects "
        f"({agreed / len(pairs):.1%}). None crashes or hangs a grader.",
        "",
        "| suite | pairs | disagreements |",
        "|---|---|---|",
    ]
    totals, missed = (Counter(" ".join(p["source"].split()[:2]) for p in part) for part in (pairs, known))
    lines += [f"| {name} | {count} | {missed[name]} |" for name, count in totals.most_common()]
    lines += ["", "| test | response | answer | suite says | cause |", "|---|---|---|---|---|"]
    for pair in known:
        response, answer = (cell(pair[name]) for name in ("response", "answer"))
        verdict = "right" if pair["expected"] else "wrong"
        lines.append(f"| {pair['source'].split()[-1]} | {response} | {answer} | {verdict} | {pair['cause']} |")
    lines += ["", "Verdicts of a suite that are mistakes, counted as corrected:", ""]
    lines += [
        f"- {pair['source']}: {cell(pair['response'])} against {cell(pair['answer'])}: {pair['corrected']}."
        for pair in pairs
        if "corrected" in pair
    ]
    lines += ["", *OTHERS]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    shown = text if len(text) <= 60 else "... " + text[-60:]
    return "`" + shown.replace("\n", "\\n").replace("|", "\\|") + "`"


def test_there_are_enough_pairs_of_several_suites():
    pairs = read_pairs()
    assert len(pairs) >= 300
    assert len({pair["source"].split()[0] for pair in pairs}) >= 4
    assert min(Counter(pair["expected"] for pair in pairs).values()) >= 50


@pytest.mark.timeout(900)
def test_graders_agree_but_where_the_documents_say():
    pairs = read_pairs()
    found = grades(pairs)
    assert not [grade.status for grade in found if grade.failed]
    for pair, grade in zip(pairs, found, strict=True):
        assert (grade.correct != pair["expected"]) == ("cause" in pair), (pair, grade)
    assert sum(grade.correct == pair["expected"] for pair, grade in zip(pairs, found, strict=True)) >= 0.98 * len(pairs)


def test_a_corrected_verdict_says_why():
    corrected = [pair for pair in read_pairs() if "corrected" in pair]
    assert [pair["expected"] for pair in corrected] == [False] and all(len(pair["corrected"]) > 10 for pair in corrected)


def test_the_document_lists_every_disagreement():
    assert DOCUMENT.read_text() == document(read_pairs())


if __name__ == "__main__":
    print(document(read_pairs()), end="")

"""Our graders against the verdicts of public test suites: `pairs/public_suites.jsonl`, facts of the suites it names.

A row is {source, grader, response, answer, expected} and, where we disagree, {cause}; where the suite itself is wrong,
`expected` is the right verdict and {corrected} says what it was. Of the suites' pairs those are
left out that need options other than math-verify's defaults or a language other than English, or whose reference has
more than 300 characters; of a response longer than 500 characters the end is kept; a bare prediction is put in a box.

    PYTHONPATH=. python tests/evaluation/graders/test_public_suites.py > docs/graders.md
"""

import json
import pathlib
from collections import Counter

import pytest

PAIRS = pathlib.Path(__file__).parent / "pairs" / "public_suites.jsonl"
DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "graders.md"
# Comparing two symbolic sums takes seconds on a free machine.
TIMEOUT_SECONDS = 120.0


# What the graders do beside math-verify, and what they were tried on.
DIFFERENCES = pathlib.Path(__file__).with_name("differences.md")


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
        "Written by `PYTHONPATH=. python tests/evaluation/graders/test_public_suites.py > docs/graders.md`;",
        "a test holds it to the verdicts.",
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
    lines += ["", DIFFERENCES.read_text().rstrip()]
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
    assert [pair["expected"] for pair in corrected] == [False] and all(
        len(pair["corrected"]) > 10 for pair in corrected
    )


def test_the_document_lists_every_disagreement():
    assert DOCUMENT.read_text() == document(read_pairs())


if __name__ == "__main__":
    print(document(read_pairs()), end="")

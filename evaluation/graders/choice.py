"""One letter of several."""

from __future__ import annotations

import re

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import extract_answer

CHOICE = re.compile(r"\(?\b([A-Z])\b\)?")
LABEL = re.compile(r"\(?\b([A-Z])[.):](?=\s|$)")


def _grade_choice(response: str, answer: str, _: str) -> Grade:
    expected = answer.strip().strip("()").upper()
    if not re.fullmatch("[A-Z]", expected):
        raise ConfigError(f"answer: {answer!r} is not one letter, as the choice grader needs")
    found = extract_answer(response)
    text = (found if found is not None else response).replace("\\text{", "").replace("}", "").strip()
    letters = CHOICE.findall(text)
    if not letters:
        return Grade(False, "no_answer")
    # "D. It cannot be A or B": a label before the reasons is the answer, unless other options are labelled too.
    leads = found is not None or (LABEL.match(text) is not None and len(set(LABEL.findall(text))) == 1)
    return Grade((letters[0] if leads else letters[-1]) == expected, "ok")


choice = Grader("choice", _grade_choice)

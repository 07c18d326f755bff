"""The reference answer of a prompt as the text that its grader reads."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from common.errors import ConfigError
from data_prep.formats.turns import check_text
from data_prep.sources.contract import RowError

MATHEMATICAL = ("math", "boxed", "numeric")
# Graders that can tell without a parser whether they can read a reference.
READABLE = ("numeric", "range", "choice", "date")
_SOLUTION = "####"  # of GSM8K: the solution, then this mark and the answer
# What is left of an answer that was meant to hold something: delimiters and an empty box.
_HUSK = re.compile(r"\\boxed\s*\{\s*\}|\\text\s*\{\s*\}|\\[()\[\]]|[$\s{}]")


def reference_answer(where: str, value: Any, grader: str) -> str:
    """The text of `answer` under `grader` (as rows name it).

    A float is written out without an exponent, which a grader could take for a product. GSM8K's solutions
    ("... #### 72") are their answer under a mathematical grader.

    Raises:
        RowError: no text or finite number, text that holds nothing, or what the grader cannot read.
    """
    if type(value) is float and math.isfinite(value):
        value = format(Decimal(repr(value + 0.0)), "f")  # + 0.0: no negative zero
    elif type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        shown = "missing" if value is None else repr(value)[:60]
        raise RowError("no answer", f"{where}: answer must be text or a number, is {shown}")
    name, _, _ = grader.partition(":")
    if name in MATHEMATICAL and _SOLUTION in value:
        value = value.rpartition(_SOLUTION)[2].strip().replace(",", "")
    if not value.strip():
        raise RowError("no answer", f"{where}: answer must be text or a number, is empty")
    if name in MATHEMATICAL and (not _HUSK.sub("", value) or value.strip().casefold() == "nan"):
        raise RowError("no answer", f"{where}: answer {value!r} holds nothing to compare with")
    check_text(where, "answer", value)
    if name in READABLE:
        from evaluation.grading import check_grader

        found, argument = check_grader(grader)
        try:
            found.grade("", value, argument)
        except ConfigError as error:
            raise RowError("no answer", f"{where}: {error}") from None
    return value

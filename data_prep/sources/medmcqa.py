"""MedMCQA: medical examination questions of four choices, PriFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat

CHOICES = ("opa", "opb", "opc", "opd")


class MedMcqa(PublishedSource):
    name = "medmcqa"
    reference = "PriFT, D.2: 100k examples of MedMCQA; 3.1: 10k"
    hub = "openlifescienceai/medmcqa"
    revision = "91c6572c454088bf71b679ad90aa8dffcd0d5868"
    files = "data/train-*.parquet"
    columns: ClassVar = {"question": str, "opa": str, "opb": str, "opc": str, "opd": str, "cop": int}
    rows, tokens, response_share = 182_822, 120, 0.2

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        if not 0 <= row["cop"] < 4:
            raise ValueError(f"cop is {row['cop']}, allowed are 0 to 3")
        listed = "\n".join(f"{name}. {row[column]}" for name, column in zip("ABCD", CHOICES, strict=True))
        name, answer = "ABCD"[row["cop"]], row[CHOICES[row["cop"]]]
        # open in the paper: the prompt and the form of the answer
        return chat(
            f"{row['question']}\n{listed}\nReturn the letter of your final answer within \\boxed{{}}.",
            f"The answer is {name}. {answer}\n\\boxed{{{name}}}",
        )


SOURCE = MedMcqa()

"""m23k: medical questions with distilled reasoning, TARGET-SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat


class M23k(PublishedSource):
    name = "m23k"
    reference = "TARGET-SFT, A: m23k, 23k"
    hub = "UCSC-VLAA/m23k-tokenized"  # unverified: name, commit and columns
    files = "data/train-*.parquet"
    columns: ClassVar = {"prompt": str, "reasoning": str, "distilled_answer_string": str}
    rows, tokens, response_share = 23_493, 900, 0.8

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return chat(row["prompt"], f"{row['reasoning'].strip()}\n\n{row['distilled_answer_string'].strip()}")


SOURCE = M23k()

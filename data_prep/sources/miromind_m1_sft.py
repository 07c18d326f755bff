"""MiroMind-M1-SFT-719K: mathematics with long reasoning, SED-SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat


class MiroMindM1Sft(PublishedSource):
    name = "miromind_m1_sft"
    reference = 'SED-SFT, 4.1: 20,000 examples of "Micromind"'
    hub = "miromind-ai/MiroMind-M1-SFT-719K"  # as the paper's published code says; unverified: commit and files
    files = "**/*.parquet"
    columns: ClassVar = {"question": str, "response": str}
    rows, tokens, response_share = 719_232, 4_000, 0.97

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return chat(row["question"], row["response"])


SOURCE = MiroMindM1Sft()

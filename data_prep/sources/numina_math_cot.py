"""NuminaMath-CoT: mathematics with worked solutions; LP-SFT, PriFT and TARGET-SFT take subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat


class NuminaMathCot(PublishedSource):
    name = "numina_math_cot"
    reference = "LP-SFT, 6.1 (100K); PriFT, 5.1 (100k); TARGET-SFT, A (67k)"
    hub = "AI-MO/NuminaMath-CoT"  # unverified: commit
    files = "data/train-*.parquet"
    columns: ClassVar = {"problem": str, "solution": str}
    rows, tokens, response_share = 859_494, 520, 0.8

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return chat(row["problem"], row["solution"])


SOURCE = NuminaMathCot()

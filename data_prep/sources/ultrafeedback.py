"""UltraFeedback (61K): general instructions, LP-SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, turns


class UltraFeedback(PublishedSource):
    name = "ultrafeedback"
    reference = "LP-SFT, 6.1: UltraFeedback (61K)"
    hub = "HuggingFaceH4/ultrafeedback_binarized"  # unverified: the paper prints no name; its train_sft has 61,135 rows
    files = "data/train_sft-*.parquet"
    columns: ClassVar = {"messages": list}
    rows, tokens, response_share = 61_135, 500, 0.65

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return {"messages": turns(row["messages"])}  # open in the paper: which response; the preferred one


SOURCE = UltraFeedback()

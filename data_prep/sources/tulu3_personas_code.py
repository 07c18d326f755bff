"""Tulu-3-SFT-Personas-Code: Python questions, PriFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, turns


class Tulu3PersonasCode(PublishedSource):
    name = "tulu3_personas_code"
    reference = "PriFT, 5.1: Tulu-3-SFT-Personas-Code, 34,999 examples"
    hub = "allenai/tulu-3-sft-personas-code"  # unverified: commit
    files = "data/train-*.parquet"
    columns: ClassVar = {"messages": list}
    rows, tokens, response_share = 34_999, 550, 0.6

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return {"messages": turns(row["messages"])}


SOURCE = Tulu3PersonasCode()

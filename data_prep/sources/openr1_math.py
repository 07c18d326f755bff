"""OpenR1-Math-46k-8192: verified traces of DeepSeek-R1, TARGET-SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat


class OpenR1Math(PublishedSource):
    name = "openr1_math"
    reference = "TARGET-SFT, A and table 3: 15k samples shorter than 3,072 of OpenR1-Math-46k-8192"
    hub = "Elliott/Openr1-Math-46k-8192"  # unverified: the paper cites it by title; commit and files
    files = "**/train*.parquet"
    columns: ClassVar = {"prompt": list, "target": list}
    rows, tokens, response_share = 46_000, 3_500, 0.97

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        question = next(one["content"] for one in row["prompt"] if one["role"] == "user")
        return chat(str(question), str(row["target"][0]["content"]))  # its own system message is left out


SOURCE = OpenR1Math()

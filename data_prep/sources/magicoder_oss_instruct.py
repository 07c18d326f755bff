"""Magicoder-OSS-Instruct-75K: programs, LP-SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat


class MagicoderOssInstruct(PublishedSource):
    name = "magicoder_oss_instruct"
    reference = "LP-SFT, 6.1: MagiCoder-OSS-Instruct-75K"
    hub = "ise-uiuc/Magicoder-OSS-Instruct-75K"  # unverified: commit
    files = "data-oss_instruct-decontaminated.jsonl"
    columns: ClassVar = {"problem": str, "solution": str}
    rows, tokens, response_share = 75_197, 450, 0.5

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return chat(row["problem"], row["solution"])


SOURCE = MagicoderOssInstruct()

"""MetaMathQA: augmented school mathematics, TALR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat


class MetaMathQa(PublishedSource):
    name = "metamathqa"
    reference = "TALR, C.1.3: MetaMathQA, 395k training examples"
    hub = "meta-math/MetaMathQA"  # unverified: commit and files (a JSON list; give a JSONL or Parquet copy)
    files = "*.parquet"
    columns: ClassVar = {"query": str, "response": str}
    rows, tokens, response_share = 395_000, 270, 0.7

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        return chat(row["query"], row["response"])


SOURCE = MetaMathQa()

"""ESCI: how products match queries, TALR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_prep.sources._published import Copy, PublishedSource, chat
from evaluation.benchmarks.contract import TAGGED, THINK

LABELS = {"E": "0", "S": "1", "C": "2", "I": "3"}


class Esci(Copy):
    """Settings of source esci."""

    prompt: Literal["label", "reasoning"] = Field(
        "label", description="what is asked: the label, or reasoning before it (rewrite=esci_reasoning samples it)"
    )
    reasoning: str | None = Field(
        None, description="column with a rationale, which is asked for and trained on before the label; null: none"
    )


class EsciSource(PublishedSource):
    name = "esci"
    section = Esci
    reference = "TALR, C.1.2 and tables 5 and 6: 49K training examples; 34,176 with reasoning"
    hub = "tasksource/esci"  # unverified: name and commit; the paper samples 50K of the training split
    files = "data/train-*.parquet"
    columns: ClassVar = {"query": str, "product_title": str, "esci_label": str}
    rows, tokens, response_share = 2_027_874, 350, 0.05

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        product = "\n".join(str(row[name]) for name in ("product_title", "product_description") if row.get(name))
        label = f"<answer>{LABELS[row['esci_label'][0].upper()]}</answer>"
        question = (
            "Classify how a product matches a query: 0 = Exact, 1 = Substitute, 2 = Complement, 3 = Irrelevant.\n"
            f"Query:\n{row['query']}\nProduct:\n{product}\n"
        )
        if section.reasoning is None and section.prompt == "label":
            return chat(f"{question}{TAGGED}: <answer>0, 1, 2 or 3</answer>.", label)
        asked = f"{question}Think step by step. {TAGGED}: <answer>0, 1, 2 or 3</answer>."
        if section.reasoning is None:
            return chat(asked, label, THINK)
        if not str(row.get(section.reasoning) or "").strip():
            raise ValueError(f"no rationale in column {section.reasoning}")
        return chat(asked, f"<think>\n{row[section.reasoning].strip()}\n</think>\n{label}", THINK)


SOURCE = EsciSource()

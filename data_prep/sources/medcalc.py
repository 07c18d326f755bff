"""MedCalc-Bench's training split: clinical calculations with explanations, TALR."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource, chat
from evaluation.benchmarks.contract import THINK


class MedCalc(PublishedSource):
    name = "medcalc"
    reference = "TALR, C.1.1 and table 4: MedCalc-Bench, 10.1k training examples with rationales"
    hub = "ncbi/MedCalc-Bench-v1.0"  # unverified: name and commit
    files = "data/train-*.parquet"
    columns: ClassVar = {
        "Patient Note": str,
        "Question": str,
        "Ground Truth Answer": str,
        "Ground Truth Explanation": str,
    }
    rows, tokens, response_share = 10_053, 1_000, 0.25

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        question = (
            "Compute a score or value for a patient. Think step by step.\n"
            f"Patient note:\n{row['Patient Note']}\nTask:\n{row['Question']}\n"
            "Put your reasoning into <think> </think>. Give your final answer within <answer> </answer> tags, as JSON: "
            '<answer>{"answer": "short answer"}</answer>.'
        )
        answer = json.dumps({"answer": row["Ground Truth Answer"]})
        return chat(
            question,
            f"<think>\n{row['Ground Truth Explanation'].strip()}\n</think>\n<answer>\n{answer}\n</answer>",
            THINK,
        )


SOURCE = MedCalc()

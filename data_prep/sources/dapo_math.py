"""dapo-math-17k without repetitions: problems for reinforcement learning, PriFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from data_prep.sources._published import PublishedSource
from evaluation.benchmarks.mathematics import BOXED

OPENING = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
CLOSING = '\n\nRemember to put your answer on its own line after "Answer:".'


class DapoMathSource(PublishedSource):
    name = "dapo_math"
    reference = "PriFT, E: 17,398 deduplicated prompts of dapo-math-17k-dedup"
    hub = "YouJiacheng/DAPO-Math-17k-dedup"
    revision = "6e26a33abdabd3e6aaa1d742326b790758f7dbc5"
    files = "*.parquet"
    columns: ClassVar = {"prompt": list, "reward_model": dict}
    part = "rl"
    rows, tokens = 17_398, 150

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any]:
        text = str(row["prompt"][0]["content"])
        # Its own frame asks for a last line "Answer: ..."; the paper rewards boxed answers.
        problem = text.removeprefix(OPENING).removesuffix(CLOSING).strip()
        return {"prompt": f"{problem}\n{BOXED}", "answer": str(row["reward_model"]["ground_truth"]), "grader": "math"}


SOURCE = DapoMathSource()

"""The stage `rollouts`: what a model answers to the RL prompts before any RL, as many times as GRPO would ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.chats import template_arguments
from common.errors import ConfigError
from common.files import write_json
from rl_stage.answers import Drawing, answers
from rl_stage.rewards import check_rows, load_reward


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Sample `readiness.prompts` prompts of `inputs["data"]`/rl_train.parquet `rl.samples` times with
    `inputs["model"]`, as rollouts are drawn, and score the answers.

    The prompts are drawn by `readiness.seed`, the same for every model. Writes rollouts.parquet (prompt: its row in
    rl_train.parquet, sample, response, tokens, cut, score, correct, failed) and metrics.json with counts. Scores are
    the reward's, without a length penalty. Resumes from finished shards. Raises ConfigError, before anything is
    sampled, for a reward that cannot be loaded, and where no prompt fits `rl.max_prompt_length`.
    """
    import pyarrow
    import pyarrow.parquet as pq

    rl, chosen = settings.rl, settings.readiness
    load_reward(rl.reward.name, rl.reward.settings)
    check_rows(inputs["data"] / "rl_train.parquet", rl.reward.settings)
    rows = pq.read_table(inputs["data"] / "rl_train.parquet").to_pylist()
    places = drawn_places(len(rows), chosen.prompts, chosen.seed)
    drawing = Drawing(
        rl.samples, rl.temperature, chosen.seed, settings.model.chat_template, template_arguments(settings.model)
    )
    found = answers(settings, inputs["model"], [rows[place] for place in places], drawing, scratch, report)
    kept = [
        {
            "prompt": place,
            "sample": index,
            "response": one.text,
            "tokens": one.tokens,
            "cut": one.cut,
            "score": one.scored.score,
            "correct": one.scored.correct,
            "failed": one.scored.failed,
        }
        for place, drawn in zip(places, found, strict=True)
        for index, one in enumerate(drawn or ())
    ]
    if not kept:
        raise ConfigError(f"rl.max_prompt_length={rl.max_prompt_length}: none of {len(places)} prompts fits; raise it")
    pq.write_table(pyarrow.Table.from_pylist(kept), output / "rollouts.parquet")
    counts = {
        "prompts": len(places),
        "too_long": sum(one is None for one in found),
        "samples": rl.samples,
        "rewards_failed": sum(row["failed"] for row in kept),
    }
    write_json(output / "metrics.json", counts)


def drawn_places(count: int, wanted: int | None, seed: int) -> list[int]:
    """`wanted` of `count` rows drawn without replacement, in order; all of them where there are no more."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, wanted, replace=False).tolist())

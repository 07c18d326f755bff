"""The stage `filter`: keep the RL prompts that a model solves sometimes, neither never nor always."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.chats import template_arguments
from common.errors import ConfigError
from common.files import write_json
from rl_stage.answers import Drawing, answers
from rl_stage.rewards import check_rows, load_reward


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Sample every prompt of `inputs["data"]`/rl_train.parquet `rl.filter.samples` times with `inputs["model"]` and
    keep those whose pass rate lies strictly between `rl.filter.above` and `rl.filter.below`.

    Writes rl_train.parquet (the rows kept), rl_val.parquet (unchanged), pass_rates.parquet (every row's rate), and
    metrics.json with counts and the histogram. Sampling is seeded per prompt and resumes from finished shards. Raises
    ConfigError, before anything is sampled, for a reward that cannot be loaded, and if nothing is kept.
    """
    import pyarrow
    import pyarrow.parquet as pq

    load_reward(settings.rl.reward.name, settings.rl.reward.settings)
    check_rows(inputs["data"] / "rl_train.parquet", settings.rl.reward.settings)
    table = pq.read_table(inputs["data"] / "rl_train.parquet")
    rates, failed = pass_rates(settings, inputs["model"], table.to_pylist(), scratch, report)
    bounds = settings.rl.filter
    kept = [rate is not None and bounds.above < rate < bounds.below for rate in rates]
    metrics = {
        "prompts": len(rates),
        "kept": sum(kept),
        "too_long": sum(rate is None for rate in rates),
        "rewards_failed": failed,
        "histogram": histogram(rates, bounds.samples),
    }
    sources = table["data_source"].to_pylist() if "data_source" in table.column_names else []
    if len(set(sources)) > 1:
        pairs = list(zip(sources, kept, strict=True))
        metrics["sources"] = {
            name: {"prompts": sources.count(name), "kept": pairs.count((name, True))} for name in sorted(set(sources))
        }
    if not any(kept):
        raise ConfigError(
            f"rl.filter: no prompt has a pass rate strictly between {bounds.above} and {bounds.below}: {metrics}"
        )
    pq.write_table(table.filter(pyarrow.array(kept)), output / "rl_train.parquet")
    shutil.copy(inputs["data"] / "rl_val.parquet", output / "rl_val.parquet")
    pq.write_table(pyarrow.table({"pass_rate": pyarrow.array(rates, pyarrow.float64())}), output / "pass_rates.parquet")
    write_json(output / "metrics.json", metrics)


def pass_rates(
    settings: Any,
    model: Path,
    rows: list[dict],
    scratch: Path,
    report: Callable[..., None],
) -> tuple[list[float | None], int]:
    """The share of right responses to each row's prompt (None for a prompt over `rl.max_prompt_length`), and how many
    rewards failed."""
    chosen = settings.rl.filter
    # The recipe's template is its base model's; a model that only filters has its own.
    own = chosen.model is not None
    drawing = Drawing(
        chosen.samples,
        chosen.temperature,
        settings.seed,
        None if own else settings.model.chat_template,
        {} if own else template_arguments(settings.model),
        chosen.replicas or 1,
    )
    found = answers(settings, model, rows, drawing, scratch, report)
    rates = [None if one is None else sum(answer.scored.correct for answer in one) / len(one) for one in found]
    return rates, sum(answer.scored.failed for one in found for answer in one or ())


def histogram(rates: list[float | None], samples: int) -> dict[str, int]:
    """How many prompts had how many right responses, as "<right>/<samples>" -> prompts."""
    counts = Counter(round(rate * samples) for rate in rates if rate is not None)
    return {f"{right}/{samples}": counts[right] for right in sorted(counts)}

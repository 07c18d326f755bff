"""Sums over tokens, as they add up over micro-batches and ranks, and the means that the logger shows."""

from __future__ import annotations

from collections.abc import Mapping

SUM = "sum/"  # prefix of metrics that are added over micro-batches and ranks


def token_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the supervised tokens of the global batch.

    `mean_weight` and `effective_tokens` = (sum w)^2 / (N sum w^2), the share of tokens that carry the weight, exist for
    weighted objectives.
    """
    tokens = max(sums["tokens"], 1.0)  # where nothing is supervised every sum is 0
    means = {
        name.removeprefix("diagnostic_"): total / tokens
        for name, total in sums.items()
        if name not in ("loss", "tokens", "weight_squared", "diagnostic_weight")
    }
    if "weight_squared" in sums:
        squared = sums["weight_squared"]
        means["mean_weight"] = sums["diagnostic_weight"] / tokens
        means["effective_tokens"] = sums["diagnostic_weight"] ** 2 / (tokens * squared) if squared > 0 else 0.0
    return {**means, "tokens": sums["tokens"], "loss_sum": sums["loss"]}

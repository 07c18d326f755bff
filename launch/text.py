"""Seconds, bytes and metrics as people read them."""

from __future__ import annotations

from collections.abc import Mapping

import humanize

SHOWN = 4  # metrics on a line


def seconds_text(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def bytes_text(count: float) -> str:
    """5 MB, 1.50 GB (powers of ten); two places from a GB on."""
    return humanize.naturalsize(count, format="%.2f" if count >= 1e9 else "%.0f")


def metrics_text(metrics: Mapping[str, float | None]) -> str:
    """Up to four metrics: `loss=1.5`, nan for one that is not finite; a score with its interval from `low` and `high`.

    Metrics beside a `low` and a `high` are scores: `target/pass@1 0.43 (0.39 to 0.47)`.
    """
    low, high = metrics.get("low"), metrics.get("high")
    rest = {name: value for name, value in metrics.items() if name not in ("low", "high")}
    if low is None or high is None or len(rest) != 1:
        return " ".join(f"{name}={_number(value)}" for name, value in list(metrics.items())[:SHOWN])
    ((name, value),) = rest.items()
    return f"{name} {_score(value)} ({_score(low)} to {_score(high)})"


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4g}"


def _score(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2f}"

"""Seconds, bytes and metrics as people read them."""

from __future__ import annotations

from collections.abc import Mapping

import humanize


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
    """name=value of up to four metrics; nan for one that is not finite."""
    return " ".join(f"{name}={'nan' if value is None else f'{value:.4g}'}" for name, value in list(metrics.items())[:4])

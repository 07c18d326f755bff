"""Durations, sizes and metrics as people read them."""

from __future__ import annotations

from collections.abc import Mapping


def seconds_text(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def bytes_text(count: float) -> str:
    """Bytes in MB or GB (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """name=value of up to four metrics."""
    return " ".join(f"{name}={value:.4g}" for name, value in list(metrics.items())[:4])

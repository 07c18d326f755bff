"""Refusing what the disk cannot hold, before anything starts."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from launch.execution.cluster import Refused
from launch.graph.estimate import Estimate, disk_forecast
from launch.graph.plan import Plan
from launch.store import Store
from launch.text import bytes_text


def check_disk(plan: Plan, store: Store, estimates: Mapping[str, Estimate]) -> None:
    """Refuses a plan whose forecast (as `plan` prints it) exceeds the free space of the store.

    What earlier attempts have left in scratch directories is part of the forecast and on the disk already.
    """
    left = {
        mark: replace(
            estimate, scratch_bytes=max(0.0, estimate.scratch_bytes - _size(store.scratch(plan.stages[mark])))
        )
        for mark, estimate in estimates.items()
    }
    needed, free = disk_forecast(left, max(1, len(plan.branches))), shutil.disk_usage(store.root).free
    if needed > free:
        raise Refused(
            f"run.root={plan.root}: the artifacts and resumable checkpoints to come need about {bytes_text(needed)}, "
            f"{bytes_text(free)} are free there; free some, set run.root to a larger disk, or keep fewer checkpoints "
            "(sft.keep_checkpoints, sft.publish_steps, rl.keep_checkpoints, rl.publish_steps)"
        )


def _size(directory: Path) -> int:
    """Bytes below a directory; 0 if there is none."""
    total = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(OSError):
                total += (Path(folder) / file).lstat().st_size
    return total

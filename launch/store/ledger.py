"""costs.jsonl: what every attempt took, one line each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.store.records import host

if TYPE_CHECKING:
    from launch.graph.plan import Stage

COSTS = "costs.jsonl"


def append_cost(root: Path, stage: Stage, attempt: int, result: dict[str, Any]) -> None:
    """Adds the row of an attempt with this result (outcome, seconds; bytes, flops, peak_memory_bytes if known)."""
    devices = stage.placement["nodes"] * stage.placement["gpus_per_node"]
    row = {
        "time": time.time(),
        "kind": stage.kind,
        "label": stage.label,
        "fingerprint": stage.fingerprint,
        "attempt": attempt,
        "outcome": result["outcome"],
        "seconds": result["seconds"],
        "devices": devices,
        "device_hours": devices * result["seconds"] / 3600,
        "peak_memory_bytes": result.get("peak_memory_bytes", 0),
        "bytes": result.get("bytes", 0),
        "flops": result.get("flops", 0.0),
        "platform": stage.settings["platform"]["name"],
        "host": host(),
        "branches": list(stage.branches),
    }
    with (root / COSTS).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row, sort_keys=True) + "\n")


def read_costs(root: Path) -> list[dict[str, Any]]:
    """The rows, oldest first; one cut short by a full disk is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in (root / COSTS).read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows

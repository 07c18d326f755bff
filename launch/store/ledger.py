"""costs.jsonl: what every attempt took, one line each."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.store.lock import locked
from launch.store.patience import patiently
from launch.store.records import host

if TYPE_CHECKING:
    from launch.graph.plan import Stage

COSTS = "costs.jsonl"
LOCK = ".costs.lock"


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
    line = json.dumps(row, sort_keys=True) + "\n"
    with locked(root / LOCK), patiently((root / COSTS).open, "a") as file:
        file.write(line)


def read_costs(root: Path) -> list[dict[str, Any]]:
    """The rows, oldest first; one cut short by a full disk is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in patiently((root / COSTS).read_text).splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def device_hours(root: Path, fingerprints: Iterable[str]) -> float:
    """Device-hours that all attempts of these stages took so far, by whatever run."""
    wanted = set(fingerprints)
    return sum(row["device_hours"] for row in read_costs(root) if row["fingerprint"] in wanted)

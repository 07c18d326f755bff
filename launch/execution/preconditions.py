"""Refusing what cannot end well, before anything starts: a disk that is too small, a model that is not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from common.models import fetch
from launch.execution.cluster import Refused
from launch.graph.estimate import Estimate, disk_forecast
from launch.graph.hub import is_offline
from launch.graph.plan import Plan, Stage
from launch.store import Store
from launch.text import bytes_text


def check_disk(plan: Plan, store: Store, estimates: Mapping[str, Estimate]) -> None:
    """Refuses a plan whose forecast (as `plan` prints it) exceeds the free space of the store."""
    needed, free = bytes_needed(plan, store, estimates), shutil.disk_usage(store.root).free
    if needed > free:
        raise Refused(
            f"run.root={plan.root}: the artifacts and resumable checkpoints to come need about {bytes_text(needed)}, "
            f"{bytes_text(free)} are free there; free some, set run.root to a larger disk, or keep fewer checkpoints "
            "(sft.keep_checkpoints, sft.publish_steps, rl.keep_checkpoints, rl.publish_steps)"
        )


def bytes_needed(plan: Plan, store: Store, estimates: Mapping[str, Estimate]) -> float:
    """Bytes that a plan will add to its store: the forecast as `plan` prints it, less what is on the disk already.

    What earlier attempts have left in scratch directories is part of the forecast.
    """
    left = {
        mark: replace(
            estimate, scratch_bytes=max(0.0, estimate.scratch_bytes - _size(store.scratch(plan.stages[mark])))
        )
        for mark, estimate in estimates.items()
    }
    return disk_forecast(left, max(1, len(plan.branches)))


def check_models(plan: Plan, missing: Iterable[Stage]) -> None:
    """Refuses stages whose hub models are not in this node's cache while downloads are switched off.

    Whether they are is the user's choice: HF_HUB_OFFLINE in the environment or in platform.env.
    """
    if not is_offline(plan.branches[0].recipe.platform.env):
        return
    _, hub = outside_models(missing)
    for name, revision in hub:
        try:
            fetch(str(name), revision, offline=True)
        except Exception as error:  # the hub's client raises a dozen kinds
            raise Refused(
                f"{name}{f' at {revision}' if revision else ''} is not in the cache of this node (HF_HOME), and "
                f"HF_HUB_OFFLINE forbids to download it; run `python -m launch check {plan.recipe} ... --prefetch` "
                "with the same overrides, or unset HF_HUB_OFFLINE"
            ) from error


def outside_models(stages: Iterable[Stage]) -> tuple[list[str], list[list[str | None]]]:
    """Models from outside that stages read: local directories, and [hub name, revision]."""
    local, hub = set(), {}
    for stage in stages:
        for name, source in stage.models.items():
            path, revision = str(stage.inputs[name].path), source["revision"]
            if Path(path).expanduser().exists():
                local.add(str(Path(path).expanduser()))
            else:
                hub[path, revision] = [path, revision]
    return sorted(local), list(hub.values())


def _size(directory: Path) -> int:
    """Bytes below a directory; 0 if there is none."""
    total = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(OSError):
                total += (Path(folder) / file).lstat().st_size
    return total

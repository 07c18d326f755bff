"""What a job tells its supervisor of each of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import ConfigError
from launch.execution.jobs import StageProgress, halve
from launch.execution.requests import request_of
from launch.graph.plan import Plan
from launch.stages.contract import StageKind
from launch.store import Full, Store, StoreError
from launch.store.errors import clear_errors


def entry_of(
    progress: StageProgress, plan: Plan, store: Store, kinds: Mapping[str, StageKind], flops: float
) -> dict[str, Any] | None:
    """Begins the stage's next attempt and writes its request; None where it failed, which `progress` then says."""
    stage = progress.stage
    settings = stage.settings
    if progress.halved:
        settings = halve(stage.settings, kinds[stage.kind]) or stage.settings
    inputs, verify = {}, []
    for name, given in stage.inputs.items():
        if given.stage is None:
            assert given.path is not None
            inputs[name] = given.path
            continue
        directory = store.directory(plan.stages[given.stage])
        try:
            inputs[name] = store.select(directory, given.select)
        except ConfigError as error:
            progress.state, progress.message = "failed", f"config: input {name}: {error}"
            return None
        below = "" if inputs[name] == directory else str(inputs[name].relative_to(directory))
        verify.append((str(directory), given.stage, below))
    try:
        attempt = store.begin(stage)
        with clear_errors(store.root):
            request = request_of(stage, attempt, store, inputs, settings)
    except StoreError as error:
        outcome = "disk" if isinstance(error, Full) else "config"
        progress.state, progress.message = "failed", f"{outcome}: {error}"
        return None
    progress.attempt = attempt
    return {"stage": stage, "attempt": attempt, "request": str(request), "verify": verify, "flops": flops}

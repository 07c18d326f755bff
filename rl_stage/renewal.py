"""Which runs can leave their processes to the next one; imports nothing heavy, so that a plan may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.nested import flat

# Sections of verl's configuration with actors, models or loggers of their own that no run after it could take over.
OF_ONE_RUN = ("critic", "distillation", "reward", "trainer")


def can_be_renewed(
    *, warm: bool, mode: str, pause_at: int | None, processes: int, devices: int, platform: str, verl: Mapping[str, Any]
) -> bool:
    """Whether a run with these fields of `rl` shares a session, `devices` of a node on `platform`.

    Not on a GPU, where it has not been tried; not over several nodes; not with rollouts that outlive a step; not a run
    that pauses; not with keys of verl that add to what has to begin anew.
    """
    own = any(key.split(".")[0] in OF_ONE_RUN or key == "algorithm.adv_estimator" for key in flat(verl))
    alone = mode == "sync" and pause_at is None and processes <= devices
    return warm and platform == "cpu" and alone and not own

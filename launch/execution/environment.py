"""The environment variables of a stage's processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.processes import ATTEMPT_VARIABLE
from common.ray_session import import_path
from common.verified import announcement

PRIVATE_RAY = {
    # Ray's switch for desktop systems: without it a private Ray replaces 127.0.0.1 by the machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray makes its workers nice by 15: one Ray in another would starve beside any other program.
    "RAY_worker_niceness": "0",
}
# How a process shows a cluster that asks for a token that it belongs there.
RAY_CREDENTIALS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")


# Directories of trackers, whose defaults are the same for all runs of an objective.
TRACKERS = ("TENSORBOARD_DIR", "WANDB_DIR", "SWANLAB_LOG_DIR")


def environment(
    tag: str,
    settings: Mapping[str, Any],
    cluster: str | None,
    temporary: str,
    tracker: Path,
    verified: Iterable[str] = (),
) -> dict[str, str]:
    """The environment of a stage. With `cluster` its own `ray.init()` joins that cluster, else it starts a private one.

    What Ray tells its workers is left out, or a private Ray would take itself for a part of the driver's.

    Args:
        tag: name of the job, by which its processes are found.
        settings: the stage's, as JSON values; read are `platform.name`, `.threads` and `.env`.
        cluster: address, or None.
        temporary: directory for Ray's files.
        verified: directories that were compared with their records just now, on this machine.
        tracker: directory of this stage's trackers; its name alone, below a directory that the user chose.
    """
    keep = RAY_CREDENTIALS if cluster else ()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name in keep}
    platform = settings["platform"]
    if platform["name"] == "cpu":
        env.pop("CUDA_VISIBLE_DEVICES", None)  # numbers of logical devices
        env["VERL_PLATFORM"] = "cpu"
    env.update(
        PYTHONPATH=import_path(),
        PYTHONHASHSEED="0",
        PYTHONUNBUFFERED="1",
        TOKENIZERS_PARALLELISM="false",
        RAY_TMPDIR=temporary,
        OMP_NUM_THREADS=str(platform["threads"]),
    )
    env.update({"RAY_ADDRESS": cluster} if cluster else PRIVATE_RAY)
    env.update(platform["env"])
    for name in TRACKERS:
        env[name] = str(Path(env[name]) / tracker.name if env.get(name) else tracker)
    env[ATTEMPT_VARIABLE] = tag
    env.update(announcement(verified))
    return env

"""What the driver asks of a child, as a file beside the attempt's log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_json
from launch.store.patience import appears
from launch.store.places import Places, attempt_file
from launch.store.records import redact

if TYPE_CHECKING:
    from launch.execution.jobs import Job
    from launch.graph.plan import Stage


STOP, BEGIN_NO_MORE = "stop", "begin_no_more"  # suffixes of empty files beside an attempt's log: what is asked of it


def request_of(
    stage: Stage, attempt: int, places: Places, inputs: Mapping[str, Path | str], settings: Mapping[str, Any]
) -> Path:
    """Writes `attempt-<n>.request.json` and returns its path; the environment's values stay out of it.

    Args:
        inputs: where each input lies; a model from outside by its path or hub name.
        settings: the stage's values, or a copy with a smaller micro-batch.

    Raises:
        ValueError: the stage does not say of which class its settings are.
    """
    if not stage.settings_type:
        raise ValueError(f"stage {stage.name} has no settings_type: it could not be rebuilt in a child")
    shown = dict(settings)
    shown["platform"] = redact(settings["platform"])
    logs = places.logs(stage)
    request = {
        "stage": stage.name,
        "fingerprint": stage.fingerprint,
        "function": stage.function,
        "settings": {"type": stage.settings_type, "values": shown},
        "inputs": {name: str(path) for name, path in inputs.items()},
        "models": stage.models,
        "digests": {name: given.digest for name, given in stage.inputs.items() if given.digest},
        "output": str(places.temporary(stage, attempt)),
        "scratch": str(places.scratch(stage)),
        "logs": str(logs),
        "attempt": attempt,
    }
    path = attempt_file(logs, attempt, "request.json")
    write_json(path, request)
    path.chmod(0o600)
    return path


def ask(jobs: Iterable[Job], what: str, places: Places) -> None:
    """Asks the children of jobs for `STOP`, or `BEGIN_NO_MORE`: to end after the stage in work."""
    for job in jobs:
        for stage in job.stages:
            with contextlib.suppress(OSError):
                attempt_file(places.logs(stage), job.attempts[stage.fingerprint], what).touch()


def read_request(path: Path) -> dict[str, Any]:
    """A request; waits for one that another node wrote a moment ago. Raises StoreError if it does not appear."""
    return appears(path)


def request_file(request: Mapping[str, Any], suffix: str) -> Path:
    """A file of the attempt that a request belongs to."""
    return attempt_file(Path(request["logs"]), request["attempt"], suffix)

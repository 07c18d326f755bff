"""MLflow: the server of MLFLOW_TRACKING_URI, else a data base in the store.

`mlflow ui --backend-store-uri sqlite:///<store>/trackers/mlflow/mlflow.db`
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from launch.trackers.contract import Row, State, TrackedRun, Tracker

TAG = "sft_then_rl.id"  # MLflow makes its own ids; a run is found again by this
METRICS, PARAMETERS, LONGEST = 1000, 100, 500  # of one request, and characters of a parameter
STATES: dict[State, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_REFUSED = re.compile(r"[^\w. :/-]")  # in the name of a metric


class _Open:
    def __init__(self, run: TrackedRun, directory: Path) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            directory.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{directory}/mlflow.db", (directory / "artifacts").as_uri()
        self._client = mlflow.MlflowClient(uri)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project, artifacts)
        known = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, tags={TAG: run.id}, run_name=run.name).info.run_id
            given = [self._entities.Param(key, value) for key, value in _parameters(run.config)]
            for start in range(0, len(given), PARAMETERS):
                self._client.log_batch(self._id, params=given[start : start + PARAMETERS])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=artifacts)
            except Exception:  # another run may have been quicker
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def log(self, rows: Sequence[Row]) -> None:
        now = int(time.time() * 1000)
        found = [
            self._entities.Metric(_REFUSED.sub("_", name), value, now, row.step)
            for row in rows
            for name, value in row.named().items()
        ]
        for start in range(0, len(found), METRICS):
            self._client.log_batch(self._id, metrics=found[start : start + METRICS])

    def close(self, state: State) -> None:
        self._client.set_terminated(self._id, STATES[state])


def _parameters(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of nested settings; a long text is cut, with its length."""
    for name, value in config.items():
        path = _REFUSED.sub("_", f"{above}{name}")
        if isinstance(value, Mapping):
            yield from _parameters(value, f"{path}.")
        else:
            text = str(value)
            yield path, text if len(text) <= LONGEST else f"{text[: LONGEST - 40]}... ({len(text)} characters)"


class MLflow(Tracker):
    name = "mlflow"
    requirement = "mlflow>=2.20"
    package = "mlflow"

    def open(self, run: TrackedRun, directory: Path) -> _Open:
        return _Open(run, directory)


MLFLOW = MLflow()

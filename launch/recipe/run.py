"""How a plan is run: store, retries, limits, selection."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import field_validator, model_validator

from launch import trackers
from launch.recipe.section import Section, runtime


class Selection(Section):
    """Of branches that differ in some fields (and in `seed`) alone, only the best goes on to RL and evaluation."""

    fields: list[str] = runtime([], "swept fields to choose, e.g. [objective, sft.lr]; empty: all go on")
    metric: str = runtime(
        "val_loss", "a scalar of SFT's metrics.json, readiness/<figure>, or with rungs rl/<a validation score>"
    )
    goal: Literal["min", "max"] | None = runtime(
        None, "which value of the metric is best; null: min, of readiness the direction that speaks for RL"
    )
    keep: int = runtime(1, "candidates of a group that go on", gt=0)
    rungs: list[int] = runtime(
        [], "steps of RL at which the better half of the candidates goes on, the last one rl.steps; e.g. [10, 30, 100]"
    )

    @model_validator(mode="after")
    def _rungs_rise(self) -> Selection:
        rungs = self.rungs
        if rungs and (len(rungs) < 2 or rungs[0] < 1 or any(a >= b for a, b in pairwise(rungs))):
            raise ValueError(f"rungs={rungs}: give two or more steps that rise, such as [10,30,100]")
        if bool(rungs) != self.metric.startswith("rl/"):
            other = "metric=rl/validation_pass_rate" if rungs else "rungs=[...], at whose steps RL is measured"
            raise ValueError(f"metric={self.metric} with rungs={rungs}: set {other}")
        return self


class Run(Section):
    root: str = runtime("runs", "the artifact store")
    replica: str | None = runtime(None, "fsspec URL that artifacts are taken from and copied to, e.g. s3://bucket/runs")
    retries: int = runtime(2, "attempts after a fault", ge=0)
    backoff: float = runtime(5.0, "seconds before the first retry; doubles", ge=0)
    timeout: float = runtime(86_400.0, "seconds one stage may take", gt=0)
    silence: float = runtime(1_800.0, "seconds without progress or log lines after which a stage counts as hung", gt=0)
    grace: float = runtime(30.0, "seconds between SIGTERM and SIGKILL", gt=0)
    pinned: bool = runtime(False, "refuse a hub name without a commit")
    max_device_hours: float | None = runtime(None, "stop starting stages beyond this")
    trackers: list[str] = runtime([], "where curves and scores are shown too: tensorboard, wandb, mlflow, trackio")

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("name each once")
        for name in value:
            trackers.load(name)
        return value

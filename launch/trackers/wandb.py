"""Weights & Biases. Where it logs to and as whom is said by its own variables: WANDB_API_KEY, WANDB_MODE, ..."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from launch.trackers.contract import Row, State, TrackedRun, Tracker

ALONE = ("offline", "dryrun", "disabled")  # values of WANDB_MODE that need no key


class _Open:
    def __init__(self, run: TrackedRun, directory: Path) -> None:
        wandb: Any = import_module("wandb")
        directory.mkdir(parents=True, exist_ok=True)
        self._series: set[str] = set()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            id=run.id,
            name=run.branch,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",  # branches are open beside each other
            dir=os.environ.get("WANDB_DIR") or str(directory),
            # the driver's output and load say nothing about the nodes that train
            settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
        )

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.series not in self._series:  # each has steps of its own
                self._series.add(row.series)
                self._run.define_metric(f"{row.series}/step")
                self._run.define_metric(f"{row.series}/*", step_metric=f"{row.series}/step")
            self._run.log({f"{row.series}/step": row.step, **row.named()})

    def close(self, state: State) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


class Wandb(Tracker):
    name = "wandb"
    requirement = "wandb>=0.31"
    package = "wandb"

    def check(self) -> None:
        super().check()
        if os.environ.get("WANDB_MODE", "online").lower() in ALONE:
            return
        wandb: Any = import_module("wandb")
        wandb.setup(settings=wandb.Settings(silent=True))
        if not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "run.trackers=wandb: no key; set WANDB_API_KEY (or log in with `wandb login`), or WANDB_MODE=offline"
            )

    def open(self, run: TrackedRun, directory: Path) -> _Open:
        return _Open(run, directory)


WANDB = Wandb()

"""What a tracker is. Importing one imports no library: that waits until a run is opened."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from packaging.requirements import Requirement

from common.errors import ConfigError

State = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class TrackedRun:
    """A branch as trackers see it.

    id: 16 hex digits of a fingerprint; the same branch has the same one in every session. name: of the branch with the
    id, good as a file name. project: the recipe. branch: its name. config: JSON values without secrets.
    """

    id: str
    name: str
    project: str
    branch: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Numbers of one step of a series ("sft", "rl@final", "eval/sft/target"), by name."""

    series: str
    step: int
    values: Mapping[str, float]

    def named(self) -> dict[str, float]:
        """The numbers by series and name, as a tracker shows them."""
        return {f"{self.series}/{name}": value for name, value in self.values.items()}


class OpenRun(Protocol):
    """A run that a tracker has opened. Whatever a library raises is tried again later."""

    def log(self, rows: Sequence[Row]) -> None:
        """Writes rows; returns once they survive the death of this process, as far as the library can say."""
        ...

    def close(self, state: State) -> None:
        """Ends the run; it may be opened again."""
        ...


class Tracker:
    """Subclass it, set the attributes, make one instance; its file's name is the tracker's."""

    name: str
    requirement: str  # for pip; its name is the distribution's
    package: str  # to import

    def check(self) -> None:
        """Refuses, when a run is planned, what could not be tracked. Raises ConfigError (one line)."""
        wanted = Requirement(self.requirement)
        remedy = f"pip install '{self.requirement}', or leave {self.name} out"
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(f"run.trackers={self.name}: package {wanted.name} is not installed; {remedy}")
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            return  # another distribution of the same package
        if not wanted.specifier.contains(version, prereleases=True):
            raise ConfigError(f"run.trackers={self.name}: {wanted.name} {version} is too old; {remedy}")

    def open(self, run: TrackedRun, directory: Path) -> OpenRun:
        """Opens a run, or goes on with the one of its id; local files of this tracker belong below `directory`."""
        raise NotImplementedError(f"tracker {self.name} opens no run {run.name} in {directory}")

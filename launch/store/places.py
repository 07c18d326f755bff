"""Where the files of a stage lie below the store's root, and the lock of each kind of stage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launch.store.errors import StoreError, clear_errors
from launch.store.lock import locked
from launch.store.patience import patiently

if TYPE_CHECKING:
    from launch.graph.plan import Stage


def attempt_file(logs: Path, attempt: int, suffix: str) -> Path:
    """A file of one attempt: its request.json, log, child.json (the child's result), result.json or stop."""
    return logs / f"attempt-{attempt}.{suffix}"


def attempt_numbers(logs: Path, suffix: str) -> list[int]:
    """Numbers of the attempts that have such a file, ascending."""
    found = patiently(lambda: list(logs.glob(f"attempt-*.{suffix}")))
    return sorted(int(path.name.split("-")[1].split(".")[0]) for path in found)


class Places:
    """Addresses below `root`, a local or shared POSIX directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Raises StoreError for a URL."""
        if "://" in str(root):
            raise StoreError(
                f"run.root={root}: work in progress needs a POSIX directory; give one, and set run.replica={root} to "
                "keep the artifacts there too"
            )
        self.root = Path(root).expanduser().absolute()

    def directory(self, stage: Stage) -> Path:
        """Where the artifact of a stage is or will be."""
        return self.root / stage.kind / f"{stage.label}-{stage.fingerprint[:16]}"

    def scratch(self, stage: Stage) -> Path:
        """A directory that survives killed attempts and is deleted after publishing."""
        return self.root / stage.kind / f".scratch-{stage.fingerprint[:16]}"

    def logs(self, stage: Stage) -> Path:
        """Logs, requests, results and progress of all attempts of a stage."""
        return self.root / stage.kind / f"{stage.label}-{stage.fingerprint[:16]}.logs"

    def temporary(self, stage: Stage, attempt: int) -> Path:
        """Where one attempt writes before publishing."""
        return self.root / stage.kind / f".tmp-{stage.fingerprint[:16]}-{attempt}"

    def lease(self, stage: Stage) -> Path:
        """The file that names the run which holds a stage."""
        return self.root / stage.kind / f".lease-{stage.fingerprint[:16]}.json"

    @property
    def drivers(self) -> Path:
        """Folder with one heartbeat file for each running driver."""
        return self.root / ".drivers"

    @contextlib.contextmanager
    def locked(self, kind: str) -> Iterator[None]:
        """Holds the lock of a kind of stage, under which everything changes that others see.

        Keep what is done under it short: whoever waits for it too long takes its holder for lost.
        """
        folder = self.root / kind
        with clear_errors(self.root):
            patiently(folder.mkdir, parents=True, exist_ok=True)
            with locked(folder / ".lock"):
                yield

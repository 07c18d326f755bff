"""Temporary folders of the grading workers, which the server removes: a worker that is killed removes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path

from evaluation.sandbox.usage import remove

PREFIX = "grading-"
# What a killed worker's sandbox needs to end; it ends with its worker.
LAST_TRIES, PAUSE_SECONDS = 100, 0.05


class Folders:
    """One folder for each worker below one for the server, which is locked as long as the server lives: what a killed
    server has left is removed by the next."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            _remove_if_left(left)
        self._base = Path(tempfile.mkdtemp(prefix=PREFIX))
        # A sandbox runs as another user, who finds its own folder by its path.
        self._base.chmod(0o711)
        self._lock = _locked(self._base)
        self._count = 0
        self._dropped: set[Path] = set()

    def new(self) -> Path:
        """A folder for another worker."""
        self._count += 1
        folder = self._base / str(self._count)
        folder.mkdir(mode=0o711)
        return folder

    def drop(self, folder: Path) -> None:
        """Remove the folder of a worker that was killed, as soon as its sandbox has ended."""
        self._dropped.add(folder)
        self.clear()

    def clear(self) -> bool:
        """Remove what was dropped; whether nothing is left to be removed."""
        self._dropped = {folder for folder in self._dropped if not remove(folder)}
        return not self._dropped

    def close(self) -> None:
        """Remove everything."""
        for _ in range(LAST_TRIES):
            if remove(self._base):
                break
            time.sleep(PAUSE_SECONDS)
        os.close(self._lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the lock of a folder. Raises OSError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody's, or already gone
        # Between its making and its lock a folder is a server's that starts.
        if folder.stat().st_uid != os.geteuid() or time.time() - folder.stat().st_mtime < 10:
            return
        lock = _locked(folder)
        remove(folder)
        os.close(lock)

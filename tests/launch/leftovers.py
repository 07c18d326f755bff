"""Shared memory that nobody uses any more."""

from pathlib import Path

import psutil

from common.processes import shared_memory


def left_behind(before: set[Path]) -> set[Path]:
    """Segments of Python's that are new since `before`, the files of /dev/shm then, and that no process has mapped."""
    new = {path for path in segments() - before if path.name.startswith("psm_")}
    return {path for path in new - shared_memory(psutil.pids()) if path.exists()}


def segments() -> set[Path]:
    return set(Path("/dev/shm").iterdir())

"""What a store may refuse."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class StoreError(Exception):
    """The store cannot do what was asked; the message names the path and the remedy."""


class Corrupt(StoreError):
    """A published file is missing or differs from its record."""


class Full(StoreError):
    """No space left; nothing was published."""


class LeaseLost(StoreError):
    """Another driver owns the stage now; its result counts, not ours."""


def damaged(directory: Path, problem: str) -> Corrupt:
    """The error for an artifact with a problem."""
    return Corrupt(
        f"artifact {directory} is damaged: {problem}; restore it, or delete the directory to have it made again"
    )


@contextlib.contextmanager
def full_disk_is_clear(root: Path) -> Iterator[None]:
    """Turns the operating system's error for a full disk or quota into Full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Full(
            f"no space left below {root}: nothing was published; free space and run the same command again"
        ) from error

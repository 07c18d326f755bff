"""What a store may refuse."""

from __future__ import annotations

import contextlib
import errno
import pwd
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
def clear_errors(root: Path) -> Iterator[None]:
    """Turns the operating system's errors for a full disk or quota into Full, for a lack of rights into StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Full(
                f"no space left below {root}: nothing was published; free space and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(_forbidden(Path(error.filename or root), error)) from error
        raise


def _forbidden(path: Path, error: OSError) -> str:
    if error.errno == errno.EROFS:
        return f"{path}: the file system is read-only; set run.root to a directory that can be written"
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    owner = ""
    with contextlib.suppress(OSError, KeyError):
        uid = there.stat().st_uid
        owner = f"; {there} belongs to user {uid}"
        owner = f"; {there} belongs to {pwd.getpwuid(uid).pw_name}"
    return (
        f"{path} cannot be written ({error.strerror}){owner}; a store of several users needs one group, "
        "its directories `chmod g+rws` and `umask 002` in every shell, or set run.root to one of your own"
    )

"""A lock file that outlives the loss of the node that holds it.

`flock` ends with its process, but a file server may keep the lock of a node that is gone, some of them for ever. So
nobody waits in the kernel: the lock is tried again and again, and one that has been held for LOST seconds without a
change of hands is left behind with its file, for which a new one takes over. What is done under a lock takes seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from launch.store.errors import StoreError
from launch.store.patience import patiently

LOST = 120.0  # seconds, by this process's own clock; more than the 90 s after which NFS forgets a lost client
PAUSE = (0.002, 0.2)  # seconds between two tries: the first, and the longest
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of the file `path`. Raises StoreError where the file system has no locks."""
    file = _acquire(path)
    try:
        yield
    finally:
        file.close()


def _acquire(path: Path) -> IO[str]:
    pause, held, since = PAUSE[0], None, time.monotonic()
    while True:
        file = patiently(path.open, "a")
        try:
            holder = _try(file, path)
        except BaseException:
            file.close()
            raise
        if holder is None:
            return file
        file.close()
        if holder != held:
            held, since = holder, time.monotonic()
        elif time.monotonic() - since > LOST:
            _leave_behind(path, holder)
            held = None
        time.sleep(pause)
        pause = min(PAUSE[1], pause * 1.5)


def _try(file: IO[str], path: Path) -> str | None:
    """Takes the lock: None if it is ours now, else what tells this lock file, and its last holder, from another."""
    ours = os.fstat(file.fileno())
    mark = _mark(ours)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return mark
        if error.errno == errno.ESTALE:
            return "stale"
        raise StoreError(
            f"{path}: this file system gives no locks ({error.strerror}); mount it with them (NFS 4, Lustre `-o flock`)"
        ) from error
    try:
        there = os.stat(path)
    except OSError:
        return "gone"
    if there.st_ino != ours.st_ino:  # another file took over while we waited
        return "replaced"
    os.utime(path)  # a change of hands that the others can see
    return None


def _mark(file: os.stat_result) -> str:
    return f"{file.st_ino}-{file.st_mtime_ns}"


def _leave_behind(path: Path, holder: str) -> None:
    """Removes the lock file of a lost holder; of all who wait for it, one does."""
    marker = path.with_name(f"{path.name}-lost-{holder}")
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    with contextlib.suppress(FileNotFoundError):
        if _mark(os.stat(path)) == holder:
            path.unlink()

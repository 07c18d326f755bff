"""A shared file system's bad moments: handles that went stale, and names that other nodes see late.

Every access of the store that another node's access may race with goes through here.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from common.files import read_json
from launch.store.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")

# ESTALE: the file was replaced or removed on the server since this node opened it; a new look finds the new one.
PASSING = frozenset({errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT})
TRIES = 8
FIRST_PAUSE = 0.02  # seconds; doubles, 2.5 s in all
VISIBLE = 30.0  # seconds within which every node sees what one of them wrote (NFS keeps names for up to a minute)
LOOK = 0.1  # seconds between two looks


def patiently(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`call(...)`, again while the file system has a passing error. Raises the last one after eight tries."""
    return again(lambda: call(*arguments, **named), _is_passing, tries=TRIES, pause=FIRST_PAUSE)


def _is_passing(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in PASSING


def again(call: Callable[[], T], passing: Callable[[Exception], bool], *, tries: int, pause: float) -> T:
    """`call()`, up to `tries` times while its error is `passing`, after `pause` seconds that double."""
    for _ in range(tries - 1):
        try:
            return call()
        except Exception as error:
            if not passing(error):
                raise
        time.sleep(pause)
        pause *= 2
    return call()


def read(path: Path) -> Any:
    """The JSON in a file; None where there is none, none that is whole, or none that this process may read."""
    try:
        return patiently(read_json, path)
    except OSError:
        return None


def appears(path: Path, seconds: float | None = None) -> Any:
    """The JSON of a file that is known to be written, for which this node may have to wait a while.

    Raises StoreError if it is not there after `seconds` (VISIBLE).
    """
    found = seen(lambda: read(path), seconds)
    if found is None:
        limit = VISIBLE if seconds is None else seconds
        raise StoreError(f"{path} does not appear on this node within {limit:g} s; is it a shared file system?")
    return found


def seen(look: Callable[[], T | None], seconds: float | None = None) -> T | None:
    """What `look` finds, asked until it finds something; None after `seconds` (VISIBLE)."""
    deadline = time.monotonic() + (VISIBLE if seconds is None else seconds)
    while True:
        found = look()
        if found is not None or time.monotonic() >= deadline:
            return found
        time.sleep(LOOK)

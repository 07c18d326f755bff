"""Processes of a run on this host: who they are, their shared memory, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
ATTEMPT_VARIABLE = "SFT_THEN_RL_ATTEMPT"  # in the environment of every process of an attempt


def end_with_parent() -> None:
    """From now on the kernel kills this process when the thread that forked it ends (Linux; nothing elsewhere).

    A parent that ended before is not noticed: compare `os.getppid()` afterwards.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start_time(pid: int) -> float | None:
    """Start time of a process in clock ticks since boot, or None if there is none (a zombie does not count)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else float(after_name[19])


def attempt_processes(tag: str) -> list[int]:
    """Numbers of this host's processes that belong to a run or to one of its attempts (`<run>.<n>`)."""
    prefix = f"{ATTEMPT_VARIABLE}={tag}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environment = Path(entry.path, "environ").read_bytes()
            at = (b"\0" + environment).find(b"\0" + prefix)
            end = environment[at + len(prefix) : at + len(prefix) + 1] if at >= 0 else b"?"
            if end in (b"", b"\0", b".") and start_time(int(entry.name)) is not None:
                found.append(int(entry.name))
    return found


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files under /dev/shm that the processes have mapped."""
    found: set[Path] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                _, at, name = line.partition(" /dev/shm/")
                if at and not name.endswith(" (deleted)"):
                    found.add(Path("/dev/shm") / name)
    return found


def end_attempt(tag: str, *, patience: float = 30.0) -> None:
    """Kill every process of a run or attempt on this host, wait until they are gone, remove their shared memory.

    Waiting matters: a device's memory is free only when its last process has ended. Raises RuntimeError if one
    survives `patience` seconds.
    """
    segments: set[Path] = set()
    deadline = time.monotonic() + patience
    while pids := attempt_processes(tag):
        segments |= shared_memory(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, 9)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {pids} of attempt {tag} do not end: the host needs attention")
        time.sleep(0.02)
    for segment in segments:
        segment.unlink(missing_ok=True)


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """Kill these processes and wait until they are gone."""
    import psutil

    waiting = list(processes)
    for process in waiting:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(waiting, timeout=10)

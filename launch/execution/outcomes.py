"""How an attempt can end, and which exception means which.

ok, config (wrong settings or data), disk (full), oom (out of memory), fault, timeout, hung (no sign of life), stopped,
lost (the node or the lease), unstarted (another stage of the job ended the shared process).
"""

from __future__ import annotations

import errno
from pathlib import Path

_MEMORY_SIGNS = ("out of memory", "outofmemory", "can't allocate memory", "bad_alloc", "cannot allocate memory")
_LOG_TAIL = 65536  # bytes at the end of a log in which a process below the child says why it ended


class Stopped(BaseException):
    """SIGTERM arrived; not an Exception, so that a stage's own handlers let it pass."""


def classify(error: BaseException) -> tuple[str, str]:
    """Class and one-line message of an exception: stopped, disk, oom, config (ConfigError, ValueError) or fault."""
    if isinstance(error, Stopped):
        return "stopped", "stopped by SIGTERM"
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    texts = [f"{type(e).__name__}: {e}".lower() for e in chain]
    text = " ".join(str(error).split())
    message = text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
    full = any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain)
    if full or any("no space left on device" in t for t in texts):
        return "disk", f"no space left on the disk ({message}); free space and run the same command again"
    if any(isinstance(e, MemoryError) for e in chain) or any(sign in t for t in texts for sign in _MEMORY_SIGNS):
        return "oom", message
    return ("config" if isinstance(error, ValueError) else "fault"), message


def log_says_out_of_memory(log: Path) -> bool:
    """Whether a log ends with a device out of memory: a process below the child, which only saw that one end."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL))
            tail = file.read().decode(errors="replace").lower()
    except OSError:
        return False
    return "cuda out of memory" in tail or "outofmemoryerror" in tail

"""How an attempt can end, and which exception means which.

ok, paused (to be continued), config (wrong settings or data), disk (full), oom (out of memory), fault, timeout, hung
(no progress), stopped, lost (the node or the lease), unstarted (another stage of the job ended the shared process).
"""

from __future__ import annotations

import errno
import hashlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from common.errors import ConfigError, Paused

DISK_FULL = 28  # exit status of a child and of its guard where even the result finds no space
NO_SPACE = "no space left on the disk"
_FREE_SPACE = "free space and run the same command again"
UNSAID = ("disk", f"{NO_SPACE}; {_FREE_SPACE}")  # class and message where only the status DISK_FULL says it
# Rust's and C++'s libraries keep the operating system's error as a text only.
_DISK_SIGNS = (
    "no space left on device",
    "disk quota exceeded",
    f"os error {errno.ENOSPC})",
    f"os error {errno.EDQUOT})",
    f"[errno {errno.ENOSPC}]",
    f"[errno {errno.EDQUOT}]",
)
_MEMORY_SIGNS = ("out of memory", "outofmemory", "can't allocate memory", "bad_alloc", "cannot allocate memory")
_LOG_MEMORY_SIGNS = ("cuda out of memory", "outofmemoryerror", "std::bad_alloc", "cannot allocate memory")
_LOG_TAIL = 65536  # bytes at the end of a log in which a process below the child says why it ended
_TRACEBACK = "Traceback (most recent call last):"
_RAY_PREFIX = re.compile(r"^(\x1b\[\d+m)?\([^()]*pid=\d+[^()]*\)(\x1b\[\d+m)? ?")
_RANK_PREFIX = re.compile(r"^\[?rank\d+\]?:\s?|^(INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]+\] ?")
_ERROR_LINE = re.compile(
    r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning|Full|Empty|Timeout)?(\([\w.]+\))?(: .*)?$"
)
_CONFIG_LINE = re.compile(r"common\.errors\.ConfigError: (.+)")
_LONGEST = 400  # characters of a message


class Stopped(BaseException):
    """SIGTERM arrived; not an Exception, so that a stage's own handlers let it pass."""


def classify(error: BaseException) -> tuple[str, str]:
    """Class and one-line message of an exception: stopped, paused, disk, oom, config or fault.

    Only our ConfigError is a configuration that is wrong, also where Ray brings it from an actor or another error was
    raised from it. A library's ValueError is a fault.
    """
    if isinstance(error, Stopped):
        return "stopped", "stopped by SIGTERM"
    if isinstance(error, Paused):
        return "paused", str(error)
    chain = list(_chain(error))
    texts = [f"{type(e).__name__}: {e}".lower() for e in chain]
    message = _message(error)
    if any(map(is_full, chain)) or any(sign in text for text in texts for sign in _DISK_SIGNS):
        return "disk", f"{NO_SPACE} ({message}); {_FREE_SPACE}"
    ours = _our_error(error)
    if ours is not None:
        return "config", ours
    if any(isinstance(e, MemoryError) for e in chain) or any(sign in t for t in texts for sign in _MEMORY_SIGNS):
        return "oom", message
    return "fault", message + _remedy(chain)


def is_full(error: BaseException) -> bool:
    """Whether the operating system refused for want of space or quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) and text else f"{type(error).__name__}: {text}"[:_LONGEST]


def _chain(error: BaseException, *, context: bool = True) -> Iterator[BaseException]:
    """The error, what it was raised from and, with `context`, what was being handled meanwhile."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        yield at
        at = at.__cause__ or (at.__context__ if context else None)


def _our_error(error: BaseException) -> str | None:
    """The message of the ConfigError that an error is, was raised from, or quotes from an actor; else None."""
    for at in _chain(error, context=False):
        inner = getattr(at, "cause", None)  # Ray's error of a task or actor holds the one that was raised there
        for one in (inner, at):
            if isinstance(one, ConfigError):
                return _message(one)
        if type(at).__module__.startswith("ray."):
            found = _CONFIG_LINE.findall(str(at))
            if found:
                return " ".join(found[-1].split())
    return None


def _remedy(chain: list[BaseException]) -> str:
    """What to do where a model of the hub could not be had."""
    hub = any(type(e).__module__.startswith("huggingface_hub") for e in chain)
    hub = hub or any("huggingface.co" in str(e) or "HF_HUB_OFFLINE" in str(e) for e in chain)
    return "; `python -m launch check <recipe> --prefetch` brings the models of the hub to every node" if hub else ""


def traceback_digest(error: BaseException) -> str:
    """Equal for two errors that were raised along the same lines of code for the same reason.

    Numbers do not count: they are the attempts', the processes' and the addresses'.
    """
    lines = [
        f"{at.filename}:{at.lineno}:{at.name}" for e in _chain(error) for at in traceback.extract_tb(e.__traceback__)
    ]
    texts = [re.sub(r"0x[0-9a-f]+|\d+", "#", f"{type(e).__name__}: {e}") for e in _chain(error)]
    return hashlib.sha256("\n".join([*lines, *texts]).encode(errors="replace")).hexdigest()[:16]


def log_tail(log: Path) -> str:
    """The last 64 KiB of a log; "" where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def judge_log(log: Path) -> tuple[str, str] | None:
    """Class (disk, oom, fault) and reason of what a process below the child died of, from its log; None if unsaid.

    The child itself only saw that process end, and its own traceback comes last. The reason is the error of the
    first traceback in the log's tail.
    """
    tail = log_tail(log)
    lower = tail.lower()
    reason = _first_error(tail)
    if any(sign in lower for sign in _DISK_SIGNS):
        return "disk", f"{NO_SPACE} ({reason or 'its log says so'}); {_FREE_SPACE}"
    if any(sign in lower for sign in _LOG_MEMORY_SIGNS):
        return "oom", reason or "out of memory, by its log"
    return None if reason is None else ("fault", reason)


def _first_error(text: str) -> str | None:
    """`Kind: words` of the first traceback in a text that may hold several, with the prefixes of Ray or of ranks."""
    inside = False
    for raw in text.splitlines():
        line = _RANK_PREFIX.sub("", _RAY_PREFIX.sub("", raw))
        if line.strip() == _TRACEBACK:
            inside = True
        elif inside and line and not line[0].isspace():
            if _ERROR_LINE.match(line):
                return line.strip()[:_LONGEST]
            inside = False
    return None

"""The process above a child: leader of a session; adopts orphans, measures memory, ends what is left.

    supervisor (in a Ray worker, on the stage's node)
      guard      python -m launch.execution.guard <request>...
        child    imports the stage's package and calls its function

The supervisor holds the guard's standard input open. When the supervisor dies, however it dies, the guard reads the end
of file and kills the tree; when the guard dies, the kernel kills the child, and the supervisor or the next driver kills
the rest by the attempt's name in their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.files import write_json
from common.processes import end_with_parent, shared_memory
from launch.execution.child import POSITION, work
from launch.execution.outcomes import DISK_FULL, UNSAID, is_full
from launch.execution.requests import read_request, request_file

_PR_SET_CHILD_SUBREAPER = 36


def _memory_kills() -> int:
    """How often the kernel has killed a process of this control group for memory."""
    with contextlib.suppress(OSError):
        for line in Path("/sys/fs/cgroup/memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


class Guard:
    """Follows a child until it has ended, and everything below it."""

    def __init__(self, child: int, paths: Sequence[str], shared: mmap.mmap) -> None:
        import psutil

        self._child, self._paths, self._shared = child, paths, shared
        self._ours = psutil.Process()
        self._segments: set[Path] = set()
        self._status: int | None = None  # of the child, once it has ended

    def run(self) -> int:
        """Returns 0 if the child ended well, else 1; a child that left no result gets one."""
        woken = self._listen()
        kills = _memory_kills()
        interval, orphaned = 0.1, False
        while self._status is None and not orphaned:
            ready, _, _ = select.select([0, woken], [], [], interval)
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
            if 0 in ready:
                orphaned = os.read(0, 4096) == b""
            self._reap()
            if not ready and self._status is None:
                begun = time.process_time()
                self._sample()
                # adding up the pages of a dozen processes takes the kernel a while: at most a fiftieth of the time
                interval = max(min(1.0, interval * 1.5), 50 * (time.process_time() - begun))
        self._end_all()
        if self._status is None or orphaned:
            return 1
        return self._conclude(os.waitstatus_to_exitcode(self._status), _memory_kills() > kills)

    def _listen(self) -> int:
        """Passes SIGTERM on to the child, ignores SIGINT; returns a descriptor that signals make readable."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def forward(*_: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)

        signal.signal(signal.SIGTERM, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # Ray's workers inherit it blocked (cluster.py)
        return wake_read

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                if waited[0] == self._child:
                    self._status = waited[1]

    def _sample(self) -> None:
        """Adds up the memory of the tree and keeps the largest sum."""
        import psutil

        total = 0
        tree = self._ours.children(recursive=True)
        for process in tree:
            with contextlib.suppress(psutil.Error, OSError):
                try:
                    total += process.memory_full_info().pss  # shared pages count once
                except (psutil.AccessDenied, AttributeError):
                    total += process.memory_info().rss
        self._segments.update(shared_memory(process.pid for process in tree))
        index, peak = POSITION.unpack_from(self._shared, 0)
        if total > peak:
            POSITION.pack_into(self._shared, 0, index, total)

    def _end_all(self) -> None:
        """Kills what is left of the tree, orphans included, and removes its shared memory."""
        import psutil

        self._segments.update(shared_memory(process.pid for process in self._ours.children(recursive=True)))
        while left := self._ours.children(recursive=True):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=0.5)
            self._reap()
        for segment in self._segments:
            segment.unlink(missing_ok=True)

    def _conclude(self, code: int, memory_was_short: bool) -> int:
        index, peak = POSITION.unpack_from(self._shared, 0)
        result = request_file(read_request(Path(self._paths[int(index)])), "child.json")
        if not result.exists():
            outcome, message = "fault", f"the stage ended with exit code {code} and no result"
            if code < 0:
                message = f"the stage was killed by signal {-code} ({signal.Signals(-code).name})"
            if code == -signal.SIGKILL and memory_was_short:
                outcome, message = "oom", "the kernel killed the stage: out of memory"
            if code == DISK_FULL:
                outcome, message = UNSAID
            try:
                write_json(result, {"outcome": outcome, "message": message, "peak_memory_bytes": peak})
            except OSError as error:
                return DISK_FULL if code == DISK_FULL or is_full(error) else 1
        return 0 if code == 0 else 1


def main(paths: Sequence[str]) -> int:
    """Runs the requests (JSON files) in turn in one child process; returns 0 if the last one ran."""
    shared = mmap.mmap(-1, POSITION.size)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    child = os.fork()
    if child:
        return Guard(child, paths, shared).run()
    end_with_parent()
    if os.getppid() != guard:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = work(paths, shared)
    if "RAY_ADDRESS" in os.environ:
        return code  # a cluster of others wants to be left properly
    # The results are on disk; taking Ray and vLLM down takes seconds, and the guard ends what is left of them.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

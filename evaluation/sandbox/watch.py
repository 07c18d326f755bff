"""Forking jailed processes and watching them: their streams, their questions, their end, what they use.

The keeper's loop (`jail`). Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from evaluation.sandbox import rights, usage

TICK_SECONDS = 0.05
WORK, TESTS, INPUT = "work", "tests", "input"


class Stopped(Exception):
    """A limit was broken: its name."""


class Process:
    """A jailed process and the keeper's ends of its streams."""

    def __init__(self, pid: int, link: socket.socket, streams: tuple[int, int], listener: int):
        self.pid, self.link, self.listener = pid, link, listener
        self.streams = {streams[0]: bytearray(), streams[1]: bytearray()}
        self.output, self.errors = (self.streams[number] for number in streams)
        self.handle = os.pidfd_open(pid)
        self.incoming, self.outgoing = bytearray(), bytearray()
        self.forks = 0
        self.status: int | None = None
        self.used = 0.0


class Watcher:
    """What is forked, and the loop that watches it. folder: of WORK, TESTS and INPUT; gone: called at the end of the
    parent's stream. Gives up the keeper's own rights, but not those to watch and kill what it forks."""

    def __init__(self, parent: socket.socket, gone: Callable[[], None], folder: str, limits: dict[str, Any]):
        self._limits, self._folder = limits, folder
        self._selector = selectors.DefaultSelector()
        self._processes: list[Process] = []
        self._idle = 0.0
        self._allowed = math.inf
        self._inspected = time.monotonic()
        folders = [os.path.join(folder, name) for name in (WORK, TESTS, INPUT)]
        for each in folders:
            os.mkdir(each, 0o700)
        rights.limit_resources(limits)
        self._rules = rights.file_rules(folders[0], folders[2])
        self._test_rules = rights.file_rules(folders[1], folders[2])
        for forks in (False, True):
            rights.call_filter(forks=forks)
        if os.geteuid() == 0:
            rights.become_nobody([folder, *folders])
        rights.check(rights.libc.prctl(rights.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
        rights.check(rights.libc.prctl(rights.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        self._null = os.open("/dev/null", os.O_RDONLY)
        os.chdir(folders[0])
        self._selector.register(parent, selectors.EVENT_READ, gone)

    def fork(
        self,
        body: Callable[[socket.socket, list[int]], None],
        stdin: int,
        *,
        rules: int | None = None,
        keep: tuple[int, ...] = (),
        forks: bool = False,
        cpu_seconds: int | None = None,
        hard: int | None = None,
    ) -> Process:
        ours, theirs = socket.socketpair()
        (output, output_end), (errors, errors_end) = os.pipe(), os.pipe()
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                rights.check(rights.libc.prctl(rights.PR_SET_PDEATHSIG, rights.SIGKILL, 0, 0, 0), "prctl")
                if os.getppid() != keeper:
                    os._exit(1)
                for number, stream in enumerate((stdin, output_end, errors_end)):
                    os.dup2(stream, number)
                high = [fcntl.fcntl(one, fcntl.F_DUPFD, 48) for one in (theirs.fileno(), *keep)]
                rights.restrict_files(self._rules if rules is None else rules)
                kept = [os.dup2(one, 3 + place) for place, one in enumerate(high)]
                os.closerange(3 + len(kept), rights.OPEN_FILES)
                link = socket.socket(fileno=kept[0])
                rights.limit_processor(cpu_seconds or self._limits["cpu_seconds"], hard)
                rights.restrict_calls(link, forks=forks)
                gc.unfreeze()
                body(link, kept[1:])
            except BaseException as error:
                os.write(2, str(error).encode(errors="replace")[:1000])
            finally:
                os._exit(1)
        theirs.close()
        os.close(output_end)
        os.close(errors_end)
        word, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if word != b"K" or ours.recv(1) != b"R":
            reason = os.read(errors, 1000).decode(errors="replace")
            raise OSError(errno.EPERM, reason or "the jailed process ended before it had given up its rights")
        process = Process(pid, ours, (output, errors), descriptors[0])
        self._processes.append(process)
        self._watch(process)
        self._idle = 0.0
        return process

    def _watch(self, process: Process) -> None:
        process.link.setblocking(False)
        register = self._selector.register
        self.select_link(process)
        for stream in process.streams:
            os.set_blocking(stream, False)
            register(stream, selectors.EVENT_READ, lambda stream=stream: self._read(process, stream))
        register(process.listener, selectors.EVENT_READ, lambda: self._decide(process))
        register(process.handle, selectors.EVENT_READ, lambda: self._reap(process))

    def select_link(self, process: Process) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.outgoing else 0)
        handler = lambda: self._exchange(process)  # noqa: E731
        if process.link in self._selector.get_map():
            self._selector.modify(process.link, events, handler)
        else:
            self._selector.register(process.link, events, handler)

    def _forget(self, stream: Any) -> None:
        if stream in self._selector.get_map():
            self._selector.unregister(stream)

    def _exchange(self, process: Process) -> None:
        try:
            if process.outgoing:
                del process.outgoing[: process.link.send(process.outgoing[: 1 << 16])]
                if not process.outgoing:
                    self.select_link(process)
        except BlockingIOError:
            pass
        except OSError:
            process.outgoing.clear()
            self.select_link(process)
        try:
            data = process.link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(process.link)
        process.incoming += data
        if len(process.incoming) > 2 * self._limits["value_bytes"]:
            raise Stopped("output")

    def _read(self, process: Process, stream: int) -> None:
        try:
            data = os.read(stream, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._forget(stream)
        process.streams[stream] += data
        if len(process.output) + len(process.errors) > self._limits["output_bytes"]:
            raise Stopped("output")

    def _decide(self, process: Process) -> None:
        try:
            number, caller, flags = rights.asked(process.listener)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # killed while it asked
                self._forget(process.listener)
            return
        if flags in rights.THREAD_FLAGS:
            yes = usage.threads(caller) < self._limits["threads"]
        else:
            yes = process.forks > 0
            process.forks -= 1
        rights.answer(process.listener, number, yes)

    def _reap(self, process: Process) -> None:
        self._forget(process.handle)
        _, status, used = os.wait4(process.pid, 0)
        for stream in process.streams:  # what it has left there
            while stream in self._selector.get_map():
                before = len(process.streams[stream])
                self._read(process, stream)
                if len(process.streams[stream]) == before:
                    self._forget(stream)
        while process.link in self._selector.get_map():
            before = len(process.incoming)
            self._exchange(process)
            if len(process.incoming) == before:
                self._forget(process.link)
        self._forget(process.listener)
        process.used = used.ru_utime + used.ru_stime
        process.status = os.waitstatus_to_exitcode(status)

    def wait(self, done: Callable[[], bool], cpu_seconds: float = math.inf) -> str | None:
        """Watch until `done`; the limit that was broken before. cpu_seconds: of all that was forked, from now on, for
        a program that does not hear the signal of its own limit."""
        self._idle = 0.0
        self._allowed = math.inf
        if cpu_seconds < math.inf:
            self._allowed = cpu_seconds + sum(map(usage.processor_seconds, self._families()))
        try:
            while not done():
                for key, _ in self._selector.select(TICK_SECONDS):
                    if key.fileobj in self._selector.get_map():
                        key.data()
                now = time.monotonic()
                if now - self._inspected >= TICK_SECONDS:
                    self._inspect(min(now - self._inspected, 2 * TICK_SECONDS))
                    self._inspected = time.monotonic()
        except Stopped as stopped:
            return str(stopped)
        return None

    def _families(self) -> list[int]:
        return [pid for process in self._processes if process.status is None for pid in usage.family(process.pid)]

    def _inspect(self, seconds: float) -> None:
        """Count the time in which nothing runs, and the files. A machine that is busy elsewhere counts for nothing."""
        families = self._families()
        if sum(map(usage.processor_seconds, families)) > self._allowed:
            raise Stopped("timeout")
        if not any(usage.busy(pid) for pid in families):
            self._idle += seconds
        if self._idle > self._limits["seconds"]:
            raise Stopped("timeout")
        held: dict[tuple[int, int], int] = {}
        for pid in families:
            held.update(usage.unlinked(pid))
        total = sum(held.values())
        for name in (WORK, TESTS):
            listed = usage.below(os.path.join(self._folder, name))
            total += self._limits["disk_bytes"] + 1 if listed < 0 else listed
        if total > self._limits["disk_bytes"]:
            raise Stopped("disk")

    def clear(self) -> None:
        """Kill and forget everything that was forked."""
        for process in self._processes:
            for pid in usage.family(process.pid) if process.status is None else ():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for stream in (process.link, process.listener, process.handle, *process.streams):
                self._forget(stream)
            process.link.close()
            for stream in (process.listener, process.handle, *process.streams):
                os.close(stream)
        self._processes.clear()
        while True:  # theirs too: orphans become the keeper's
            for pid in usage.family(os.getpid())[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

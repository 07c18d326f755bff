"""The keeper of one program: gives up its rights, forks what runs the program, watches it, reports. Trusted itself.

Run by `sandbox.Sandbox` in a fresh interpreter, which has never held a right answer. It answers one request at a time:

    I  the program and its limits                      R ready, or N and why the rules cannot be enforced
    S  standard input                                  S how it ended, O output, E error output
    L  load the program, its functions will be called  L, F and the exception, or D
    C  their number, lists of arguments, for one copy          V, X or U for each call, then E; or D
    T  the text of a test that calls it                P and the verdict, or D

D is how a process ended, or which limit it broke. The end of the parent's stream ends the keeper and all it forked.
"""

from __future__ import annotations

import builtins
import gc
import json
import math
import os
import signal
import socket
import sys
from typing import Any

from evaluation.sandbox import guest, usage
from evaluation.sandbox.frames import Garbage, frame, receive, take
from evaluation.sandbox.remote import check, serve
from evaluation.sandbox.watch import INPUT, TESTS, WORK, Process, Watcher

# Of the processor time of a call: what all calls of a test text may take, and the copying of a program for its cases.
HARD_FACTOR = 10
REQUEST_BYTES = 1 << 30


class Keeper(Watcher):
    """Answers requests about one program."""

    def __init__(self, parent: socket.socket, request: dict[str, Any]):
        self._program: str = request["program"]
        self._loaded: Process | None = None
        self._peer: socket.socket | None = None
        self._entries: frozenset[str] = frozenset()
        for name in request["preload"]:
            __import__(name)
        self._fallback = guest.imported()
        super().__init__(parent, lambda: os.killpg(0, signal.SIGKILL), request["folder"], request["limits"])
        gc.collect()
        gc.freeze()

    def run(self, stdin: bytes) -> list[bytes]:
        """The program from start to end with this standard input."""
        path = os.path.join(self._folder, INPUT, "stdin")
        with open(path, "wb") as file:
            file.write(stdin)
        source = os.open(path, os.O_RDONLY)
        process = self.fork(lambda link, _: guest.run(link, self._program, self._fallback), source)
        os.close(source)
        limit = self.wait(lambda: process.status is not None)
        try:
            outcome = take(process.incoming, 4096)
        except Garbage:
            outcome = None
        report = {**self._ended(process, limit), "outcome": _text(outcome[1]) if outcome else ""}
        replies = [
            frame(b"S", json.dumps(report).encode()),
            frame(b"O", bytes(process.output[: self._limits["output_bytes"]])),
            frame(b"E", bytes(process.errors[: self._limits["output_bytes"]])),
        ]
        self.clear()
        if not self._tidy():
            report["limit"] = report["limit"] or "disk"
            replies[0] = frame(b"S", json.dumps(report).encode())
        return replies

    def load(self, request: dict[str, Any]) -> list[bytes]:
        """Run the program once; its functions are then called by cases or by a test."""
        request["program"] = self._program
        if request["how"] == "plain":
            self._fallback = dict(vars(builtins))
        ours = None
        keep: tuple[int, ...] = ()
        if request["peer"]:
            ours, theirs = socket.socketpair()
            keep = (theirs.fileno(),)
        seconds = self._limits["cpu_seconds"]

        def body(link: socket.socket, kept: list[int]) -> None:
            program = guest.load(link, request, self._fallback)
            if kept:
                serve(socket.socket(fileno=kept[0]), program, seconds)
            guest.serve_cases(link, program, request["entry"], seconds)

        process = self.fork(body, self._null, keep=keep, forks=not keep, hard=HARD_FACTOR * seconds)
        if ours is not None:
            theirs.close()
            self._peer = ours
        replies = self._until(process, last=b"LF", cpu_seconds=seconds + 1)
        if replies[-1][:1] == b"L":
            self._loaded = process
            self._entries = frozenset(os.listdir(os.path.join(self._folder, WORK)))
        return replies

    def call(self, content: bytes) -> list[bytes]:
        """The calls of one case, in one copy of the loaded program. content: how many they are, and they."""
        process = self._loaded
        if process is None:
            return [self._end(None, None)]
        if usage.family(process.pid) != [process.pid]:  # a copy of its own has outlived a case
            return [self._end(process, None)]
        number, _, content = content.partition(b" ")
        process.forks = 1
        process.outgoing += frame(b"C", content)
        self.select_link(process)
        seconds = int(number) * self._limits["cpu_seconds"] + 1
        replies = self._until(process, last=b"E", before=b"VXU", cpu_seconds=seconds)
        process.forks = 0
        return replies if self._tidy() else [self._end(process, "disk")]

    def test(self, request: dict[str, Any]) -> list[bytes]:
        """A test text, in a process of its own that calls the loaded program."""
        assert self._peer is not None
        request["value_bytes"] = self._limits["value_bytes"]

        def body(link: socket.socket, kept: list[int]) -> None:
            os.chdir(os.path.join(self._folder, TESTS))
            check(link, socket.socket(fileno=kept[0]), request, self._fallback)

        hard = HARD_FACTOR * self._limits["cpu_seconds"]
        process = self.fork(
            body, self._null, keep=(self._peer.fileno(),), rules=self._test_rules, cpu_seconds=hard, hard=hard + 1
        )
        self._peer.close()
        return self._until(process, last=b"P")

    def _until(
        self, process: Process, *, last: bytes, before: bytes = b"", cpu_seconds: float = math.inf
    ) -> list[bytes]:
        """Messages of a process of the kinds `before` up to one of the kinds `last`; D instead of that if it ended,
        broke a limit or sent anything else. cpu_seconds: as in `wait`."""
        found: list[tuple[bytes, bytes]] = []

        def received() -> bool:
            while (message := take(process.incoming, self._limits["value_bytes"])) is not None:
                if message[0] not in before + last:
                    raise Garbage("a message out of turn")
                found.append(message)
                if message[0] in last:
                    return True
            return process.status is not None

        for each in self._processes:
            each.output.clear()
            each.errors.clear()
        limit = None
        try:
            limit = self.wait(received, cpu_seconds)
        except Garbage:
            limit = "output"
            found.clear()
        if found and found[-1][0] in last and limit is None:
            return [frame(*message) for message in found]
        return [*(frame(*message) for message in found if message[0] in before), self._end(process, limit)]

    def _end(self, process: Process | None, limit: str | None) -> bytes:
        """The message D; nothing runs after it."""
        about = self._ended(process, limit) if process else {"limit": limit, "status": None, "errors": ""}
        self.clear()
        self._loaded = None
        return frame(b"D", json.dumps(about).encode())

    def _tidy(self) -> bool:
        """Remove what a case has left in the folder; whether that went well."""
        folder = os.path.join(self._folder, WORK)
        try:
            if frozenset(os.listdir(folder)) != self._entries:
                usage.empty(folder, self._entries)
        except (OSError, RecursionError):
            return False
        return True

    def _ended(self, process: Process, limit: str | None) -> dict[str, Any]:
        """What became of a process: the limit that it broke, and its exit status (negative: the signal)."""
        status = process.status
        if limit is None and status in (-signal.SIGXCPU, -signal.SIGKILL):
            over = status == -signal.SIGXCPU or process.used >= self._limits["cpu_seconds"]
            limit = "timeout" if over else "memory"
        if limit is None and status == -signal.SIGXFSZ:
            limit = "disk"
        return {"limit": limit, "status": status, "errors": _text(bytes(process.errors[-500:]))}


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def main() -> None:
    """Serve the parent on the descriptor that the command line names."""
    parent = socket.socket(fileno=int(sys.argv[1]))
    try:
        keeper = Keeper(parent, json.loads(receive(parent, REQUEST_BYTES)[1]))
        parent.sendall(frame(b"R"))
        while True:
            kind, content = receive(parent, REQUEST_BYTES)
            if kind == b"S":
                replies = keeper.run(content)
            elif kind == b"C":
                replies = keeper.call(content)
            else:
                replies = {b"L": keeper.load, b"T": keeper.test}[kind](json.loads(content))
            parent.sendall(b"".join(replies))
    except EOFError:
        pass
    except Exception as error:
        parent.sendall(frame(b"N", f"{error}".encode(errors="replace")))
    os.killpg(0, signal.SIGKILL)

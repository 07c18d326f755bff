"""`Sandbox`: one program behind a keeper (`jail`), asked from outside; `run_code`: one program run once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError
from evaluation.sandbox.frames import frame, receive
from evaluation.sandbox.usage import remove

ROOT = Path(__file__).resolve().parents[2]
START = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from evaluation.sandbox.jail import main; del sys.path[0]; main()"
)
# Libraries that are slow to import: the keeper does it once for all cases of a program that names them.
PRELOADED = ("numpy",)
# Beyond what the keeper allows by itself, for a machine on which it hardly runs.
PATIENCE = 20
MESSAGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Bounds of one program. seconds: in which nothing of it runs (a wait, a deadlock), never counted while it waits
    for a processor; cpu_seconds: whole seconds of processor time, of every run or call by itself, no more than
    `seconds`; memory_bytes: address space of a process; output_bytes: of standard output and error together;
    value_bytes: of what a function returns; disk_bytes: in its folder, files that no folder lists any more included;
    threads: of a process."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 2 << 30
    output_bytes: int = 16 << 20
    value_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    threads: int = 64


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    status: `passed` (ran to its end, as it says itself: no judgement), `failed` (raised, or left early), `timeout`,
    `memory`, `output`, `disk` (went over that limit). output: what it printed (then what it printed as errors), up to
    the limit, undecodable bytes replaced. error: the exception.
    """

    status: Literal["passed", "failed", "timeout", "memory", "output", "disk"]
    output: str
    error: str


@dataclass(frozen=True)
class Ended:
    """What a judge sees of a run. limit: the broken one, or None; status: of the process, negative for a signal;
    output, errors: bytes of the two streams; outcome: what the process says about itself, which proves nothing."""

    limit: str | None
    status: int | None
    output: bytes
    errors: bytes
    outcome: tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """What became of a call. kind: `value`, `raised`, `unserialisable`, `timeout`, `memory`, `output`, `disk` or
    `ended`; content: the bytes of a value (for `values.decode`), or what else there is to say as text."""

    kind: str
    content: bytes = b""


@dataclass(frozen=True)
class Tested:
    """The verdict of a test text: `passed`, `failed` or `ungraded`, and why."""

    verdict: Literal["passed", "failed", "ungraded"]
    reason: str


class Sandbox:
    """A program in a keeper of its own, an interpreter that holds nothing but it; a context manager.

    Raises ConfigError without run_generated_code and RuntimeError, with the reason, where the kernel cannot enforce the
    rules. mentions: other text whose libraries are to be at hand, a test's.
    """

    def __init__(self, program: str, limits: Limits | None = None, *, run_generated_code: bool, mentions: str = ""):
        if not run_generated_code:
            raise ConfigError("run_code: set eval.run_generated_code=true to execute programs that a model wrote")
        self._limits = limits or Limits()
        self._cpu_seconds = min(self._limits.cpu_seconds, max(1, math.ceil(self._limits.seconds)))
        self._folder = tempfile.mkdtemp(prefix="sandbox-")
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-c", START, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd=self._folder,
                start_new_session=True,
                env=_environment(self._folder),
            )
        except BaseException:
            ours.close()
            remove(self._folder)
            raise
        finally:
            theirs.close()
        self._link = ours
        try:
            text = program + mentions
            request = {
                # Half of a surrogate pair cannot be sent, nor compiled.
                "program": program.encode(errors="replace").decode(),
                "limits": {**asdict(self._limits), "cpu_seconds": self._cpu_seconds},
                "folder": self._folder,
                "preload": [name for name in PRELOADED if name in text],
            }
            self._ask(b"I", json.dumps(request).encode(), b"R")
        except BaseException:
            self.close()
            raise

    def run(self, stdin: str) -> Ended:
        """The program, started anew in an empty folder with this standard input."""
        about, output, errors = self._ask(b"S", stdin.encode(errors="replace"), b"E")
        found = json.loads(about[1])
        return Ended(found["limit"], found["status"], output[1], errors[1], _outcome(found["outcome"]))

    def load(
        self, entry: str, prefix: str = "", *, tested: bool = False, recursion: bool = True, plain: bool = False
    ) -> Answer:
        """Run the program once, for calls of its functions; `value`, or why not.

        entry: the function that will be called. prefix: what the model was given, whose helpers the program may use.
        tested: by `test`, else by `call`. recursion: with the depth that LiveCodeBench allows. plain: as Python runs
        it: nothing is imported for it, and what fails while it is loaded is not left out; tests alike. Else one that
        leaves or does not end, as its example of its use may, is loaded again, its definitions alone.
        """
        request = {"entry": entry, "prefix": prefix, "peer": tested, "recursion": recursion}
        for how in ("plain",) if plain else ("whole", "definitions"):
            (answer,) = self._ask(b"L", json.dumps({**request, "how": how}).encode(), b"LFD")
            if answer[0] != b"D":
                break
        return _answer(*answer)

    def call(self, calls: Sequence[Sequence[Any]]) -> list[Answer]:
        """The function called with each of these argument lists (JSON), one after another in one copy of the loaded
        program; as many answers, or fewer with the reason last."""
        *answers, (kind, content) = self._ask(b"C", f"{len(calls)} {json.dumps(calls)}".encode(), b"ED")
        found = [_answer(*answer) for answer in answers]
        if kind == b"D":
            found.append(_answer(kind, content))
        elif len(found) < len(calls):
            found.append(Answer({-signal.SIGXCPU: "timeout", -signal.SIGKILL: "memory"}.get(int(content), "ended")))
        return found[: len(calls)]

    def test(self, text: str, entry: str, prefix: str = "") -> Tested:
        """A test text run to its end in a process that calls the loaded program. prefix: as in `load`."""
        request = {"test": text, "entry": entry, "prefix": prefix}
        ((kind, content),) = self._ask(b"T", json.dumps(request).encode(), b"PD")
        if kind == b"D":
            return Tested("failed", _answer(kind, content).kind)
        verdict, reason = json.loads(content)
        return Tested(verdict, reason)

    def _ask(self, kind: bytes, content: bytes, last: bytes) -> list[tuple[bytes, bytes]]:
        """The messages that answer a request, up to one of the kinds `last`. Raises RuntimeError."""
        deadline = time.monotonic() + PATIENCE * (self._limits.seconds + 10 * self._limits.cpu_seconds) + 60
        found: list[tuple[bytes, bytes]] = []
        try:
            self._link.sendall(frame(kind, content))
            while not found or found[-1][0] not in last:
                if not select.select([self._link], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise RuntimeError("sandbox: no answer; is the machine overloaded?")
                found.append(receive(self._link, MESSAGE_BYTES))
                if found[-1][0] == b"N":
                    raise RuntimeError(f"sandbox: {found[-1][1].decode(errors='replace')}")
        except (EOFError, OSError) as error:
            raise RuntimeError(f"sandbox: its keeper ended: {error}") from None
        return found

    def close(self) -> None:
        """End everything and remove the folder."""
        self._link.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        remove(self._folder)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_code(program: str, *, run_generated_code: bool, stdin: str = "", limits: Limits | None = None) -> Execution:
    """Run a Python program with the rights of `rights`, in a temporary folder that is deleted afterwards.

    run_generated_code: must be True; nobody runs a model's code by accident. The status is the program's own word: a
    verdict compares its output or the values of its functions (`Sandbox`) from outside. Raises ConfigError without
    run_generated_code and RuntimeError, with the reason, where the kernel cannot enforce the rules.
    """
    with Sandbox(program, limits, run_generated_code=run_generated_code) as sandbox:
        ended = sandbox.run(stdin)
    text = (ended.output + ended.errors).decode(errors="replace")
    if ended.limit is not None:
        return Execution(ended.limit, text, "")  # type: ignore[arg-type]
    status, error = ended.outcome
    if status == "passed" and ended.status != 0:
        status, error = "failed", f"the process ended with status {ended.status}"
    return Execution(status, text.removesuffix(f"{error}\n") if error else text, error)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def check_sandbox() -> None:
    """Run an empty program. Raises ConfigError where this machine cannot enforce the rules: before anything is
    generated that could not be judged."""
    try:
        ended = run_code("pass", run_generated_code=True)
    except RuntimeError as error:
        raise ConfigError(
            f"run_generated_code: {error}; run it on Linux with Landlock (5.13) on x86_64 or aarch64, or leave out "
            "what the grader `code` judges"
        ) from None
    if ended.status != "passed":
        raise ConfigError(f"run_generated_code: an empty program does not run in the sandbox: {ended}")


def _environment(folder: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": f"{folder}/work",
        "TMPDIR": f"{folder}/work",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _outcome(text: str) -> tuple[str, str]:
    """What a process has said about itself: anything that is not as agreed is an early end."""
    try:
        status, error = json.loads(text)
        if status in ("passed", "failed", "memory") and isinstance(error, str):
            return status, error
    except (ValueError, TypeError):
        pass
    return "failed", "the program ended its process"


def _answer(kind: bytes, content: bytes) -> Answer:
    if kind == b"D":
        found = json.loads(content)
        return Answer(found["limit"] or "ended", found["errors"].encode())
    names = {b"V": "value", b"L": "value", b"X": "raised", b"F": "raised", b"U": "unserialisable"}
    return Answer(names.get(kind, "ended"), content)

"""`run_code`: one program in one jailed process, watched from outside."""

import json
import os
import pathlib
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError

JAIL = pathlib.Path(__file__).with_name("jail.py")
POLL_SECONDS = 0.1
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """Bounds of one program. seconds: wall time; cpu_seconds: whole seconds of CPU; memory_bytes: address space;
    output_bytes: of standard output and error together; disk_bytes: in the temporary folder."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    disk_bytes: int = 64 << 20


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    status: `passed` (ran to its end), `failed` (raised, or left early), `timeout`, `memory`, `output`, `disk` (went
    over that limit). output: what it printed, up to the limit, undecodable bytes replaced. error: the exception.
    """

    status: Literal["passed", "failed", "timeout", "memory", "output", "disk"]
    output: str
    error: str


def extract_code(response: str) -> str:
    """The last fenced Python block of a response, or the whole response without one."""
    blocks = FENCE.findall(response)
    return blocks[-1] if blocks else response


def run_code(program: str, *, run_generated_code: bool, stdin: str = "", limits: Limits | None = None) -> Execution:
    """Run a Python program with the rights of `jail.py`, in a temporary folder that is deleted afterwards.

    run_generated_code: must be True; nobody runs a model's code by accident. The sandbox guards the machine, not the
    score: a program that inspects its own process can still lie about its result. Raises ConfigError without
    run_generated_code and RuntimeError, with the reason, where the kernel cannot enforce the rules.
    """
    if not run_generated_code:
        raise ConfigError("run_code: set eval.run_generated_code=true to execute programs that a model wrote")
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        token = secrets.token_hex(16)
        with tempfile.TemporaryFile() as source:
            source.write(stdin.encode())
            source.seek(0)
            request_read, request_write = os.pipe()
            result_read, result_write = os.pipe()
            output_read, output_write = os.pipe()
            process = subprocess.Popen(
                [sys.executable, "-I", str(JAIL), str(request_read), str(result_write)],
                stdin=source,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(request_read, result_write),
                cwd=folder,
                start_new_session=True,
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": folder,
                    "TMPDIR": folder,
                    "LANG": "C.UTF-8",
                    "PYTHONHASHSEED": "0",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
            for descriptor in (request_read, result_write, output_write):
                os.close(descriptor)
            try:
                request = {"program": program, "token": token, "parent": os.getpid(), "limits": vars(limits)}
                with open(request_write, "w") as stream:
                    json.dump(request, stream)
                stopped, output, result = _watch(output_read, result_read, pathlib.Path(folder), limits)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
                os.close(result_read)
                os.close(output_read)
    text = output.decode(errors="replace")
    if stopped is not None:
        return Execution(stopped, text, "")
    try:
        verdict = json.loads(result)
    except ValueError:
        verdict = []
    if verdict[:1] == ["refused"]:
        raise RuntimeError(f"sandbox: {verdict[1]}")
    if len(verdict) != 3 or verdict[0] != token:
        if process.returncode == -signal.SIGXCPU:
            return Execution("timeout", text, "")
        if process.returncode == -signal.SIGXFSZ:
            return Execution("disk", text, "")
        return Execution("failed", text, "the program ended its process")
    return Execution(verdict[1], text, verdict[2])


def _watch(output_fd: int, result_fd: int, folder: pathlib.Path, limits: Limits):
    """Read both pipes until the process closes them or breaks a limit: (broken limit or None, output, result)."""
    deadline = time.monotonic() + limits.seconds
    read = {output_fd: bytearray(), result_fd: bytearray()}
    with selectors.DefaultSelector() as selector:
        selector.register(output_fd, selectors.EVENT_READ)
        selector.register(result_fd, selectors.EVENT_READ)
        while selector.get_map():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return "timeout", bytes(read[output_fd]), b""
            for key, _ in selector.select(min(POLL_SECONDS, remaining)):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                read[key.fd] += data
            if len(read[output_fd]) > limits.output_bytes or len(read[result_fd]) > 4096:
                return "output", bytes(read[output_fd][: limits.output_bytes]), b""
            if _size(folder) > limits.disk_bytes:
                return "disk", bytes(read[output_fd]), b""
    return None, bytes(read[output_fd]), bytes(read[result_fd])


def _size(folder: pathlib.Path) -> int:
    total = 0
    for root, directories, files in os.walk(folder):
        total += 4096 * (len(directories) + len(files))
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total

"""A job on its node: starts the guard of a child, follows its stages, publishes each one as it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynvml import NVMLError

from common.errors import ConfigError
from common.processes import end_attempt
from launch.execution.devices import wait_until_free
from launch.execution.environment import environment
from launch.execution.outcomes import DISK_FULL, UNSAID, judge_log
from launch.execution.requests import STOP
from launch.store import Corrupt, Full, LeaseLost, Store, StoreError
from launch.store.patience import patiently, read
from launch.store.places import attempt_file

if TYPE_CHECKING:
    from launch.graph.plan import Stage

LEAVE = 5.0  # seconds of run.grace that are kept for the driver to give back its leases and to end Ray
FREE_WITHIN = 60.0  # seconds that a device may take to give back the memory of processes that have ended


def supervise(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs a job (stages that share one child) on this node; publishes each stage as it ends.

    job: root, run, tag, stages [{stage, attempt, request, verify: [(directory, fingerprint, below)], flops}], cluster,
    temporary, cwd, timeout, silence, grace (seconds).
    Returns, per stage, {fingerprint, outcome, message, seconds, peak_memory_bytes, bytes, flops}; the outcomes are
    those of `launch.execution.outcomes`; `damaged`, where given, is the fingerprint of a damaged input, `traceback`
    what two faults have in common that repeat.
    """
    store = Store(job["root"])
    results: dict[str, dict[str, Any]] = {}

    def settle(entry: dict[str, Any], result: dict[str, Any]) -> None:
        stage = entry["stage"]
        result = {
            "fingerprint": stage.fingerprint,
            "message": "",
            "seconds": 0.0,
            "peak_memory_bytes": 0,
            "bytes": 0,
            "flops": entry["flops"],
            **result,
        }
        if result["outcome"] != "ok":
            shutil.rmtree(store.temporary(stage, entry["attempt"]), ignore_errors=True)
        results[stage.fingerprint] = result
        try:
            store.finish(stage, entry["attempt"], result)
        except (StoreError, OSError) as error:  # what is published stays published; a failure keeps its own reason
            if result["outcome"] not in ("ok", "disk", "config"):
                kind = "disk" if isinstance(error, Full) else result["outcome"]
                result |= {"outcome": kind, "message": f"{result['message']}; {error}".removeprefix("; ")}

    waiting = []
    for entry in job["stages"]:
        fingerprint = ""
        try:
            for directory, fingerprint, below in entry["verify"]:
                store.verify(Path(directory), fingerprint, below)
            waiting.append(entry)
        except Corrupt as error:
            settle(entry, {"outcome": "config", "message": str(error), "damaged": fingerprint})
        except (StoreError, OSError) as error:
            settle(entry, {"outcome": "fault", "message": f"an input cannot be read: {error}"})
    if waiting and (taken := _taken_devices(waiting[0]["stage"], job["cluster"])):
        for entry in waiting:
            settle(entry, taken)
        waiting = []
    if waiting:
        # the driver's directory is on this node if the driver is; Ray's sockets need a short path
        temporary = tempfile.mkdtemp(prefix="s", dir=job["temporary"] if os.path.isdir(job["temporary"]) else "/tmp")
        try:
            _Watch(job, store, waiting, settle).run(temporary)
        finally:
            end_attempt(job["tag"])
            shutil.rmtree(temporary, ignore_errors=True)
    return [results[entry["stage"].fingerprint] for entry in job["stages"]]


def _taken_devices(stage: Stage, cluster: str | None) -> dict[str, str] | None:
    """The result of a stage whose devices, which Ray gave to it alone, are still held by a process; None if free."""
    if stage.settings["platform"]["name"] != "gpu" or cluster is not None or stage.placement["gpus_per_node"] < 1:
        return None
    try:
        busy = wait_until_free(os.environ["CUDA_VISIBLE_DEVICES"].split(","), FREE_WITHIN)
    except NVMLError as error:
        message = f"NVIDIA's driver does not say whether the devices are free ({error}); install the driver"
        return {"outcome": "config", "message": message}
    if not busy:
        return None
    held = ", ".join(device.use for device in busy)
    return {"outcome": "fault", "message": f"{held} after {FREE_WITHIN:g} s; end the process that holds it"}


class _Watch:
    """Starts one child and follows it until its last stage is settled."""

    def __init__(
        self, job: dict[str, Any], store: Store, entries: list[dict[str, Any]], settle: Callable[..., None]
    ) -> None:
        self.job, self.store, self.settle = job, store, settle
        self.entries = entries
        self.begun = time.time()
        self.clock = time.monotonic()
        self.ending: tuple[str, str] | None = None  # why we end the child, if we do

    def run(self, temporary: str) -> None:
        job = self.job
        first = self.entries[0]["stage"]
        tracker = self.store.logs(first) / f"trackers-{first.kind}-{first.label}-{first.fingerprint[:8]}"
        verified = [directory for entry in self.entries for directory, _, below in entry["verify"] if not below]
        env = environment(job["tag"], first.settings, job["cluster"], temporary, tracker, verified)
        cwd = job["cwd"] if os.path.isdir(job["cwd"]) else None
        for entry in self.entries:  # made by the driver, on a node whose directories we may see late
            patiently(self.store.logs(entry["stage"]).mkdir, parents=True, exist_ok=True)
        with self._file(self.entries[0], "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "launch.execution.guard", *(str(entry["request"]) for entry in self.entries)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=env,
                cwd=cwd,
            )
        try:
            self._follow(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        end_attempt(job["tag"])
        self._collect()
        for entry in self.entries:
            result = {"outcome": "unstarted", "message": "another stage ended the shared process"}
            if self._file(entry, "log").exists():
                killed = ("fault", "the stage's guard was killed")
                if process.returncode == DISK_FULL:
                    killed = UNSAID
                outcome, message = self.ending or killed
                result = {"outcome": outcome, "message": message, "seconds": time.monotonic() - self.clock}
            self.settle(entry, result)

    def _file(self, entry: dict[str, Any], suffix: str) -> Path:
        return attempt_file(self.store.logs(entry["stage"]), entry["attempt"], suffix)

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Publishes what ends, until the child has ended or has to be killed."""
        job = self.job
        kill_at = float("inf")
        looked = sign_at = time.monotonic()
        sign: tuple[object, ...] = ()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                return
            self._collect()
            now = time.monotonic()
            if not self.entries:
                kill_at = min(kill_at, now + job["grace"])  # all is published; the child may still close its engine
            if now > kill_at:
                return
            if self.ending is not None or not self.entries or now - looked < 0.3:
                continue
            looked = now
            seen = self._signs()
            if seen != sign:
                sign, sign_at = seen, now
            if any(self._file(entry, STOP).exists() for entry in self.entries):
                self.ending = ("stopped", "stopped on request")
            elif now - self.clock > job["timeout"]:
                self.ending = ("timeout", f"it took more than run.timeout={job['timeout']:g} s")
            elif now - sign_at > job["silence"]:
                self.ending = ("hung", f"no progress made and no log line for run.silence={job['silence']:g} s")
            if self.ending is not None:
                process.send_signal(signal.SIGTERM)
                kept = min(LEAVE, job["grace"] / 2) if self.ending[0] == "stopped" else 0.0
                kill_at = now + job["grace"] - kept

    def _signs(self) -> tuple[object, ...]:
        """Changes whenever the stage in work shows life: it made progress, or a log of this child grew."""
        logs = [self._file(entry, "log") for entry in self.job["stages"]]
        progress = read(self.store.logs(self.entries[0]["stage"]) / "progress.json")
        counter = progress.get("counter") if isinstance(progress, dict) else None
        return (self.entries[0]["attempt"], counter, *map(_size, logs))

    def _collect(self) -> None:
        """Publishes every stage whose child has reported, in order."""
        while self.entries:
            entry = self.entries[0]
            result = read(self._file(entry, "child.json"))
            if result is None:
                return
            self.entries = self.entries[1:]
            elapsed = time.monotonic() - self.clock
            result.setdefault("seconds", elapsed)
            if result["outcome"] == "stopped" and self.ending is not None:
                result["outcome"], result["message"] = self.ending
            if result["outcome"] == "ok":
                result |= self._publish(entry, result)
            elif result["outcome"] == "fault":
                result |= _cause(result, self._file(entry, "log"))
            self.settle(entry, result)
            self.begun, self.clock = time.time(), time.monotonic()

    def _publish(self, entry: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        try:
            record = self.store.publish(
                entry["stage"],
                entry["attempt"],
                self.job["run"],
                started=self.begun,
                seconds=result["seconds"],
                peak_memory_bytes=result["peak_memory_bytes"],
            )
        except ConfigError as error:
            return {"outcome": "config", "message": str(error)}
        except Full as error:
            return {"outcome": "disk", "message": str(error)}
        except LeaseLost as error:
            return {"outcome": "lost", "message": str(error)}
        except StoreError as error:  # a file that may not be written
            return {"outcome": "config", "message": str(error)}
        except OSError as error:
            return {"outcome": "fault", "message": f"publishing: {error}"}
        return {"bytes": record.bytes}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _cause(result: dict[str, Any], log: Path) -> dict[str, Any]:
    """Class and message of a fault after a look at the log, where a process below the child says why it ended."""
    found = judge_log(log)
    if found is None:
        return {}
    outcome, reason = found
    own = result["message"]
    message = own if reason in own or own in reason else f"{reason} (then {own})"
    return {"outcome": outcome, "message": message}

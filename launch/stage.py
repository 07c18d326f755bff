"""One stage as a process: the child that calls the room's function, the guard above it, the supervisor that publishes.

    supervisor (in a Ray worker, on the stage's node)
      guard      leader of a new session; forks the child, adopts orphans, measures memory, ends what is left
        child    imports the room and calls run(settings, inputs, output, scratch, report)

The supervisor holds the guard's standard input open. When the supervisor dies, however it dies, the guard reads the end
of file and kills the tree; when the guard dies, the kernel kills the child, and the supervisor or the next driver kills
the rest by the attempt's name in their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import mmap
import os
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, get_args, get_origin

from launch.devices import wait_until_free
from launch.store import (
    ATTEMPT_VARIABLE,
    Corrupt,
    Full,
    LeaseLost,
    Store,
    end_processes,
    read_json,
    redact,
    shared_memory,
    write_json,
)

ROOT = Path(__file__).resolve().parent.parent
PRIVATE_RAY = {
    # Ray's switch for desktop systems: without it a private Ray replaces 127.0.0.1 by the machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray makes its workers nice by 15: one Ray in another would starve beside any other program.
    "RAY_worker_niceness": "0",
}
ROOMS = ("launch", "recipes", "data_prep", "sft_objectives", "rl_stage", "evaluation", "verl_cpu")
FREE_WITHIN = 60.0  # seconds that a device may take to give back the memory of processes that have ended
_POSITION = struct.Struct("qq")  # index of the request in work, peak bytes since it began
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "can't allocate memory", "bad_alloc", "cannot allocate memory")


class Stopped(BaseException):
    """SIGTERM arrived; not an Exception, so that a room's own handlers let it pass."""


# --- the child


def namespace(value: Any, annotation: Any = None) -> Any:
    """JSON as a tree of SimpleNamespace; what the schema types as a mapping stays a dict."""
    from launch.schema import Pretrain, Recipe, Section

    def section(of: Any) -> type[Section] | None:
        options = [of, *get_args(of)]
        return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)

    def build(value: Any, annotation: Any) -> Any:
        if isinstance(value, list):
            inner = next((arg for option in (annotation, *get_args(annotation)) for arg in get_args(option)), None)
            return [build(item, inner) for item in value]
        if not isinstance(value, dict):
            return value
        if dict in [get_origin(option) for option in (annotation, *get_args(annotation))]:
            return value
        kind = section(annotation)
        fields = {} if kind is None else {n: i.annotation for n, i in kind.model_fields.items()}
        return SimpleNamespace(**{name: build(item, fields.get(name)) for name, item in value.items()})

    if annotation is None and isinstance(value, dict):
        known = {name: info.annotation for name, info in Recipe.model_fields.items()} | {"pretrain": Pretrain}
        return SimpleNamespace(**{name: build(item, known.get(name)) for name, item in value.items()})
    return build(value, annotation)


class Reporter:
    """Progress and heartbeat of one attempt: writes `progress.json`, at most five times a second."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._path, self._attempt = path, attempt
        self._begun = time.monotonic()
        self._written = float("-inf")
        self._counter = 0

    def __call__(self, done: int, total: int, /, **metrics: float) -> None:
        """`done` of `total` units of work are finished; metrics are the latest values of what is worth watching."""
        self._counter += 1
        now = time.monotonic()
        if now - self._written < 0.2 and done < total:
            return
        self._written = now
        progress = {
            "attempt": self._attempt,
            "counter": self._counter,
            "done": int(done),
            "total": int(total),
            "seconds": round(now - self._begun, 3),
            "metrics": {name: float(value) for name, value in metrics.items()},
        }
        write_json(self._path, progress)


def check_rooms() -> None:
    """Refuses to work when a room was imported from somewhere else (the top-level names exist in other packages)."""
    for name in ROOMS:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file is not None and ROOT not in Path(file).resolve().parents:
            raise ValueError(f"package {name} was imported from {file}, not from {ROOT}: remove the other one")


def classify(error: BaseException) -> tuple[str, str]:
    """Class and one-line message of an exception: stopped, disk, oom, config (ValueError) or fault."""
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
    if any(isinstance(e, MemoryError) for e in chain) or any(sign in t for t in texts for sign in _OUT_OF_MEMORY):
        return "oom", message
    return ("config" if isinstance(error, ValueError) else "fault"), message


def model_inputs(inputs: Mapping[str, str], settings: Any, scratch: Path) -> dict[str, Path]:
    """The inputs as paths; a model from outside becomes a directory, the base one with `model.eos` as its EOS."""
    from data_prep.model_directory import model_directory

    found = {name: Path(path) for name, path in inputs.items()}
    model = getattr(settings, "model", None)
    for name, path in inputs.items():
        if model is not None and path == model.path:
            found[name] = model_directory(path, model.revision, model.eos, scratch / "model")
        elif model is not None and path in (model.teacher.path, model.checkpoint.path):
            revision = model.teacher.revision if path == model.teacher.path else model.checkpoint.revision
            found[name] = model_directory(path, revision, None, scratch / name)
    return found


def _call(request: dict[str, Any]) -> None:
    module, _, function = request["function"].partition(":")
    run: Callable[..., None] = getattr(importlib.import_module(module), function)
    check_rooms()
    settings = namespace(request["settings"])
    inputs = model_inputs(request["inputs"], settings, Path(request["scratch"]))
    report = Reporter(Path(request["logs"]) / "progress.json", request["attempt"])
    report(0, 1)
    # the request names the environment's variables, their values came with the process
    variables = request["settings"]["platform"]["env"]
    variables.update({name: os.environ[name] for name in variables if name in os.environ})
    run(settings, inputs, Path(request["output"]), Path(request["scratch"]), report)
    check_rooms()


def _work(paths: Sequence[str], shared: mmap.mmap) -> int:
    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    try:
        signal.signal(signal.SIGTERM, stop)
        for index, path in enumerate(paths):
            request = json.loads(Path(path).read_text())
            _POSITION.pack_into(shared, 0, index, 0)
            with open(_beside(request, "log"), "ab", buffering=0) as log:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            begun = time.monotonic()
            try:
                _call(request)
                outcome, message = "ok", ""
            except BaseException as error:
                traceback.print_exc()
                outcome, message = classify(error)
            sys.stdout.flush()
            sys.stderr.flush()
            peak = max(_POSITION.unpack_from(shared, 0)[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            seconds = time.monotonic() - begun
            result = {"outcome": outcome, "message": message, "seconds": seconds, "peak_memory_bytes": peak}
            write_json(_beside(request, "child.json"), result)
            if outcome not in ("ok", "config"):  # an engine shared with the next request may be broken
                return 1
        return 0
    except Stopped:
        return 1


def _beside(request: Mapping[str, Any], suffix: str) -> Path:
    return Path(request["logs"]) / f"attempt-{request['attempt']}.{suffix}"


# --- the guard


def _memory_kills() -> int:
    """How often the kernel has killed a process of this control group for memory."""
    with contextlib.suppress(OSError):
        for line in Path("/sys/fs/cgroup/memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _guard(child: int, paths: Sequence[str], shared: mmap.mmap) -> int:
    import psutil

    ours = psutil.Process()
    segments: set[Path] = set()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def forward(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward)
    kills = _memory_kills()

    def sample() -> None:
        total = 0
        tree = ours.children(recursive=True)
        for process in tree:
            with contextlib.suppress(psutil.Error, OSError):
                try:
                    total += process.memory_full_info().pss  # shared pages count once
                except (psutil.AccessDenied, AttributeError):
                    total += process.memory_info().rss
        segments.update(shared_memory(p.pid for p in tree))
        index, peak = _POSITION.unpack_from(shared, 0)
        if total > peak:
            _POSITION.pack_into(shared, 0, index, total)

    status: int | None = None
    interval, orphaned = 0.1, False
    while status is None and not orphaned:
        ready, _, _ = select.select([0, wake_read], [], [], interval)
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        if 0 in ready:
            orphaned = os.read(0, 4096) == b""
        with contextlib.suppress(ChildProcessError):
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                if waited[0] == child:
                    status = waited[1]
        if not ready and status is None:
            begun = time.process_time()
            sample()
            # adding up the pages of a dozen processes takes the kernel a while: at most a fiftieth of the time
            interval = max(min(1.0, interval * 1.5), 50 * (time.process_time() - begun))

    segments.update(shared_memory(p.pid for p in ours.children(recursive=True)))
    while left := ours.children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.5)
        with contextlib.suppress(ChildProcessError):
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                if waited[0] == child:
                    status = waited[1]
    for segment in segments:
        segment.unlink(missing_ok=True)
    if status is None or orphaned:
        return 1
    code = os.waitstatus_to_exitcode(status)
    index, peak = _POSITION.unpack_from(shared, 0)
    request = json.loads(Path(paths[int(index)]).read_text())
    if not _beside(request, "child.json").exists():
        outcome, message = "fault", f"the stage ended with exit code {code} and no result"
        if code < 0:
            message = f"the stage was killed by signal {-code} ({signal.Signals(-code).name})"
        if code == -signal.SIGKILL and _memory_kills() > kills:
            outcome, message = "oom", "the kernel killed the stage: out of memory"
        write_json(_beside(request, "child.json"), {"outcome": outcome, "message": message, "peak_memory_bytes": peak})
    return 0 if code == 0 else 1


def main(paths: Sequence[str]) -> int:
    """Runs the requests (JSON files) in turn in one child process; returns 0 if the last one ran."""
    shared = mmap.mmap(-1, _POSITION.size)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    child = os.fork()
    if child:
        return _guard(child, paths, shared)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = _work(paths, shared)
    if "RAY_ADDRESS" in os.environ:
        return code  # a cluster of others wants to be left properly
    # The results are on disk; taking Ray and vLLM down takes seconds, and the guard ends what is left of them.
    os._exit(code)


# --- the supervisor


def environment(tag: str, settings: Mapping[str, Any], cluster: str | None, temporary: str) -> dict[str, str]:
    """The environment of a stage. With `cluster` its own `ray.init()` joins that cluster, else it starts a private one.

    What Ray tells its workers is left out, or a private Ray would take itself for a part of the driver's.
    """
    keep = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN") if cluster else ()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name in keep}
    platform = settings["platform"]
    if platform["name"] == "cpu":
        env.pop("CUDA_VISIBLE_DEVICES", None)  # numbers of logical devices
        env["VERL_PLATFORM"] = "cpu"
    env.update(
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")])),
        PYTHONHASHSEED="0",
        PYTHONUNBUFFERED="1",
        TOKENIZERS_PARALLELISM="false",
        RAY_TMPDIR=temporary,
        OMP_NUM_THREADS=str(platform["threads"]),
    )
    env.update({"RAY_ADDRESS": cluster} if cluster else PRIVATE_RAY)
    env.update(platform["env"])
    env[ATTEMPT_VARIABLE] = tag
    return env


def request_of(stage: Any, attempt: int, store: Store, inputs: Mapping[str, Path], settings: Mapping[str, Any]) -> Path:
    """Writes `attempt-<n>.request.json` and returns its path; the environment's values stay out of it."""
    shown = dict(settings)
    shown["platform"] = redact(settings["platform"])
    request = {
        "stage": f"{stage.kind} {stage.label}",
        "fingerprint": stage.fingerprint,
        "function": stage.function,
        "settings": shown,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "output": str(store.temporary(stage, attempt)),
        "scratch": str(store.scratch(stage)),
        "logs": str(store.logs(stage)),
        "attempt": attempt,
    }
    path = _beside(request, "request.json")
    write_json(path, request)
    path.chmod(0o600)
    return path


def supervise(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs a job (stages that share one child) on this node; publishes each stage as it ends.

    job: root, run, tag, stages [{stage, attempt, request, verify: [(directory, fingerprint, below)], flops}], cluster,
    temporary, cwd, timeout, silence, grace (seconds).
    Returns, per stage, {fingerprint, outcome, message, seconds, peak_memory_bytes, bytes}; outcome is ok,
    config, disk, oom, fault, timeout, hung, stopped, lost (the lease) or unstarted; `damaged`, where given, is the
    fingerprint of the input that was found damaged.
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
        store.finish(stage, entry["attempt"], result)
        results[stage.fingerprint] = result

    waiting = []
    for entry in job["stages"]:
        fingerprint = ""
        try:
            for directory, fingerprint, below in entry["verify"]:
                store.verify(Path(directory), fingerprint, below)
            waiting.append(entry)
        except Corrupt as error:
            settle(entry, {"outcome": "config", "message": str(error), "damaged": fingerprint})
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
            end_processes(job["tag"])
            shutil.rmtree(temporary, ignore_errors=True)
    return [results[entry["stage"].fingerprint] for entry in job["stages"]]


def _taken_devices(stage: Any, cluster: str | None) -> dict[str, str] | None:
    """The result of a stage whose devices, which Ray gave to it alone, are still held by a process; None if free."""
    if stage.settings["platform"]["name"] != "gpu" or cluster is not None or stage.placement["gpus_per_node"] < 1:
        return None
    try:
        busy = wait_until_free(os.environ["CUDA_VISIBLE_DEVICES"].split(","), FREE_WITHIN)
    except (OSError, subprocess.SubprocessError) as error:
        message = f"nvidia-smi does not say whether the devices are free ({error}); install the NVIDIA driver's tools"
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
        env = environment(job["tag"], self.entries[0]["stage"].settings, job["cluster"], temporary)
        cwd = job["cwd"] if os.path.isdir(job["cwd"]) else None
        with open(_beside(self._request(self.entries[0]), "log"), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "launch.stage", *(str(entry["request"]) for entry in self.entries)],
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
        end_processes(job["tag"])
        self._collect()
        for entry in self.entries:
            result = {"outcome": "unstarted", "message": "another stage ended the shared process"}
            if _beside(self._request(entry), "log").exists():
                outcome, message = self.ending or ("fault", "the stage's guard was killed")
                result = {"outcome": outcome, "message": message, "seconds": time.monotonic() - self.clock}
            self.settle(entry, result)

    def _request(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {"logs": str(self.store.logs(entry["stage"])), "attempt": entry["attempt"]}

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
            if any(_beside(self._request(entry), "stop").exists() for entry in self.entries):
                self.ending = ("stopped", "stopped on request")
            elif now - self.clock > job["timeout"]:
                self.ending = ("timeout", f"it took more than run.timeout={job['timeout']:g} s")
            elif now - sign_at > job["silence"]:
                self.ending = ("hung", f"no progress and no log line for run.silence={job['silence']:g} s")
            if self.ending is not None:
                process.send_signal(signal.SIGTERM)
                kill_at = now + job["grace"]

    def _signs(self) -> tuple[object, ...]:
        """Changes whenever the stage in work shows life: its progress counter or the size of a log of this child."""
        logs = [_beside(self._request(entry), "log") for entry in self.job["stages"]]
        progress = read_json(self.store.logs(self.entries[0]["stage"]) / "progress.json")
        return (
            self.entries[0]["attempt"],
            None if progress is None else progress["counter"],
            *(log.stat().st_size if log.exists() else -1 for log in logs),
        )

    def _collect(self) -> None:
        """Publishes every stage whose child has reported, in order."""
        while self.entries:
            entry = self.entries[0]
            result = read_json(_beside(self._request(entry), "child.json"))
            if result is None:
                return
            self.entries = self.entries[1:]
            elapsed = time.monotonic() - self.clock
            result.setdefault("seconds", elapsed)
            if result["outcome"] == "stopped" and self.ending is not None:
                result["outcome"], result["message"] = self.ending
            if result["outcome"] == "ok":
                result |= self._publish(entry, result)
            elif result["outcome"] == "fault" and self._log_says_out_of_memory(entry):
                result["outcome"] = "oom"
            self.settle(entry, result)
            self.begun, self.clock = time.time(), time.monotonic()

    def _log_says_out_of_memory(self, entry: dict[str, Any]) -> bool:
        """A process below the child ran out of memory, and the child only saw it end."""
        log = _beside(self._request(entry), "log")
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            tail = file.read().decode(errors="replace").lower()
            return "cuda out of memory" in tail or "outofmemoryerror" in tail
        return False

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
        except ValueError as error:
            return {"outcome": "config", "message": str(error)}
        except Full as error:
            return {"outcome": "disk", "message": str(error)}
        except LeaseLost as error:
            return {"outcome": "lost", "message": str(error)}
        return {"bytes": record.bytes}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

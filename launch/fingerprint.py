"""Identity of values and of outside files."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import file_digest, read_json, text_digest, write_json

MEMORY = ".hashes.json"  # in a store: hashes of outside files

# What of a model's directory is the model: weights, configuration, tokenizer, chat templates, its own code.
MODEL_FILES = (
    "*.safetensors",
    "*.bin",
    "*.gguf",
    "*.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.py",
    "additional_chat_templates/*.jinja",
)


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
        known = None if memory is None else read_json(memory)
        self._known: dict[str, str] = known if isinstance(known, dict) else {}

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
        return self._all(root, files)

    def model(self, path: str | os.PathLike[str]) -> str:
        """Hex digest of a model's directory: names and bytes of `MODEL_FILES`; a README or a log is no part of it.

        Raises ConfigError where the directory holds none.
        """
        root = Path(path)
        files = sorted({file for kind in MODEL_FILES for file in root.glob(kind) if file.is_file()})
        if not files:
            raise ConfigError(f"{path}: holds no model; name a Hugging Face directory with config.json and weights")
        return self._all(root, files)

    def outside(self, path: Path, *, model: bool) -> str:
        """Hex digest of an input from outside: of a `model`'s directory what `model` counts, else of all its bytes."""
        return self.model(path) if model and path.is_dir() else self(path)

    def _all(self, root: Path, files: list[Path]) -> str:
        return fingerprint([[file.relative_to(root).as_posix(), self._file(file)] for file in files])

    def _file(self, path: Path) -> str:
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_digest(path)
            if self._memory is not None:
                with contextlib.suppress(OSError):  # a store that cannot be written to can still be looked at
                    self._memory.parent.mkdir(parents=True, exist_ok=True)
                    write_json(self._memory, self._known)
        return self._known[key]


def verify_outside(paths: Mapping[str, str], digests: Mapping[str, str], models: Container[str], memory: Path) -> None:
    """Compares inputs from outside with what they were when the stage was planned; only changed files are read.

    Args:
        paths: input -> where it lies.
        digests: input -> its hash when planned, of those that come from outside.
        models: the inputs that are models.
        memory: JSON file that remembers the hashes of outside files.

    Raises:
        ConfigError: one that is not what it was, or is gone.
    """
    hasher = PathHasher(memory)
    for name, digest in digests.items():
        path = Path(paths[name])
        if not path.exists():
            raise ConfigError(f"input {name}: {path} is gone since this run was planned; bring it back")
        if hasher.outside(path, model=name in models) != digest:
            raise ConfigError(
                f"input {name}: {path} has changed since this run was planned; run the same command again, which makes "
                "anew what depends on it"
            )

"""Identity of what a stage reads from outside the store."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from common.errors import ConfigError
from launch.stages.contract import Outside

_FILES = (".jsonl", ".parquet", ".json")


class OutsideIdentities:
    """Remembers the identity of each path; `hash_path` gives that of a local one."""

    def __init__(self, hash_path: Callable[[str], str]) -> None:
        self._hash_path = hash_path
        self._known: dict[tuple[str, str | None], str] = {}

    def __call__(self, given: Outside) -> str:
        """Of a local path its bytes, of a hub name itself and its revision. Raises ConfigError for neither."""
        key = (given.path, given.revision)
        if key not in self._known:
            path = Path(given.path).expanduser()
            if path.exists():
                self._known[key] = self._hash_path(str(path))
            elif is_hub_name(given.path):
                self._known[key] = f"hub:{given.path}@{given.revision}"
            else:
                raise ConfigError(
                    f"{given.field}={given.path}: no such file or directory; give an existing path or a Hugging Face "
                    "name"
                )
        return self._known[key]


def is_hub_name(path: str) -> bool:
    """Whether a text could be the name of a repository on the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None and not path.endswith(_FILES)

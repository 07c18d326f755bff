"""Identity of what a stage reads from outside the store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from launch.fingerprint import PathHasher
from launch.graph.hub import commit_of, is_commit, is_offline
from launch.stages.contract import Outside

_FILES = (".jsonl", ".parquet", ".json", ".csv", ".arrow", ".gz", ".zst", ".txt", ".jinja")


@dataclass(frozen=True)
class Known:
    """What is known of an outside input when planned.

    identity: goes into fingerprints. path: where it lies, or its hub name. digest: of a local path the hash of its
    bytes, else "". revision: of a hub name its commit, or the recipe's revision where the commit is not known.
    """

    identity: str
    path: str
    digest: str = ""
    revision: str | None = None


class OutsideIdentities:
    """Remembers the identity of each path; `hash_path` gives that of a local one."""

    def __init__(self, hash_path: PathHasher) -> None:
        self._hash_path = hash_path
        self._known: dict[tuple[str, str | None, bool, bool], Known] = {}

    def __call__(self, given: Outside, env: Mapping[str, str], *, pinned: bool) -> Known:
        """Of a local path its bytes, of a hub name itself and its commit.

        Args:
            env: the recipe's `platform.env`, which may forbid the hub.
            pinned: whether a hub name needs a commit of its own (`run.pinned`).

        Raises:
            ConfigError: there is no such path and it is no hub name, or one without a commit is refused.
        """
        offline = is_offline(env)
        key = (given.path, given.revision, offline, given.model)
        if key not in self._known:
            self._known[key] = self._look(given, offline)
        found = self._known[key]
        if pinned and not found.digest and not is_commit(given.revision):
            known = f" (now {found.revision})" if is_commit(found.revision) else ""
            where = given.revision_field or f"the revision of {given.field}"
            raise ConfigError(
                f"{given.field}={given.path}: run.pinned=true takes a hub name with its commit only; set {where} to one"
                + known
            )
        return found

    def _look(self, given: Outside, offline: bool) -> Known:
        path = Path(given.path).expanduser()
        if path.exists():
            digest = self._hash_path.outside(path, model=given.model)
            return Known(digest, str(path), digest)
        hub = is_hub_name(given.path)
        if given.local and hub and "/" in given.path:
            raise ConfigError(
                f"{given.field}={given.path}: no such file; a data set of the hub is a source of its own, such as "
                f"data.sft=[{{source: hub, path: {given.path}, split: train}}]"
            )
        if given.local or not hub:
            what = "an existing path" if given.local else "an existing path or a Hugging Face name"
            raise ConfigError(f"{given.field}={given.path}: no such file or directory; give {what}")
        revision = given.revision
        if given.model:
            revision = commit_of(given.path, revision, offline, given.field) or revision
        return Known(f"hub:{given.path}@{revision}", given.path, revision=revision)


def is_hub_name(path: str) -> bool:
    """Whether a text could be the name of a repository on the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None and not path.endswith(_FILES)

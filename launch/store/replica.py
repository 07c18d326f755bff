"""A second home of artifacts in an object store (any fsspec URL): what one cluster made, another need not make again.

Claims, takeovers and work in progress need a POSIX file system and stay in `run.root`. A replica only holds published
artifacts, at the same addresses. Its `record.json` is the commit marker: it is written after every other file, so an
upload that was cut off is not an artifact, and repeating it is safe, as equal fingerprints have equal addresses.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from common.files import file_digest
from launch.store.errors import Corrupt, StoreError
from launch.store.patience import again
from launch.store.records import RECORD, Record
from launch.store.store import Store

if TYPE_CHECKING:
    from launch.graph.plan import Stage

TRANSFERS = 8  # files at once
TRIES = 5  # of one request
FIRST_PAUSE = 0.2  # seconds; doubles


class Cancelled(Exception):
    """The run ends; the next one copies again."""


def _never() -> bool:
    return False


class Replica:
    """Artifacts below an fsspec URL (s3://bucket/runs, gs://..., file:///...)."""

    def __init__(self, url: str) -> None:
        """Raises StoreError if the URL's protocol is unknown or its driver is not installed."""
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"run.replica={url}: {error}; name a URL that fsspec reads, e.g. s3://bucket/runs"
            ) from None
        self.url = url

    def _ask(self, what: str, *arguments: Any, **named: Any) -> Any:
        """A request to the object store, again with growing pauses where it fails for any reason but absence."""
        request = partial(getattr(self._files, what), *arguments, **named)
        # each object store's driver has its own errors
        return again(request, lambda e: not isinstance(e, FileNotFoundError), tries=TRIES, pause=FIRST_PAUSE)

    def _path(self, stage: Stage, name: str) -> str:
        return f"{self._root.rstrip('/')}/{stage.address}/{name}"

    def find(self, stage: Stage) -> Record | None:
        """The record of a replicated artifact, or None. Raises StoreError if the address holds another fingerprint."""
        try:
            text = self._ask("cat_file", self._path(stage, RECORD))
        except FileNotFoundError:
            return None
        try:
            record = Record(**json.loads(text))
        except (ValueError, TypeError):
            return None  # not whole: never committed
        if record.fingerprint != stage.fingerprint:
            raise StoreError(
                f"{self.url}/{stage.address} belongs to {record.fingerprint}, not {stage.fingerprint}: move it away"
            )
        return record

    def push(self, store: Store, stage: Stage, cancelled: Callable[[], bool] = _never) -> bool:
        """Copies a published artifact to the replica, the record last; False if it is there already.

        Reads every byte against the record first, so that damage does not spread. Raises Corrupt, StoreError, Cancelled
        between two files once `cancelled()`, and what the object store's driver raises after five tries.
        """
        if self.find(stage) is not None:
            return False
        directory = store.directory(stage)
        record = store.verify(directory, stage.fingerprint)

        def put(name: str) -> None:
            if cancelled():
                raise Cancelled
            target = self._path(stage, name)
            self._ask("makedirs", target.rpartition("/")[0], exist_ok=True)
            self._ask("put_file", str(directory / name), target)
            size = self._ask("info", target)["size"]
            if size != record.payload[name]["bytes"]:
                raise StoreError(f"{self.url}/{stage.address}/{name} has {size} bytes after its upload; run it again")

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(put, record.payload))
        self._ask("pipe_file", self._path(stage, RECORD), (directory / RECORD).read_bytes())
        return True

    def pull(self, store: Store, stage: Stage, run: str, cancelled: Callable[[], bool] = _never) -> Record | None:
        """Brings an artifact into the store as if it had been made there; None if the replica has none.

        The caller holds the stage's lease. Raises Corrupt if a file differs from the record, LeaseLost, and as `push`.
        """
        record = self.find(stage)
        if record is None:
            return None
        target = store.directory(stage)
        temporary = target.with_name(f".tmp-{stage.fingerprint[:16]}-{uuid.uuid4().hex[:8]}")
        temporary.mkdir(parents=True)
        try:

            def get(name: str) -> None:
                if cancelled():
                    raise Cancelled
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._ask("get_file", self._path(stage, name), str(path))
                if file_digest(path) != record.payload[name]["sha256"]:
                    raise Corrupt(
                        f"{self.url}/{stage.address}/{name} differs from its record; delete {self.url}/{stage.address}"
                    )

            with ThreadPoolExecutor(TRANSFERS) as pool:
                list(pool.map(get, record.payload))
            return store.adopt(stage, temporary, record, run)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

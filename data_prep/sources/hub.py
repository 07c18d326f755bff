"""A data set of the hub by its name and commit, or a local copy of one (docs/data.md).

`datasets` says which files a split has; each is downloaded once into the hub's cache and streamed from there. The list
is kept beside the cache, so that what was read once is read again without a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from common.hub import TOKEN, refusal
from data_prep.sources._readers import read_rows
from data_prep.sources.contract import Row, RowError, Source

COPY = "copy"  # the input that is a local copy
PARTS = ("sft", "rl")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Hub(BaseModel):
    """A data set of the hub; as an entry of data.sft or data.rl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None, description="name on the hub (org/name), or a directory or file that is a local copy"
    )
    revision: str | None = Field(None, description="commit of the data set; a local copy needs none")
    subset: str | None = Field(None, description="configuration, where the data set has several")
    split: str = Field("train", description="split that is trained on")
    val_split: str | None = Field(None, description="split that is held out; null: some of `split`")
    columns: dict[str, str] = Field(
        {},
        description="our field -> their column (a.b: a field within one), and no other column; empty: all as they are",
    )


class HubSource(Source):
    name = "hub"
    section = Hub

    def inputs(self, section: Hub, part: str) -> dict[str, str]:
        if part not in PARTS:
            raise ConfigError(f"data source hub has no part {part}; allowed: {', '.join(PARTS)}")
        return {COPY: str(section.path)} if _is_local(section) else {}

    def parts(self, section: Hub, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        splits = {"train": section.split} | ({"val": section.val_split} if section.val_split else {})
        return {
            f"{part}_{ours}": self._rows(section, inputs.get(COPY), theirs)
            for part in PARTS
            for ours, theirs in splits.items()
        }

    def identity(self, section: Hub, part: str) -> dict[str, Any]:
        kept = section.model_dump(mode="json", include={"subset", "split", "val_split", "columns"})
        if _is_local(section):
            return kept
        return kept | {"path": section.path, "revision": section.revision}

    def extent(self, section: Hub, inputs: Mapping[str, Path], name: str) -> int:
        split = section.val_split if name.endswith("_val") else section.split
        return sum(file.stat().st_size for file in _files(section, inputs.get(COPY), str(split)))

    @staticmethod
    def _rows(section: Hub, copy: Path | None, split: str) -> Iterator[Row]:
        before = 0
        for file in _files(section, copy, split):
            for row in read_rows(file):
                value = row.value
                if section.columns and isinstance(value, dict):
                    value = _chosen(row.where, value, section.columns)
                yield Row(row.where, value, before + row.position)
            before += file.stat().st_size


def _is_local(section: Hub) -> bool:
    """Whether the data is here. Raises ConfigError for a name that is no data set's, or has no commit."""
    if section.path is None:
        raise ConfigError("data source hub: path is missing; name a data set, org/name, or a local copy of one")
    if Path(section.path).expanduser().exists():
        return True
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", section.path):
        raise ConfigError(f"data source hub: path={section.path}: no such directory, and no name like org/name")
    if section.revision is None or not _COMMIT.fullmatch(section.revision):
        raise ConfigError(
            f"data source hub: {section.path}: revision={section.revision}: pin a commit (40 digits) of "
            f"https://huggingface.co/datasets/{section.path}/commits/main"
        )
    return False


def _chosen(where: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    found = {}
    for ours, theirs in columns.items():
        value: Any = row
        for name in [theirs] if theirs in row else theirs.split("."):
            if not isinstance(value, Mapping) or name not in value:
                there = ", ".join(map(str, row))
                return RowError("broken", f"{where}: no column {theirs!r} (data.*.columns.{ours}); there are: {there}")
            value = value[name]
        found[ours] = value
    return found


@lru_cache(maxsize=64)
def _listed(path: str, revision: str | None, subset: str | None, split: str) -> tuple[Path, ...]:
    """The files of a split: of a local directory or file, or downloaded."""
    local = Path(path).expanduser()
    if local.is_file():
        return (local,)
    if local.is_dir():
        return tuple(Path(file) for file in _resolved(str(local.resolve()), None, subset, split))
    record = _record(path, str(revision), subset, split)
    try:
        if not record.is_file():
            found = _resolved(path, revision, subset, split)
            prefix = re.compile(r"hf://datasets/" + re.escape(path) + r"@[^/]+/")
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps([prefix.sub("", file) for file in found]))
        return tuple(_download(path, str(revision), file) for file in json.loads(record.read_text()))
    except ConfigError:
        raise
    except Exception as error:  # the clients raise errors of several libraries
        refused = refusal(error, path, "dataset", revision)
        if refused is not None:
            raise refused from error
        if _is_offline(error):
            raise ConfigError(_absent(path, str(revision), record)) from error
        raise


def _files(section: Hub, copy: Path | None, split: str) -> tuple[Path, ...]:
    return _listed(str(copy or section.path), section.revision, section.subset, split)


def _resolved(path: str, revision: str | None, subset: str | None, split: str) -> list[str]:
    """Addresses of a split's files. Raises ConfigError for an unknown subset or split, and for data without files."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    try:
        builder = datasets.load_dataset_builder(path, subset, revision=revision)
    except (DataFilesNotFoundError, EmptyDatasetError) as error:
        raise ConfigError(f"data source hub: {path}: holds no data files ({' '.join(str(error).split())})") from error
    except ValueError as error:  # names the subsets that there are
        raise ConfigError(f"data source hub: {path}: subset={subset}: {' '.join(str(error).split())}") from error
    files: Any = builder.config.data_files
    if files is None:
        raise ConfigError(f"data source hub: {path}: its rows come from a program; give a copy as files")
    if split not in files:
        raise ConfigError(
            f"data source hub: {path}: no split {split!r}; allowed: {', '.join(map(str, files))} (split, val_split)"
        )
    return [str(file) for file in files[split]]


def _record(path: str, revision: str, subset: str | None, split: str) -> Path:
    """Where the list of a split's files is kept, in the cache of `datasets`."""
    from datasets import config

    name = re.sub(r"[^\w.-]+", "--", f"{path}@{revision}-{subset}-{split}")
    return Path(config.HF_DATASETS_CACHE) / "file_lists" / f"{name}.json"


def _download(path: str, revision: str, file: str) -> Path:
    """A file in the hub's cache: that of a commit is never asked for twice."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, file, repo_type="dataset", revision=revision))


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub import errors

    known = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    return isinstance(error, known) or isinstance(error.__cause__, known)


def _absent(path: str, revision: str, record: Path) -> str:
    from huggingface_hub import try_to_load_from_cache

    files = json.loads(record.read_text()) if record.is_file() else []
    missing = [
        file
        for file in files
        if not isinstance(try_to_load_from_cache(path, file, revision=revision, repo_type="dataset"), str)
    ]
    why = f"not in the cache: {', '.join(missing)}" if missing else "the files of its split were never read"
    command = " ".join(("hf download", path, *missing, "--repo-type dataset --revision", revision, "--local-dir DIR"))
    return f"{path}: no network, and {why}; where there is one: {command}, then path: DIR ({TOKEN} for a gated one)"


SOURCE = HubSource()

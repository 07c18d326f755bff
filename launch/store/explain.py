"""Why two artifacts differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.store.errors import StoreError
from launch.store.records import Record, read_record
from launch.store.store import Store

_NAME = re.compile(r".+-[0-9a-f]{16}")  # of an artifact's directory


def explain_difference(store: Store, first: str, second: str) -> str:
    """Field by field, why two artifacts differ.

    Each is an address like 'sft/dft-0123456789abcdef', or a path that a log prints: of the artifact, of a file or
    checkpoint in it, of its logs. Raises StoreError if one is absent.
    """
    records = []
    for given in (first, second):
        directory = _directory(store, given)
        record = read_record(directory)
        if record is None:
            raise StoreError(
                f"{directory} holds no artifact; give an address as `plan` prints it, or a path that a log names"
            )
        records.append(record)
    views = {"made from": _made_from, "packages": lambda record: record.packages, "files": _files}
    lines = []
    for title, view in views.items():
        one, two = view(records[0]), view(records[1])
        changed = [name for name in sorted({*one, *two}) if one.get(name, "(absent)") != two.get(name, "(absent)")]
        lines.append(f"{title}: {'no difference' if not changed else f'{len(changed)} differ'}")
        lines += [f"  {name}: {one.get(name, '(absent)')} -> {two.get(name, '(absent)')}" for name in changed]
    same = records[0].fingerprint == records[1].fingerprint
    return "\n".join([f"fingerprints: {'equal' if same else 'different'}", *lines])


def _directory(store: Store, given: str) -> Path:
    """The artifact's directory that an address, or a path at, in or beside it means."""
    path = Path(given).expanduser()
    for one in (path, *path.parents):
        name = one.name.removesuffix(".logs")
        if _NAME.fullmatch(name):
            one = one.with_name(name)
            return one if one.is_absolute() or one.is_dir() else store.root / one
    return store.root / path


def _made_from(record: Record) -> dict[str, Any]:
    inputs = {name: {k: v for k, v in given.items() if v} for name, given in record.inputs.items()}
    return _flat(
        {"kind": record.kind, "stage_version": record.stage_version, "settings": record.settings, "inputs": inputs}
    )


def _files(record: Record) -> dict[str, Any]:
    return {f"payload {name}": sha[:16] for name, sha in record.comparable().items()}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {
        key: leaf
        for name, child in value.items()
        for key, leaf in _flat(child, f"{path}.{name}" if path else name).items()
    }

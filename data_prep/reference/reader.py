"""Reading a reference cache through memory maps, and checking it. Importing this does not import torch."""

from __future__ import annotations

import functools
import json
import math
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from common.errors import ConfigError
from data_prep.reference.codec import decode
from data_prep.reference.layout import FORMAT, SEQUENCE_FIELDS, SUPERVISED, SUPPORT_FIELDS, Layout

if TYPE_CHECKING:
    import torch

OPEN_SHARDS = 256  # each memory map holds a file descriptor
READ_BYTES = 1 << 20
STREAM_ROWS = 1 << 17
SUMMED_AT_ONCE = 8192  # numpy's own buffer: a mean taken piece by piece is that of the whole column, to the last bit
_REMEDY = "run again: the cache is mended from its whole shards, or remove the artifact"


def label_checksum(labels: np.ndarray) -> int:
    """CRC-32 of the supervised token ids of one chat, which ties its cached rows to its tokens."""
    return zlib.crc32(np.ascontiguousarray(labels, dtype="<i4").tobytes())


def file_checksum(path: Path) -> str:
    """XXH3-128 of a file; reads it in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def read_header(directory: Path) -> dict[str, Any]:
    """The cache's header. Raises ConfigError: it is absent, not JSON or of another format."""
    path = directory / "header.json"
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{directory}: not a reference cache, header.json is missing; run the cache stage") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error}); remove the artifact and run the cache stage again") from None
    if header["format"] != FORMAT:
        raise ConfigError(f"{path}: format {header['format']}, this version reads {FORMAT}; run the cache stage again")
    return header


def layout_of(header: Mapping[str, Any]) -> Layout:
    """The layout that a header describes."""
    return Layout(**{**header["layout"], "fields": tuple(header["layout"]["fields"])})


def fields_present(directory: str | os.PathLike[str]) -> frozenset[str]:
    """Fields an objective may ask of the cache: support_ids, support_logprobs, names of TOKEN_FIELDS, mean_loss."""
    return frozenset({*SUPPORT_FIELDS, "mean_loss", *read_header(Path(directory))["layout"]["fields"]})


class ReferenceCache:
    """Memory-mapped reader; pages are shared by all processes of a machine.

    Opening reads the header and the files' sizes only; `verify` reads every byte.

    Attributes:
        identity: what the cache was computed from; see `stage.py`.
        layout: a Layout.
        tokens, sequences: totals.

    Raises:
        ConfigError: no header, an unknown format, a missing file or one of another size.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        header = read_header(self.directory)
        self.identity: dict[str, Any] = header["identity"]
        self.layout = layout_of(header)
        self.tokens: int = header["tokens"]
        self.sequences: int = header["sequences"]
        self.shards: list[dict[str, Any]] = header["shards"]
        self.sample: dict[str, Any] | None = header["sample"]
        self._first = [0, *accumulate(record["sequences"] for record in self.shards)]
        for record in self._records():
            path = self.directory / record["file"]
            size = path.stat().st_size if path.exists() else -1
            if size != record["bytes"]:
                found = "missing" if size < 0 else f"{size} bytes"
                raise ConfigError(f"{path}: {found}, the header says {record['bytes']} bytes; {_REMEDY}")
        self._open_map()

    def _open_map(self) -> None:
        self._shard = functools.lru_cache(maxsize=OPEN_SHARDS)(self._map)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_map()

    def __len__(self) -> int:
        return self.sequences

    def _records(self) -> list[dict[str, Any]]:
        return [*self.shards, *([self.sample] if self.sample else [])]

    def _map(self, record_index: int) -> dict[str, np.ndarray]:
        record = self._records()[record_index]
        layout = self.layout if record_index < len(self.shards) else self.layout.sample()
        buffer = np.memmap(self.directory / record["file"], mode="r", dtype=np.uint8)
        return {
            name: np.frombuffer(buffer, dtype, count=int(np.prod(shape)), offset=offset).reshape(shape)
            for name, (offset, dtype, shape) in layout.blocks(record["tokens"], record["sequences"]).items()
        }

    @property
    def fields(self) -> frozenset[str]:
        """support_ids, support_logprobs, the token fields that are present, mean_loss."""
        return frozenset({*SUPPORT_FIELDS, "mean_loss", *self.layout.fields})

    def require(self, fields: Iterable[str]) -> None:
        """Raise ConfigError if a field is absent."""
        if absent := sorted(set(fields) - self.fields):
            raise ConfigError(
                f"{self.directory}: the cache lacks {', '.join(absent)} (it has {', '.join(sorted(self.fields))}; "
                f"producer {self.identity['producer']}); set cache.producer=forward"
            )

    def check_identity(self, expected: Mapping[str, Any]) -> None:
        """Raise ConfigError naming every entry of `expected` that differs from what the cache was computed from."""
        differing = [name for name, value in expected.items() if self.identity.get(name) != value]
        if differing:
            found = [f"{name} (cache {self.identity.get(name)!r}, now {expected[name]!r})" for name in differing]
            raise ConfigError(f"{self.directory}: made from another {', '.join(found)}; run the cache stage again")

    def verify(self) -> None:
        """Read every shard and compare its checksum.

        Raises:
            ConfigError: names the damaged files.
        """
        self.refuse(self.damaged())

    def damaged(self, part: int = 0, parts: int = 1) -> list[str]:
        """Names of the files whose checksum differs; of `parts` processes that share the reading, one reads its own."""
        own = self._records()[part::parts]
        return [r["file"] for r in own if file_checksum(self.directory / r["file"]) != r["xxh3_128"]]

    def refuse(self, damaged: Iterable[str]) -> None:
        """Raise ConfigError that names the damaged files, if there are any."""
        if names := ", ".join(sorted(damaged)):
            raise ConfigError(f"{self.directory}: checksum differs in {names}; {_REMEDY}")

    def read(self, sequence: int, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Views of the rows of one chat: `packed` (n, top_k), token fields (n,), `mean_loss` and `label_checksum` ().

        Nothing is read from disk until an array is used.

        Args:
            names: the arrays wanted; None: all.
        """
        shard_index = bisect_right(self._first, sequence) - 1
        if sequence < 0 or shard_index >= len(self.shards):
            raise IndexError(f"{self.directory}: sequence {sequence} of {self.sequences}")
        shard = self._shard(shard_index)
        local = sequence - self._first[shard_index]
        start, end = shard["offsets"][local : local + 2].tolist()
        if names is None:
            names = ("packed", *self.layout.fields, *SEQUENCE_FIELDS)
        return {name: shard[name][local] if name in SEQUENCE_FIELDS else shard[name][start:end] for name in names}

    def stream(self, names: Iterable[str], rows: int = STREAM_ROWS) -> Iterator[dict[str, np.ndarray]]:
        """Token fields of the whole cache in order, at most `rows` tokens at a time, new (n,) arrays each.

        Read without memory maps, so that memory stays the same however large the cache is.

        Raises:
            ConfigError: a field is absent.
        """
        wanted = list(names)
        self.require(wanted)
        for record in self.shards:
            blocks = self.layout.blocks(record["tokens"], record["sequences"])
            with (self.directory / record["file"]).open("rb") as file:
                for start in range(0, record["tokens"], rows):
                    found = {}
                    for name in wanted:
                        offset, dtype, _ = blocks[name]
                        file.seek(offset + start * dtype.itemsize)
                        found[name] = np.fromfile(file, dtype, min(rows, record["tokens"] - start))
                    yield found

    def column(self, name: str) -> np.ndarray:
        """A token field (tokens,) or a sequence field (sequences,) of the whole cache as one new array.

        One file is open at a time: a map of each would take more descriptors than a process has.
        """
        found = []
        for record in self.shards:
            offset, dtype, shape = self.layout.blocks(record["tokens"], record["sequences"])[name]
            path = self.directory / record["file"]
            found.append(np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape))
        return np.concatenate(found)

    def mean(self, name: str) -> float:
        """Mean of a token field, in float64; some tokens at a time."""
        total, waiting = 0.0, np.empty(0)
        for block in self.stream([name]):
            waiting = np.concatenate([waiting, block[name].astype(np.float64)])
            whole = len(waiting) - len(waiting) % SUMMED_AT_ONCE
            for start in range(0, whole, SUMMED_AT_ONCE):
                total += float(waiting[start : start + SUMMED_AT_ONCE].sum())
            waiting = waiting[whole:]
        return (total + float(waiting.sum())) / self.tokens

    def scalar_parts(self, fields: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
        """`scalars`, in order, some whole chats at a time; what the sample covers is one part."""
        import torch

        wanted = set(fields)
        self.require(wanted)
        if wanted & set(SUPPORT_FIELDS):
            yield self._of_sample(wanted)
            return
        for index in range(len(self.shards)):
            shard, first = self._map(index), self._first[index]
            lengths = torch.from_numpy(np.diff(shard["offsets"]).astype(np.int64))
            found = {name: torch.from_numpy(shard[name].astype(np.float32)) for name in wanted}
            sequence = torch.arange(first, first + len(lengths)).repeat_interleave(lengths)
            yield found | {"mask": torch.ones(len(sequence), dtype=torch.bool), "sequence": sequence}

    def scalars(self, fields: Iterable[str]) -> dict[str, torch.Tensor]:
        """What constants of the training set are computed from: `fields` over M positions, "mask" and "sequence" (M,).

        support_ids and support_logprobs, (M, k), come from the sampled chats and cover every position, prompts too
        (SED's calibration); other token fields, (M,), cover all supervised tokens of the cache.

        Raises:
            ConfigError: a field is absent, or support and other fields are asked together.
        """
        import torch

        parts = list(self.scalar_parts(fields))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _of_sample(self, wanted: set[str]) -> dict[str, torch.Tensor]:
        import torch

        if not wanted <= set(SUPPORT_FIELDS):
            raise ConfigError(
                f"{self.directory}: {', '.join(sorted(wanted))} do not cover the same positions; ask one by one"
            )
        if not self.sample:
            raise ConfigError(
                f"{self.directory}: made without a sample of whole chats; set cache.sample_sequences above 0"
            )
        sample, layout = self._shard(len(self.shards)), self.layout.sample()
        packed = torch.from_numpy(sample["packed"].copy()).flatten()
        found: dict[str, torch.Tensor] = dict(
            zip(SUPPORT_FIELDS, decode(packed, layout.top_k, layout.id_bits), strict=True)
        )
        lengths = torch.from_numpy(np.diff(sample["offsets"]).astype(np.int64))
        return {name: found[name] for name in wanted} | {
            "mask": torch.from_numpy(sample[SUPERVISED].astype(bool)),
            "sequence": torch.arange(len(lengths)).repeat_interleave(lengths),
        }

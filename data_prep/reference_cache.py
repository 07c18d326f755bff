"""The reference cache: what a frozen model says about every training response, on disk.

A cache is a directory with one `header.json` and flat, little-endian shard files; `docs/reference_cache.md` describes
the bytes. Rows exist only for supervised tokens, in the order of the data set. This module knows the format and nothing
of models: writing shards so that a killed producer can resume, checking them, and reading them through memory maps.
Importing it does not import torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    import torch

FORMAT = 1
LOGPROB_RANGE = 64.0  # nats; a smaller log-probability is stored as -64
WORD_BITS = 32
MIN_ID_BITS, MAX_ID_BITS = 18, 20
SAMPLE_TOP_K = 10
SAMPLE_FILE = "sample.bin"
OPEN_SHARDS = 256  # each memory map holds a file descriptor
READ_BYTES = 1 << 20
_REMEDY = "remove the artifact and run the cache stage again (`salvage` first: only the damaged shards are recomputed)"

TOKEN_FIELDS: dict[str, tuple[str, str]] = {  # name -> dtype in a compact and in a lossless cache
    "label_logprob": ("<f4", "<f4"),
    "label_mass": ("<f4", "<f4"),
    "logsumexp": ("<f4", "<f4"),
    "entropy": ("<f4", "<f4"),
    "n1": ("<f2", "<f4"),
    "n2": ("<f2", "<f4"),
    "ceil_n1": ("|u1", "|u1"),
    "ceil_n2": ("|u1", "|u1"),
}
SUPERVISED = "supervised"  # of the sample: 1 where the position predicts a supervised token
_COLUMNS = {**TOKEN_FIELDS, SUPERVISED: ("|u1", "|u1")}
SUPPORT_FIELDS = ("support_ids", "support_logprobs")  # both packed into `words`
SEQUENCE_FIELDS: dict[str, str] = {"mean_loss": "<f4", "label_checksum": "<u4"}
VLLM_FIELDS = ("label_logprob", "n1", "n2", "ceil_n1", "ceil_n2")  # all that prompt log-probabilities give
PRODUCER_FIELDS: dict[str, tuple[str, ...]] = {"forward": tuple(TOKEN_FIELDS), "vllm": VLLM_FIELDS}


def id_bits(vocab_size: int) -> int:
    """Bits of a compact word that hold the token id: 18, or more for a vocabulary above 2^18.

    Raises:
        ValueError: more than 2^20 ids.
    """
    bits = max(MIN_ID_BITS, (vocab_size - 1).bit_length())
    if bits > MAX_ID_BITS:
        raise ValueError(
            f"cache.encoding: compact holds vocabularies up to {1 << MAX_ID_BITS} ids, the model has {vocab_size}; "
            "set cache.encoding=lossless"
        )
    return bits


def encode(ids: torch.Tensor, logprobs: torch.Tensor, *, encoding: str, id_bits: int) -> torch.Tensor:
    """Pack ids and log-probabilities of one shape into one integer each.

    `compact`: int32 word, the id in the low `id_bits` bits, the log-probability above them as
    round(sqrt(-logprob / 64) * (2^bits - 1)), so that likely tokens get the finest steps. `lossless`: int64 word, the
    id in the low 32 bits, the float32 log-probability above them.

    Args:
        ids: integer tensor, values below 2^id_bits.
        logprobs: float tensor of the same shape, values <= 0; in nats.
    """
    import torch

    if encoding == "lossless":
        bits = logprobs.float().contiguous().view(torch.int32).to(torch.int64)
        return (bits << 32) | ids.to(torch.int64)
    levels = (1 << (WORD_BITS - id_bits)) - 1
    code = ((-logprobs.float()).clamp(0.0, LOGPROB_RANGE) / LOGPROB_RANGE).sqrt().mul(levels).round().to(torch.int64)
    word = (code << id_bits) | ids.to(torch.int64)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def decode(words: torch.Tensor, top_k: int, id_bits: int = MIN_ID_BITS) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack the flat words of T tokens on the device they are on; the inverse of `encode`.

    A row of zeros (a position the cache does not hold) gives ids 0 and log-probabilities 0; mask it out.

    Args:
        words: (T * top_k,) int32 from a compact cache or int64 from a lossless one.
        top_k: entries of one token, most probable first.
        id_bits: of the cache's header; ignored for int64 words.

    Returns:
        ids (T, top_k) int64 and log-probabilities (T, top_k) float32.
    """
    import torch

    words = words.view(-1, top_k)
    if words.dtype == torch.int64:
        return words & 0xFFFFFFFF, (words >> 32).to(torch.int32).view(torch.float32)
    if words.dtype != torch.int32:
        raise TypeError(f"words: int32 (compact) or int64 (lossless) expected, got {words.dtype}")
    code_bits = WORD_BITS - id_bits
    code = (words >> id_bits) & ((1 << code_bits) - 1)  # the shift of a negative int32 drags its sign along
    root = code.to(torch.float32) / ((1 << code_bits) - 1)
    return (words & ((1 << id_bits) - 1)).to(torch.int64), -LOGPROB_RANGE * root.square()


@dataclass(frozen=True)
class Layout:
    """Which arrays a shard holds.

    Attributes:
        encoding: compact (4 bytes an entry) or lossless (8).
        top_k: entries of each token.
        id_bits: bits of the id in a compact word.
        vocab_size: width of the model's logits; every id is below it.
        fields: names from TOKEN_FIELDS, in its order.
    """

    encoding: str
    top_k: int
    id_bits: int
    vocab_size: int
    fields: tuple[str, ...]

    def blocks(self, tokens: int, sequences: int) -> dict[str, tuple[int, np.dtype, tuple[int, ...]]]:
        """name -> (byte offset, dtype, shape) of every array of a shard; wide items first, so that all are aligned."""
        column = 0 if self.encoding == "compact" else 1
        items: list[tuple[str, np.dtype, tuple[int, ...]]] = [
            ("words", np.dtype("<i4" if self.encoding == "compact" else "<i8"), (tokens, self.top_k)),
            ("offsets", np.dtype("<u4"), (sequences + 1,)),
            *((name, np.dtype(dtype), (sequences,)) for name, dtype in SEQUENCE_FIELDS.items()),
            *((name, np.dtype(_COLUMNS[name][column]), (tokens,)) for name in self.fields),
        ]
        blocks, start = {}, 0
        for name, dtype, shape in items:
            blocks[name] = (start, dtype, shape)
            start += dtype.itemsize * int(np.prod(shape))
        return blocks

    def nbytes(self, tokens: int, sequences: int) -> int:
        """Size of a shard file."""
        return sum(d.itemsize * int(np.prod(shape)) for _, d, shape in self.blocks(tokens, sequences).values())

    def allocate(self, tokens: int, sequences: int) -> dict[str, np.ndarray]:
        """Zeroed arrays of one shard, by name."""
        return {name: np.zeros(shape, dtype) for name, (_, dtype, shape) in self.blocks(tokens, sequences).items()}

    def sample(self) -> Layout:
        """Layout of the sample of whole chats (`SAMPLE_FILE`): the most probable ids, and which rows are supervised."""
        return Layout(self.encoding, min(self.top_k, SAMPLE_TOP_K), self.id_bits, self.vocab_size, (SUPERVISED,))


def predicted_bytes(
    tokens: int,
    top_k: int,
    *,
    sequences: int,
    sample_tokens: int = 0,
    sample_sequences: int = 0,
    encoding: str = "compact",
    fields: Iterable[str] = tuple(TOKEN_FIELDS),
    tokens_per_shard: int = 262_144,
) -> int:
    """Bytes of a cache with `tokens` supervised tokens in `sequences` chats, before it exists.

    Args:
        sample_tokens: positions (of prompt and response) of the `sample_sequences` sampled chats.
    """
    layout = Layout(encoding, top_k, MIN_ID_BITS, 0, tuple(fields))
    shards = max(1, -(-tokens // tokens_per_shard))
    header = 1600 + 150 * shards
    offsets = 4 * (shards - 1)
    sample = layout.sample().nbytes(sample_tokens, sample_sequences) if sample_sequences else 0
    return layout.nbytes(tokens, sequences) + offsets + sample + header


def predict_bytes(summary: Mapping[str, Any], cache: Mapping[str, Any]) -> int:
    """Bytes of the cache that stage `cache` will make of prepared data, within 2%.

    Args:
        summary: `summary.json` of the data's `prepare` artifact.
        cache: the recipe's `cache` section as a mapping.
    """
    counts = summary["tokens"]["sft_train"]
    sampled = min(cache["sample_sequences"], counts["chats"])
    return predicted_bytes(
        counts["response_tokens"],
        cache["top_k"],
        sequences=counts["chats"],
        sample_tokens=round(sampled * (counts["tokens"] / counts["chats"] - 1)),  # the first token is predicted by none
        sample_sequences=sampled,
        encoding=cache["encoding"],
        fields=PRODUCER_FIELDS[cache["producer"]],
        tokens_per_shard=cache["tokens_per_shard"],
    )


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


def shard_name(index: int) -> str:
    return f"shard_{index:05d}.bin"


# writing


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold `directory` against a second producer on this file system.

    Raises:
        RuntimeError: another live process holds it.
    """
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{directory}: another producer is writing this cache; wait for it or stop it") from None
        yield


def _write_durably(path: Path, pieces: Iterable[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(directory: Path, name: str, layout: Layout, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write one shard and, after it, its record `<name>.json`; both appear whole or not at all.

    Args:
        arrays: what `layout.allocate` gave, filled; `offsets` rises from 0 to the number of tokens.

    Returns:
        The record: file, tokens, sequences, bytes, xxh3_128.
    """
    tokens, sequences = len(arrays["words"]), len(arrays["offsets"]) - 1
    blocks = layout.blocks(tokens, sequences)
    for block, (_, dtype, shape) in blocks.items():
        if arrays[block].dtype != dtype or arrays[block].shape != shape:
            found = f"{arrays[block].dtype}{arrays[block].shape}"
            raise TypeError(f"{name}: {block} is {found}, the layout says {dtype}{shape}")
    path = directory / name
    buffers = [np.ascontiguousarray(arrays[block]).reshape(-1).view(np.uint8).data for block in blocks]
    digest = xxhash.xxh3_128()
    for buffer in buffers:
        digest.update(buffer)
    _write_durably(path, buffers)
    record = {
        "file": name,
        "tokens": tokens,
        "sequences": sequences,
        "bytes": layout.nbytes(tokens, sequences),
        "xxh3_128": digest.hexdigest(),
    }
    _write_durably(directory / f"{name}.json", [json.dumps(record, sort_keys=True).encode()])
    return record


def _stamp(identity: Mapping[str, Any], layout: Layout, sequences: Sequence[int]) -> bytes:
    stamp = {"identity": dict(identity), "layout": asdict(layout), "sequences": list(sequences)}
    return json.dumps(stamp, sort_keys=True).encode()


def keep_matching(scratch: Path, identity: Mapping[str, Any], layout: Layout, sequences: Sequence[int]) -> None:
    """Drop the shards in `scratch` unless they belong to a cache like this one.

    Args:
        sequences: chats in each file, the sample's last.
    """
    path, stamp = scratch / "stamp.json", _stamp(identity, layout, sequences)
    if not path.exists() or path.read_bytes() != stamp:
        path.unlink(missing_ok=True)
        for stale in [*scratch.glob("shard_*"), *scratch.glob(f"{SAMPLE_FILE}*")]:
            stale.unlink()
        _write_durably(path, [stamp])


def finished_shard(directory: Path, name: str) -> dict[str, Any] | None:
    """The record of a shard that is there and whole, or None if it has to be computed (again)."""
    try:
        record = json.loads((directory / f"{name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    path = directory / name
    if not path.exists() or path.stat().st_size != record["bytes"] or file_checksum(path) != record["xxh3_128"]:
        return None
    return record


def publish(
    source: Path,
    output: Path,
    layout: Layout,
    identity: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    sample: Mapping[str, Any] | None,
) -> None:
    """Put finished shards of `source` into `output` and write the header last; without it there is no cache.

    Files are hard-linked where the file system allows it (else copied), so that a kill here loses no shard.
    """
    for record in [*shards, *([sample] if sample else [])]:
        target = output / record["file"]
        target.unlink(missing_ok=True)
        try:
            os.link(source / record["file"], target)
        except OSError:
            shutil.copyfile(source / record["file"], target)
            with target.open("rb") as file:
                os.fsync(file.fileno())
    header = {
        "format": FORMAT,
        "identity": dict(identity),
        "layout": asdict(layout),
        "sequences": sum(record["sequences"] for record in shards),
        "tokens": sum(record["tokens"] for record in shards),
        "shards": list(shards),
        "sample": sample,
    }
    _write_durably(output / "header.json", [json.dumps(header, sort_keys=True, indent=1).encode()])


def salvage(cache: Path, scratch: Path) -> list[str]:
    """Copy the whole shards of a damaged cache into a producer's scratch directory, which then computes only the rest.

    Returns:
        Names of the damaged or missing files.
    """
    header = _read_header(cache)
    records = [*header["shards"], *([header["sample"]] if header["sample"] else [])]
    layout = Layout(**{**header["layout"], "fields": tuple(header["layout"]["fields"])})
    keep_matching(scratch, header["identity"], layout, [record["sequences"] for record in records])
    bad = []
    for record in records:
        path = cache / record["file"]
        if path.exists() and path.stat().st_size == record["bytes"] and file_checksum(path) == record["xxh3_128"]:
            shutil.copyfile(path, scratch / record["file"])
            _write_durably(scratch / f"{record['file']}.json", [json.dumps(record, sort_keys=True).encode()])
        else:
            bad.append(record["file"])
    return bad


# reading


def _read_header(directory: Path) -> dict[str, Any]:
    path = directory / "header.json"
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{directory}: not a reference cache, header.json is missing; run the cache stage") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove the artifact and run the cache stage again") from None
    if header["format"] != FORMAT:
        raise ValueError(f"{path}: format {header['format']}, this version reads {FORMAT}; run the cache stage again")
    return header


def fields_present(directory: str | os.PathLike[str]) -> frozenset[str]:
    """Fields an objective may ask of the cache: support_ids, support_logprobs, names of TOKEN_FIELDS, mean_loss."""
    return frozenset({*SUPPORT_FIELDS, "mean_loss", *_read_header(Path(directory))["layout"]["fields"]})


class ReferenceCache:
    """Memory-mapped reader; pages are shared by all processes of a machine.

    Opening reads the header and the files' sizes only; `verify` reads every byte.

    Attributes:
        identity: what the cache was computed from; see `cache.py`.
        layout: a Layout.
        tokens, sequences: totals.

    Raises:
        ValueError: no header, an unknown format, a missing file or one of another size.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        header = _read_header(self.directory)
        self.identity: dict[str, Any] = header["identity"]
        self.layout = Layout(**{**header["layout"], "fields": tuple(header["layout"]["fields"])})
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
                raise ValueError(f"{path}: {found}, the header says {record['bytes']} bytes; {_REMEDY}")
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
        """Raise ValueError if a field is absent."""
        if absent := sorted(set(fields) - self.fields):
            raise ValueError(
                f"{self.directory}: the cache lacks {', '.join(absent)} (it has {', '.join(sorted(self.fields))}; "
                f"producer {self.identity['producer']}); set cache.producer=forward"
            )

    def check_identity(self, expected: Mapping[str, Any]) -> None:
        """Raise ValueError naming every entry of `expected` that differs from what the cache was computed from."""
        differing = [name for name, value in expected.items() if self.identity.get(name) != value]
        if differing:
            found = [f"{name} (cache {self.identity.get(name)!r}, now {expected[name]!r})" for name in differing]
            raise ValueError(f"{self.directory}: made from another {', '.join(found)}; run the cache stage again")

    def verify(self) -> None:
        """Read every shard and compare its checksum.

        Raises:
            ValueError: names the damaged files.
        """
        bad = [r["file"] for r in self._records() if file_checksum(self.directory / r["file"]) != r["xxh3_128"]]
        if bad:
            raise ValueError(f"{self.directory}: checksum differs in {', '.join(bad)}; {_REMEDY}")

    def read(self, sequence: int, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Views of the rows of one chat: `words` (n, top_k), token fields (n,), `mean_loss` and `label_checksum` ().

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
            names = ("words", *self.layout.fields, *SEQUENCE_FIELDS)
        return {name: shard[name][local] if name in SEQUENCE_FIELDS else shard[name][start:end] for name in names}

    def column(self, name: str) -> np.ndarray:
        """A token field (tokens,) or a sequence field (sequences,) of the whole cache as one new array."""
        return np.concatenate([self._shard(index)[name] for index in range(len(self.shards))])

    def scalars(self, fields: Iterable[str]) -> dict[str, torch.Tensor]:
        """What constants of the training set are computed from: `fields` over M positions, "mask" and "sequence" (M,).

        support_ids and support_logprobs, (M, k), come from the sampled chats and cover every position, prompts too
        (SED's calibration); other token fields, (M,), cover all supervised tokens of the cache.

        Raises:
            ValueError: a field is absent, or support and other fields are asked together.
        """
        import torch

        wanted = set(fields)
        self.require(wanted)
        if not wanted & set(SUPPORT_FIELDS):
            lengths = np.concatenate([np.diff(self._shard(index)["offsets"]) for index in range(len(self.shards))])
            found = {name: torch.from_numpy(self.column(name)).float() for name in wanted}
            sequence = torch.arange(self.sequences).repeat_interleave(torch.from_numpy(lengths.astype(np.int64)))
            return found | {"mask": torch.ones(self.tokens, dtype=torch.bool), "sequence": sequence}
        if not wanted <= set(SUPPORT_FIELDS):
            raise ValueError(
                f"{self.directory}: {', '.join(sorted(wanted))} do not cover the same positions; ask one by one"
            )
        if not self.sample:
            raise ValueError(
                f"{self.directory}: made without a sample of whole chats; set cache.sample_sequences above 0"
            )
        sample, layout = self._shard(len(self.shards)), self.layout.sample()
        words = torch.from_numpy(sample["words"].copy()).flatten()
        found: dict[str, torch.Tensor] = dict(
            zip(SUPPORT_FIELDS, decode(words, layout.top_k, layout.id_bits), strict=True)
        )
        lengths = torch.from_numpy(np.diff(sample["offsets"]).astype(np.int64))
        return {name: found[name] for name in wanted} | {
            "mask": torch.from_numpy(sample[SUPERVISED].astype(bool)),
            "sequence": torch.arange(len(lengths)).repeat_interleave(lengths),
        }

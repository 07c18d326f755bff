"""Which arrays a reference cache holds and how many bytes they take; `docs/reference_cache.md` describes the bytes.

Rows exist only for supervised tokens, in the order of the data set. Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.reference.codec import MIN_ID_BITS

FORMAT = 1
VERSION = 1  # of what the stage computes from equal settings; part of a cache's identity
SAMPLE_TOP_K = 10  # ids per position of the sample of whole chats
SAMPLE_FILE = "sample.bin"

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
SUPPORT_FIELDS = ("support_ids", "support_logprobs")  # both in the array `packed`
SEQUENCE_FIELDS: dict[str, str] = {"mean_loss": "<f4", "label_checksum": "<u4"}
VLLM_FIELDS = ("label_logprob", "n1", "n2", "ceil_n1", "ceil_n2")  # all that prompt log-probabilities give
PRODUCER_FIELDS: dict[str, tuple[str, ...]] = {"forward": tuple(TOKEN_FIELDS), "vllm": VLLM_FIELDS}


def fields_of(producer: str) -> frozenset[str]:
    """What a cache of `cache.producer` holds for each token, support included."""
    return frozenset({*SUPPORT_FIELDS, *PRODUCER_FIELDS[producer]})


def shard_name(index: int) -> str:
    return f"shard_{index:05d}.bin"


@dataclass(frozen=True)
class Layout:
    """Which arrays a shard holds.

    Attributes:
        encoding: compact (4 bytes an entry) or lossless (8).
        top_k: entries of each token.
        id_bits: bits of the id in a compact entry.
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
            ("packed", np.dtype("<i4" if self.encoding == "compact" else "<i8"), (tokens, self.top_k)),
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

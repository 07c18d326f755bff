"""An id and its log-probability packed into one integer. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    import torch

LOGPROB_RANGE = 64.0  # nats; a smaller log-probability is stored as -64
PACKED_BITS = 32
MIN_ID_BITS, MAX_ID_BITS = 18, 20


def id_bits(vocab_size: int) -> int:
    """Bits of a compact entry that hold the token id: 18, or more for a vocabulary above 2^18.

    Raises:
        ConfigError: more than 2^20 ids.
    """
    bits = max(MIN_ID_BITS, (vocab_size - 1).bit_length())
    if bits > MAX_ID_BITS:
        raise ConfigError(
            f"cache.encoding: compact holds vocabularies up to {1 << MAX_ID_BITS} ids, the model has {vocab_size}; "
            "set cache.encoding=lossless"
        )
    return bits


def encode(ids: torch.Tensor, logprobs: torch.Tensor, *, encoding: str, id_bits: int) -> torch.Tensor:
    """Pack ids and log-probabilities of one shape into one integer each.

    `compact`: int32, the id in the low `id_bits` bits, the log-probability above them as
    round(sqrt(-logprob / 64) * (2^bits - 1)), so that likely tokens get the finest steps. `lossless`: int64, the
    id in the low 32 bits, the float32 log-probability above them.

    Args:
        ids: integer tensor, values below 2^id_bits.
        logprobs: float tensor of the same shape, values <= 0; in nats.
    """
    import torch

    if encoding == "lossless":
        bits = logprobs.float().contiguous().view(torch.int32).to(torch.int64)
        return (bits << 32) | ids.to(torch.int64)
    levels = (1 << (PACKED_BITS - id_bits)) - 1
    code = ((-logprobs.float()).clamp(0.0, LOGPROB_RANGE) / LOGPROB_RANGE).sqrt().mul(levels).round().to(torch.int64)
    packed = (code << id_bits) | ids.to(torch.int64)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def decode(packed: torch.Tensor, top_k: int, id_bits: int = MIN_ID_BITS) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack the flat integers of T tokens on the device they are on; the inverse of `encode`.

    A row of zeros (a position the cache does not hold) gives ids 0 and log-probabilities 0; mask it out.

    Args:
        packed: (T * top_k,) int32 from a compact cache or int64 from a lossless one.
        top_k: entries of one token, most probable first.
        id_bits: of the cache's header; ignored for int64.

    Returns:
        ids (T, top_k) int64 and log-probabilities (T, top_k) float32.
    """
    import torch

    packed = packed.view(-1, top_k)
    if packed.dtype == torch.int64:
        return packed & 0xFFFFFFFF, (packed >> 32).to(torch.int32).view(torch.float32)
    if packed.dtype != torch.int32:
        raise TypeError(f"packed: int32 (compact) or int64 (lossless) expected, got {packed.dtype}")
    code_bits = PACKED_BITS - id_bits
    code = (packed >> id_bits) & ((1 << code_bits) - 1)  # the shift of a negative int32 drags its sign along
    root = code.to(torch.float32) / ((1 << code_bits) - 1)
    return (packed & ((1 << id_bits) - 1)).to(torch.int64), -LOGPROB_RANGE * root.square()

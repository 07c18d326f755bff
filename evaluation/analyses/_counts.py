"""Statistics of streams of any length in constant memory: histograms whose bins keep the order of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BITS = 20  # of a value that tell its bin: relative width 2^-11
BINS = 1 << BITS


def ordered(values: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Bins (n,) int64 in [0, 2^bits) of float32 values, in the order of the values; NaN is not allowed."""
    found = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # The bits of floats are ordered as integers, but for the sign.
    key = np.where(found >> 31, ~found, found | np.uint32(1 << 31))
    return (key >> np.uint32(32 - bits)).astype(np.int64)


def values_of(bins: np.ndarray, bits: int = BITS) -> np.ndarray:
    """The middle values of bins of `ordered`, float64."""
    return _decoded((bins.astype(np.uint32) << np.uint32(32 - bits)) | np.uint32(1 << (31 - bits)))


def least_of(bins: np.ndarray, bits: int = BITS) -> np.ndarray:
    """The least values of bins of `ordered`, float64."""
    return _decoded(bins.astype(np.uint32) << np.uint32(32 - bits))


def _decoded(key: np.ndarray) -> np.ndarray:
    bits = np.where(key >> 31, key & np.uint32(0x7FFFFFFF), ~key).astype(np.uint32)
    return bits.view(np.float32).astype(np.float64)


class Quantiles:
    """Quantiles of a stream to a relative precision of 2^(8 - bits), in 2^(bits + 3) bytes."""

    def __init__(self, bits: int = BITS) -> None:
        self.bits, self.counts = bits, np.zeros(1 << bits, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """(n,) float values."""
        self.counts += np.bincount(ordered(values, self.bits), minlength=len(self.counts))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def at(self, shares: Sequence[float]) -> list[float]:
        """The values below which these shares lie, one for each; NaN of an empty stream."""
        return values_of(self._places(shares), self.bits).tolist() if self.total else [float("nan")] * len(shares)

    def above(self, share: float) -> float:
        """The least bound above all values that equal the quantile of this share; NaN of an empty stream."""
        return float(least_of(self._places([share]) + 1, self.bits)[0]) if self.total else float("nan")

    def _places(self, shares: Sequence[float]) -> np.ndarray:
        sums = np.cumsum(self.counts)
        return np.searchsorted(sums, [max(1, np.ceil(share * sums[-1])) for share in shares])


def mid_ranks(counts: np.ndarray) -> np.ndarray:
    """Mean rank, from 0, of the values in each bin, float64."""
    return np.cumsum(counts) - (counts + 1) / 2


class Moments:
    """Pearson's correlation and the mean absolute difference of a stream of pairs, in float64."""

    def __init__(self) -> None:
        self._n, self._mean, self._square, self._product, self._apart = 0, np.zeros(2), np.zeros(2), 0.0, 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """(n,) values each."""
        n = len(x)
        if not n:
            return
        pair = np.stack([x, y]).astype(np.float64)
        mean = pair.mean(1)
        centred = pair - mean[:, None]
        step = mean - self._mean
        factor = self._n * n / (self._n + n)  # Chan's update: sums about the common mean, without cancellation
        self._square += (centred**2).sum(1) + step**2 * factor
        self._product += float((centred[0] * centred[1]).sum() + step[0] * step[1] * factor)
        self._apart += float(np.abs(pair[0] - pair[1]).sum())
        self._mean += step * n / (self._n + n)
        self._n += n

    @property
    def correlation(self) -> float:
        """Pearson's; NaN where one side does not vary."""
        spread = float(np.sqrt(self._square.prod()))
        return self._product / spread if spread > 0 else float("nan")

    @property
    def mean_apart(self) -> float:
        return self._apart / max(1, self._n)


class Kept:
    """A uniform sample of `size` items of a stream, by a seed; `add` takes the items' number and gives those kept."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._rng = size, np.random.default_rng(seed)
        self.keys, self.items = np.empty(0), []

    def add(self, items: Sequence[object] | np.ndarray) -> None:
        """Offers items; each keeps its random key, and the smallest keys stay."""
        keys = self._rng.random(len(items))
        bound = self.keys.max() if len(self.keys) >= self._size else np.inf
        for place in np.flatnonzero(keys < bound).tolist():
            self.keys = np.append(self.keys, keys[place])
            self.items.append(items[place])
        order = np.argsort(self.keys, kind="stable")[: self._size]
        self.keys, self.items = self.keys[order], [self.items[one] for one in order]


class Sums(NamedTuple):
    """By chat, (n,) each: its number, the sum over its tokens, how many these are."""

    chat: np.ndarray
    total: np.ndarray
    tokens: np.ndarray

    def part(self, which: slice) -> Sums:
        """Those of some chats."""
        return Sums(self.chat[which], self.total[which], self.tokens[which])


class Chats:
    """Sums over each chat's tokens, of a stream in which a chat's tokens stand together."""

    def __init__(self) -> None:
        self._open = Sums(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))

    def add(self, chat: np.ndarray, values: np.ndarray) -> Sums:
        """(n,) numbers of chats and float64 values; the sums of the chats that ended."""
        if not len(chat):
            return self._open.part(slice(0))
        starts = np.flatnonzero(np.diff(chat, prepend=chat[0] - 1))
        found = Sums(chat[starts], np.add.reduceat(values, starts), np.diff(starts, append=len(chat)))
        if len(self._open.chat) and self._open.chat[0] == chat[0]:
            found.total[0] += self._open.total[0]
            found.tokens[0] += self._open.tokens[0]
        else:
            found = Sums(*(np.concatenate(pair) for pair in zip(self._open, found, strict=True)))
        self._open = found.part(slice(-1, None))
        return found.part(slice(-1))

    def close(self) -> Sums:
        """The sums of the last chat; nothing of an empty stream."""
        return self._open


class Largest:
    """The `size` items of a stream with the largest scores; equal scores: those that came first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.scores, self.rows = np.empty(0), {}

    def add(self, scores: np.ndarray, **columns: np.ndarray) -> None:
        """(n,) scores, and what to keep of the items, (n,) each."""
        if len(scores) > self._size:
            chosen = np.argpartition(-scores, self._size - 1)[: self._size]
            chosen = np.flatnonzero(scores >= scores[chosen].min())
            scores, columns = scores[chosen], {name: values[chosen] for name, values in columns.items()}
        if not self.rows:
            self.rows = {name: values[:0] for name, values in columns.items()}
        scores = np.concatenate([self.scores, scores])
        order = np.argsort(-scores, kind="stable")[: self._size]
        self.scores = scores[order]
        self.rows = {name: np.concatenate([self.rows[name], columns[name]])[order] for name in columns}

"""The passes of a chunk over its vocabulary as two Triton kernels: the same `ChunkStudent`, for GPUs.

One kernel reads the logits once, as the matrix product left them (bfloat16 or float32), for peak, logsumexp and
entropy, also of a tempered distribution and of the ids outside a set; the other replaces them by the gradient, in place
and in their dtype. Single ids (the label, cached ones) are computed apart in float32 and rounded once. What only some
objectives ask for stays PyTorch, tile by tile.

Importing this module needs triton. `TRITON_INTERPRET=1`, set before that, runs the kernels without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.kernel_device import on_device_of

from .chunk_student import ChunkStudent, largest, slices

BLOCK = 4096
TOP_K_ROWS = 2048
"""Rows whose largest ids are sought at once."""
PAIRS = 2**24
"""Pairs of ids that are compared at once."""


@triton.jit
def _reduce_kernel(logits, peaks, log_totals, shifts, vocab_size, stride, power, block: tl.constexpr):
    # the logits' peak; of y = power * (logits - peak) log of sum(exp(y)), and the mean of y under softmax(y)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    peak = float("-inf")
    total = 0.0
    moment = 0.0  # sum of exp(y) * y
    for start in range(0, vocab_size, block):
        inside = start + columns < vocab_size
        z = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        new = tl.maximum(peak, tl.max(z, 0))
        shift = tl.where(new == float("-inf"), 0.0, new)
        y = (z - shift) * power
        e = tl.exp(y)
        down = tl.where(peak == float("-inf"), 0.0, peak - shift) * power
        kept = tl.exp(down)
        moment = kept * (moment + total * down) + tl.sum(tl.where(e == 0.0, 0.0, e * y), 0)
        total = kept * total + tl.sum(e, 0)
        peak = new
    tl.store(peaks + row, peak)
    tl.store(log_totals + row, tl.log(total))
    tl.store(shifts + row, moment / total)


@triton.jit
def _gradient_kernel(
    logits, peaks, log_totals, totals, shares, outsides, of_outside, tempered_log_totals, of_tempered, dense,
    vocab_size, stride, power, with_share: tl.constexpr, with_outside: tl.constexpr, with_tempered: tl.constexpr,
    with_dense: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < vocab_size
    place = logits + row * stride + columns
    above = tl.load(place, mask=inside, other=float("-inf")).to(tl.float32) - tl.load(peaks + row)
    log_p = above - tl.load(log_totals + row)
    gradient = -tl.load(totals + row) * tl.exp(log_p)
    if with_share:
        gradient += tl.load(shares + row)
    if with_outside:  # wrong for the ids inside, which are written afterwards
        gradient += tl.load(of_outside + row) * tl.exp(log_p - tl.load(outsides + row))
    if with_tempered:
        gradient += tl.load(of_tempered + row) * tl.exp(above * power - tl.load(tempered_log_totals + row))
    if with_dense:
        gradient += tl.load(dense + row * vocab_size + columns, mask=inside, other=0.0)
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


def reduced(logits: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(n, 1) float32 each: the logits' peak; of y = power * (logits - peak) log of sum(exp(y)), mean under softmax(y).

    logits: (n, V) float32 or bfloat16 with adjacent columns, read once. power: above 0.
    """
    n, vocab_size = logits.shape
    found = logits.new_empty(3, n, 1, dtype=torch.float32)
    peak, log_total, shift = found.unbind()
    if n:
        with on_device_of(logits):
            _reduce_kernel[(n,)](
                logits, peak, log_total, shift, vocab_size, logits.stride(0), power,
                block=BLOCK,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
    return peak, log_total, shift


@dataclass(frozen=True, eq=False)
class Tempered:
    """softmax(power * logits) as weights of an expectation. log_total: (n, 1), of exp(power * (logits - their peak)).

    Called with a tile's place it gives the (m, V) weights, as any weights of `ChunkStudent` do.
    """

    student: TritonStudent
    power: float
    log_total: Tensor

    def at(self, log_p: Tensor, rows: slice) -> Tensor:
        """(m, K) weights of ids with these log-probabilities, which are overwritten."""
        above = log_p.add_(self.student.log_total[rows])
        return above.mul_(self.power).sub_(self.log_total[rows]).exp_()

    def __call__(self, place: int) -> Tensor:
        rows = self.student.tiles[place]
        return self.at(self.student.log_p_of_tile(rows), rows)


@dataclass(frozen=True, eq=False)
class _Terms:
    """Gradients of the rows' statistics, (n, 1) each, as the kernel takes them; None: there is none of that kind."""

    total: Tensor
    share: Tensor | None
    outside: tuple[Tensor, Tensor] | None
    tempered: tuple[Tempered, Tensor] | None

    def rows(self, tile: slice) -> tuple[list[Tensor], list[bool]]:
        """The kernel's arguments for some rows, and which of them count, in its order."""
        found = [self.total, self.share, *(self.outside or (None, None))]
        found += [None, None] if self.tempered is None else [self.tempered[0].log_total, self.tempered[1]]
        flags = [self.share is not None, self.outside is not None, self.tempered is not None]
        # autograd gives gradients of any stride
        return [(self.total if one is None else one)[tile].contiguous() for one in found], flags


class TritonStudent(ChunkStudent):
    """As `ChunkStudent`, from an (n, V) buffer of float32 or bfloat16 logits with adjacent columns."""

    def _reduce(self) -> None:
        self._peak, self.log_total, self._shift = reduced(self._logits)
        torch.add(self._peak, self.log_total, out=self._logsumexp)

    @property
    def tiles(self) -> list[slice]:
        """The rows that a pass of PyTorch's takes at once."""
        return self._tiles

    def log_p_of_tile(self, tile: slice) -> Tensor:
        """(m, V) float32 log-probabilities, new."""
        return (self._logits[tile].float() - self._peak[tile]).sub_(self.log_total[tile])

    def _tile(self, tile: slice) -> Tensor:
        return self.log_p_of_tile(tile)

    def _log_p_of(self, ids: Tensor) -> Tensor:
        return (self._logits.gather(1, ids).float() - self._peak).sub_(self.log_total)

    def _entropy_of_tiles(self) -> Tensor:
        return (self.log_total - self._shift).squeeze(-1)

    def tempered_log_p(self, temperature: float) -> Tensor:
        power = 1 / temperature
        with torch.no_grad():
            _, log_total, shift = reduced(self._logits, power)
            leaf = self._leaf((shift / power - self.log_total).squeeze(-1))
        if self._remembers():
            self._expected.append((Tempered(self, power, log_total), torch.ones_like(leaf, requires_grad=False), leaf))
        return leaf

    @property
    def mean_log_p(self) -> Tensor:
        if self._mean is None:
            with torch.no_grad():
                self._mean = self._leaf(self._logits.mean(-1, dtype=torch.float32) - self._logsumexp.squeeze(-1))
        return self._mean

    def log_p_outside(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            inside = self._logits.gather(1, ids)
            peak, log_total, _ = reduced(self._logits.scatter_(1, ids, -torch.inf))
            self._logits.scatter_(1, ids, inside)
            outside = (peak - self._peak).add_(log_total).sub_(self.log_total)
            leaf = self._leaf(outside.squeeze(-1).clone())
        if self._remembers():
            self._outside.append((ids, outside.clamp_(min=torch.finfo(outside.dtype).min), leaf))
        return leaf

    @torch.no_grad()
    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        if k not in self._top:
            tiles = slices(len(self._logits), TOP_K_ROWS)
            found = [largest(self._logits[tile], min(k, self.vocab_size)) for tile in tiles]
            values, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
            self._top[k] = (values.float() - self._peak).sub_(self.log_total), ids
        return self._top[k]

    @torch.no_grad()
    def overwrite_with_gradient(self, losses: Tensor, scale: Tensor, *, entropy: bool = False) -> Tensor:
        # the entropy is there in any case: the first kernel computes it
        upstream = self._upstream(losses, scale)
        if upstream is None:
            return self._logits.zero_()
        label, at_ids, expected, outside, mean, total = upstream
        tempered = [item for item in expected if isinstance(item[0], Tempered)][:1]
        expected = [item for item in expected if item not in tempered]
        first, further = outside[:1], outside[1:]
        terms = _Terms(
            total,
            None if mean is None else mean / self.vocab_size,
            first[0][1:] if first else None,
            tempered[0] if tempered else None,  # pyright: ignore[reportArgumentType]
        )
        zeros = [torch.zeros_like(item[0], dtype=total.dtype) for item in first]
        ids = torch.cat([self.labels.unsqueeze(-1), *(ids for ids, _ in at_ids), *(item[0] for item in first)], 1)
        gradients = torch.cat([label, *(gradient for _, gradient in at_ids), *zeros], 1)
        single = self._of_single(ids, summed_over_equal(ids, gradients), terms, first[0][0] if first else None)
        whole = not (expected or further)
        for place, tile in enumerate([slice(0, len(ids))] if whole else self._tiles):
            dense = None if whole else self._dense_terms(place, expected, further, None)
            if dense is not None:
                single[tile] += dense.gather(1, ids[tile])
            self._overwrite(tile, terms, dense)
        return self._logits.scatter_(1, ids, single.to(self._logits.dtype))

    def _of_single(self, ids: Tensor, gradients: Tensor, terms: _Terms, inside: Tensor | None) -> Tensor:
        """(n, K) gradients of single ids: their own, and what the kernel gives every id."""
        log_p = self._log_p_of(ids)
        single = gradients - terms.total * log_p.exp()
        if terms.share is not None:
            single += terms.share
        if terms.outside is not None and inside is not None:
            outside, gradient = terms.outside
            single += torch.where(among(ids, inside), 0, gradient * (log_p - outside).exp())
        if terms.tempered is not None:
            of_tempered, gradient = terms.tempered
            single += gradient * of_tempered.at(log_p, slice(None))
        return single

    def _overwrite(self, tile: slice, terms: _Terms, dense: Tensor | None) -> None:
        z = self._logits[tile]
        given, flags = terms.rows(tile)
        power = 1.0 if terms.tempered is None else terms.tempered[0].power
        arguments: list[Any] = [z, self._peak[tile], self.log_total[tile], *given, z if dense is None else dense]
        arguments += [self.vocab_size, z.stride(0), power, *flags, dense is not None, BLOCK]
        if len(z):
            with on_device_of(z):
                _gradient_kernel[(len(z), triton.cdiv(self.vocab_size, BLOCK))](*arguments)


def among(ids: Tensor, others: Tensor) -> Tensor:
    """(n, K) whether an id is one of its row's others. ids: (n, K), others: (n, M)."""
    rows = max(PAIRS // max(ids.shape[1] * others.shape[1], 1), 1)
    parts = [
        (ids[start : start + rows].unsqueeze(2) == others[start : start + rows].unsqueeze(1)).any(2)
        for start in range(0, len(ids), rows)
    ]
    return torch.cat(parts) if parts else ids.bool()


def summed_over_equal(ids: Tensor, values: Tensor) -> Tensor:
    """(n, K): each value replaced by the sum of its row's values that have the same id. ids, values: (n, K)."""
    n, k = ids.shape
    if k == 1:
        return values
    rows = max(PAIRS // (k * k), 1)
    parts = []
    for start in range(0, n, rows):
        part = ids[start : start + rows]
        same = (part.unsqueeze(2) == part.unsqueeze(1)).to(values.dtype)
        parts.append((same @ values[start : start + rows].unsqueeze(-1)).squeeze(-1))
    return torch.cat(parts) if parts else values

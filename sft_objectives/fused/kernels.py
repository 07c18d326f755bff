"""The passes of a chunk over its vocabulary as two Triton kernels: the same `ChunkStudent`, for GPUs.

One kernel reads the logits once, as the matrix product left them (bfloat16 or float32), for peak, logsumexp and
entropy; the other replaces them by the gradient, in place and in their dtype. Single ids (the label, cached ones) are
computed apart in float32 and rounded once. What only some objectives ask for stays PyTorch, tile by tile.

Importing this module needs triton. `TRITON_INTERPRET=1`, set before that, runs the kernels without a GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .chunk_student import ChunkStudent

BLOCK = 4096
PAIRS = 2**24
"""Pairs of ids that are compared at once."""


@triton.jit
def _reduce_kernel(logits, peaks, log_totals, entropies, vocab_size, stride, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    peak = float("-inf")
    total = 0.0
    moment = 0.0  # sum of exp(z - peak) * (z - peak)
    for start in range(0, vocab_size, block):
        inside = start + columns < vocab_size
        z = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        new = tl.maximum(peak, tl.max(z, 0))
        shift = tl.where(new == float("-inf"), 0.0, new)
        e = tl.exp(z - shift)
        down = tl.where(peak == float("-inf"), 0.0, peak - shift)
        kept = tl.exp(down)
        moment = kept * (moment + total * down) + tl.sum(tl.where(e == 0.0, 0.0, e * (z - shift)), 0)
        total = kept * total + tl.sum(e, 0)
        peak = new
    tl.store(peaks + row, peak)
    tl.store(log_totals + row, tl.log(total))
    tl.store(entropies + row, tl.log(total) - moment / total)


@triton.jit
def _gradient_kernel(
    logits, peaks, log_totals, totals, dense, vocab_size, stride, with_dense: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < vocab_size
    place = logits + row * stride + columns
    z = tl.load(place, mask=inside, other=float("-inf")).to(tl.float32)
    p = tl.exp(z - tl.load(peaks + row) - tl.load(log_totals + row))
    gradient = -tl.load(totals + row) * p
    if with_dense:
        gradient += tl.load(dense + row * vocab_size + columns, mask=inside, other=0.0)
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """While open, kernels are launched on the tensor's GPU: Triton takes the current one, whatever its arguments."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


class TritonStudent(ChunkStudent):
    """As `ChunkStudent`, from an (n, V) buffer of float32 or bfloat16 logits with adjacent columns."""

    def _reduce(self) -> None:
        n = len(self._logits)
        self._peak, self._log_total, self._entropy = (torch.empty_like(self._logsumexp) for _ in range(3))
        if n:
            with on_device_of(self._logits):
                _reduce_kernel[(n,)](
                    self._logits, self._peak, self._log_total, self._entropy, self.vocab_size, self._logits.stride(0),
                    block=BLOCK,  # pyright: ignore[reportArgumentType]
                )  # fmt: skip
        torch.add(self._peak, self._log_total, out=self._logsumexp)

    def _tile(self, tile: slice) -> Tensor:
        return (self._logits[tile].float() - self._peak[tile]).sub_(self._log_total[tile])

    def _log_p_of(self, ids: Tensor) -> Tensor:
        return (self._logits.gather(1, ids).float() - self._peak).sub_(self._log_total)

    def _entropy_of_tiles(self) -> Tensor:
        return self._entropy.squeeze(-1)

    @torch.no_grad()
    def overwrite_with_gradient(self, losses: Tensor, scale: Tensor, *, entropy: bool = False) -> Tensor:
        # the entropy is there in any case: the first kernel computes it
        upstream = self._upstream(losses, scale)
        if upstream is None:
            return self._logits.zero_()
        label, at_ids, expected, outside, mean, total = upstream
        ids = torch.cat([self.labels.unsqueeze(-1), *(ids for ids, _ in at_ids)], 1)
        gradients = torch.cat([label, *(gradient for _, gradient in at_ids)], 1)
        single = summed_over_equal(ids, gradients) - total * self._log_p_of(ids).exp_()
        whole = not (expected or outside) and mean is None
        for place, tile in enumerate([slice(0, len(ids))] if whole else self._tiles):
            dense = None if whole else self._dense_terms(place, expected, outside, mean)
            if dense is not None:
                single[tile] += dense.gather(1, ids[tile])
            self._overwrite(tile, total[tile], dense)
        return self._logits.scatter_(1, ids, single.to(self._logits.dtype))

    def _overwrite(self, tile: slice, total: Tensor, dense: Tensor | None) -> None:
        z = self._logits[tile]
        if len(z):
            with on_device_of(z):
                _gradient_kernel[(len(z), triton.cdiv(self.vocab_size, BLOCK))](
                    z, self._peak[tile], self._log_total[tile], total, z if dense is None else dense, self.vocab_size,
                    z.stride(0), with_dense=dense is not None, block=BLOCK,  # pyright: ignore[reportArgumentType]
                )  # fmt: skip


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

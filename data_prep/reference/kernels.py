"""The pass of `statistics` over the vocabulary as one Triton kernel, for GPUs.

It reads the logits once, as the matrix product left them (bfloat16 or float32), for logsumexp, entropy, the mass up to
the label, and the largest value of each block of ids, among which the most probable ids are found. Nothing of the
vocabulary's size is written.

Importing this module needs triton. `TRITON_INTERPRET=1`, set before that, runs the kernel without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.distributions import WINDOW
from common.kernel_device import on_device_of
from data_prep.reference.statistics import row_fields

BLOCK = 64  # ids with one maximum: sqrt(V / k) for most models, where finding the k largest ids costs least
BLOCKS = 64  # that a program reads at once


@triton.jit
def _statistics_kernel(
    logits, label_logits, log_totals, entropies, masses, maxima, vocab_size, maxima_size, stride,
    blocks: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, blocks)
    columns = places[:, None] * block + tl.arange(0, block)[None, :]
    at_label = tl.load(label_logits + row)
    # One running softmax for each line of the tile, so that the loop needs no sum across warps.
    peak = tl.full([blocks], float("-inf"), tl.float32)
    total = tl.zeros([blocks], tl.float32)
    moment = tl.zeros([blocks], tl.float32)  # sum of exp(z - peak) * (z - peak)
    mass = tl.zeros([blocks], tl.float32)  # sum of exp(z - peak) over z <= at_label
    for start in range(0, vocab_size, blocks * block):
        inside = start + columns < vocab_size
        z = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        largest = tl.max(z, 1)
        here = start // block + places
        tl.store(maxima + row * maxima_size + here, largest, mask=here < maxima_size)  # in the logits' dtype: exact
        new = tl.maximum(peak, largest)
        shift = tl.where(new == float("-inf"), 0.0, new)
        down = tl.where(peak == float("-inf"), 0.0, peak - shift)
        kept = tl.exp(down)
        distance = z - shift[:, None]
        e = tl.exp(distance)
        moment = kept * (moment + total * down) + tl.sum(tl.where(e == 0.0, 0.0, e * distance), 1)
        total = kept * total + tl.sum(e, 1)
        mass = kept * mass + tl.sum(tl.where(z <= at_label, e, 0.0), 1)
        peak = new
    down = tl.where(peak == float("-inf"), 0.0, peak - tl.max(peak, 0))
    kept = tl.exp(down)
    sum_of_e = tl.sum(kept * total, 0)
    expected = tl.sum(kept * (moment + total * down), 0) / sum_of_e  # pyright: ignore[reportOperatorIssue]
    tl.store(log_totals + row, tl.log(sum_of_e))
    tl.store(entropies + row, tl.log(sum_of_e) - expected)
    tl.store(masses + row, tl.sum(kept * mass, 0) / sum_of_e)  # pyright: ignore[reportOperatorIssue]


@torch.no_grad()
def statistics_in_one_pass(logits: Tensor, labels: Tensor, top_k: int) -> dict[str, Tensor]:
    """As `statistics`, from (n, V) float32 or bfloat16 logits with adjacent columns, which stay as they are."""
    n, vocab_size = logits.shape
    label = logits.gather(1, labels.unsqueeze(1)).float()
    log_total, entropy, mass = (torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(3))
    maxima = logits.new_empty(n, vocab_size // BLOCK)
    if n:
        with on_device_of(logits):
            _statistics_kernel[(n,)](
                logits, label, log_total, entropy, mass, maxima, vocab_size, maxima.shape[1], logits.stride(0),
                blocks=BLOCKS, block=BLOCK,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
    top, ids = _largest(logits, maxima, min(max(top_k, WINDOW), vocab_size))
    return row_fields(ids, top.float(), label, log_total.unsqueeze(1), mass, entropy, top_k)


def _largest(z: Tensor, maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(n, k) largest values of (n, V), decreasing, and their int64 ids; maxima: (n, V // BLOCK), of whole blocks.

    They lie in the k blocks with the largest maxima, or in the rest that fills no block.
    """
    blocks = maxima.shape[1]
    if blocks < 4 * k:
        return z.topk(k, dim=1)
    edge = blocks * BLOCK
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    index = chosen.unsqueeze(2).expand(-1, -1, BLOCK)
    candidates = z[:, :edge].unflatten(1, (blocks, BLOCK)).gather(1, index).flatten(1)
    if edge < z.shape[1]:
        candidates = torch.cat([candidates, z[:, edge:]], 1)
    values, found = candidates.topk(k, dim=1)
    which = found // BLOCK
    in_blocks = chosen.gather(1, which.clamp(max=k - 1)) * BLOCK + found % BLOCK
    return values, torch.where(which < k, in_blocks, found - k * BLOCK + edge)

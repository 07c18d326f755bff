"""Statistics of one distribution per row, from its logits: the most probable ids, effective support, label mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 30  # most probable ids over which N1 and N2 are computed (LP-SFT, C.1)


def block_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk over the last dimension, exact, at about the cost of one pass over `values`.

    The row is cut into strided blocks; the k largest values lie in the k blocks with the largest maxima, so only those
    are searched. Equal values at the k-th place may come from other ids than torch.topk's.

    Args:
        values: (n, V) float.
        k: at most V.

    Returns:
        values (n, k) in decreasing order and their ids (n, k) int64.
    """
    rows, width = values.shape
    block = 1 << round(math.log2(max(1.0, math.sqrt(width / k))))
    blocks = width // block
    if block < 4 or blocks <= k:
        return values.topk(k, dim=-1)
    body = values[:, : blocks * block].unflatten(-1, (block, blocks))
    chosen = body.amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = body.gather(2, chosen.unsqueeze(1).expand(-1, block, -1)).flatten(1)
    ids = (chosen.unsqueeze(1) + blocks * torch.arange(block, device=values.device).view(1, -1, 1)).flatten(1)
    if blocks * block < width:
        candidates = torch.cat([candidates, values[:, blocks * block :]], -1)
        ids = torch.cat([ids, torch.arange(blocks * block, width, device=values.device).expand(rows, -1)], -1)
    top = candidates.topk(k, dim=-1)
    return top.values, ids.gather(1, top.indices)


@torch.no_grad()
def effective_support(top_logits: Tensor) -> tuple[Tensor, Tensor]:
    """N1 and N2 of the distribution renormalised to the given top logits (LP-SFT eq. 2-5).

    Args:
        top_logits: (n, w), logits or log-probabilities of the w most probable ids.

    Returns:
        exp of the Shannon and of the collision entropy, (n,) float64 each.
    """
    log_q = top_logits.double().log_softmax(-1)
    q = log_q.exp()
    return torch.special.entr(q).sum(-1).exp(), 1 / q.square().sum(-1)


@torch.no_grad()
def window_support(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`effective_support` of the WINDOW most probable ids of (n, V) logits: N1 and N2, (n,) float64 each."""
    return effective_support(logits.topk(min(WINDOW, logits.shape[-1]), dim=-1).values)


@torch.no_grad()
def label_mass(logits: Tensor, labels: Tensor, *, strict: bool = False) -> Tensor:
    """(n,) PriFT's u = sum of q(v) over v with q(v) <= q(y), eq. 3, from (n, V) logits; 1 exactly for a top-ranked y.

    float32, float64 for float64 logits.

    strict: the published code's form, the sum over q(v) < q(y) plus q(y): ids tied with y do not count, and 1 exactly
    is for a y that is the only one at the top.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    q = logits.softmax(-1)
    label = labels.unsqueeze(-1)
    z_label = logits.gather(-1, label)
    if strict:
        mass = (q * (logits < z_label)).sum(-1) + q.gather(-1, label).squeeze(-1)
        alone = (logits < z_label).sum(-1) == logits.shape[-1] - 1
        return torch.where(alone, torch.ones_like(mass), mass)
    mass = (q * (logits <= z_label)).sum(-1)
    return torch.where(z_label.squeeze(-1) == logits.amax(-1), torch.ones_like(mass), mass)

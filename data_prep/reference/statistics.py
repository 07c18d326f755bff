"""What a cache stores of a distribution per row, from whole logits or from the most probable ids alone."""

from __future__ import annotations

import torch
from torch import Tensor

from common.distributions import WINDOW, block_topk, effective_support


@torch.no_grad()
def statistics(logits: Tensor, labels: Tensor, top_k: int) -> dict[str, Tensor]:
    """All that a forward pass can store of (n, V) float32 logits and (n,) int64 labels. Overwrites `logits`.

    label_mass is PriFT's u (eq. 3): the mass of all ids that are at most as probable as the label, every tie included,
    and exactly 1 for a label that no id exceeds.

    Returns:
        support_ids (n, top_k) int64, support_logprobs (n, top_k) float32, and (n,) tensors: label_logprob, label_mass,
        logsumexp, entropy float32, n1, n2 float64, ceil_n1, ceil_n2 int64.
    """
    width = logits.shape[-1]
    top, ids = block_topk(logits, min(max(top_k, WINDOW), width))
    largest = top[:, :1]
    label = logits.gather(-1, labels.unsqueeze(-1))
    q = logits.softmax(-1)
    # On a CPU each line below is one vectorised pass; comparisons that give booleans and bmm are several times slower.
    total = q.sum(-1)  # not quite 1: softmax adds up in one sequence, `sum` in pairs
    mass = logits.clone().le_(label).mul_(q).sum(-1) / total
    log_total = (total / q.amax(-1)).log().unsqueeze(-1)
    expected = logits.sub_(largest).mul_(q).sum(-1) / total
    entropy = log_total.squeeze(-1) - expected
    return row_fields(ids, top, label, log_total, mass, entropy, top_k)


def row_fields(
    ids: Tensor, top: Tensor, label: Tensor, log_total: Tensor, mass: Tensor, entropy: Tensor, top_k: int
) -> dict[str, Tensor]:
    """What `statistics` returns, from what the passes over the vocabulary gave.

    Args:
        ids, top: (n, w) the most probable ids and their logits, decreasing, w >= WINDOW or V.
        label: (n, 1) the label's logit. log_total: (n, 1) logsumexp less the largest logit.
        mass: (n,) of all ids at most as probable as the label. entropy: (n,).
    """
    largest = top[:, :1]
    n1, n2 = effective_support(top[:, :WINDOW])
    return {
        "support_ids": ids[:, :top_k],
        "support_logprobs": (top[:, :top_k] - largest - log_total).clamp_(max=0.0),
        "label_logprob": (label - largest - log_total).squeeze(-1).clamp_(max=0.0),
        "label_mass": torch.where((label == largest).squeeze(-1), torch.ones_like(mass), mass),
        "logsumexp": (largest + log_total).squeeze(-1),
        "entropy": entropy.clamp(min=0.0),
        "n1": n1,
        "n2": n2,
        "ceil_n1": n1.ceil().long(),
        "ceil_n2": n2.ceil().long(),
    }


def statistics_of_top(ids: Tensor, logprobs: Tensor, top_k: int) -> dict[str, Tensor]:
    """What the label and the most probable ids tell: `statistics` without label_mass, logsumexp and entropy.

    Args:
        ids: (n, 1 + w) int64, the label and then the w most probable ids.
        logprobs: (n, 1 + w) float32 of these, normalised over the vocabulary.
    """
    n1, n2 = effective_support(logprobs[:, 1 : 1 + WINDOW])
    return {
        "support_ids": ids[:, 1 : 1 + top_k],
        "support_logprobs": logprobs[:, 1 : 1 + top_k],
        "label_logprob": logprobs[:, 0],
        "n1": n1,
        "n2": n2,
        "ceil_n1": n1.ceil().long(),
        "ceil_n2": n2.ceil().long(),
    }

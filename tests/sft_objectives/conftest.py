"""A small packed batch that every objective can be computed on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import sft_objectives
from sft_objectives import Objective, Reference


@dataclass
class Batch:
    """Four packed sequences, some positions unsupervised; the references hold every field."""

    logits: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    sequence_lengths: torch.Tensor
    references: dict[str, Reference]
    columns: dict[str, torch.Tensor]

    def losses(self, objective: Objective, **changes) -> torch.Tensor:
        given = {
            "mask": self.mask,
            "sequence_lengths": self.sequence_lengths,
            "reference": self.references,
            "columns": self.columns,
        }
        return sft_objectives.token_losses(objective, self.logits, self.labels, **{**given, **changes})

    def gradient(self, objective: Objective, **changes) -> torch.Tensor:
        return torch.autograd.grad(self.losses(objective, **changes).sum(), self.logits)[0]


def make_batch(dtype=torch.float64, vocab_size=50, scale=2.0, lengths=(9, 4, 14, 7), top_k=20, seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)

    def normal() -> torch.Tensor:
        return torch.randn(n, vocab_size, generator=generator, dtype=torch.float64)

    logits = normal() * scale
    likely = logits.topk(min(5, vocab_size)).indices.gather(1, torch.randint(0, 5, (n, 1), generator=generator))
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.7,
        likely.squeeze(-1),
        torch.randint(0, vocab_size, (n,), generator=generator),
    )
    references = {
        source: Reference.from_logits((logits + 0.5 * normal()).to(dtype), labels, top_k=top_k)
        for source in ("base", "teacher", "checkpoint", "ema", "old")
    }
    mask = torch.rand(n, generator=generator) < 0.8
    columns = {"critical": (torch.rand(n, generator=generator) < 0.5).float()}
    return Batch(logits.to(dtype).requires_grad_(), labels, mask, torch.tensor(lengths), references, columns)


@pytest.fixture
def batch() -> Batch:
    return make_batch()

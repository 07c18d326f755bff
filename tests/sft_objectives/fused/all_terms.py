"""A program: an objective that asks for everything at once, some of it twice; prints both backends' relative errors."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from sft_objectives import fused_loss
from sft_objectives.contract import Objective

VOCABULARY = 9001


@dataclass(frozen=True, kw_only=True)
class AllTerms(Objective):
    """Every statistic; two temperatures and two sets of ids to leave out, one of which holds the label."""

    name: ClassVar[str] = "all_terms"

    def loss(self, step):
        student = step.student
        top = student.top_k(3)[1]
        with_label = torch.stack([student.labels, (student.labels + 1) % student.vocab_size], 1)
        # their gradients are columns of one tensor
        stacked = torch.stack([student.tempered_log_p(0.7), student.log_p_outside(with_label)], -1)
        return (
            -student.log_p_label
            + (stacked * stacked.new_tensor([0.3, -0.1])).sum(-1)
            + 0.2 * student.tempered_log_p(2.0)
            - 0.05 * student.log_p_outside(top)
            - 0.2 * student.mean_log_p
            - 0.1 * student.log_p(top).sum(-1)
            + 0.1 * student.expected_log_p(lambda chunk: chunk.p(0.5) / 2)
        )


def errors() -> dict[str, list[float]]:
    """Of the loss and the gradients of hidden states and head, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(rows, 8, generator=generator) for rows in (9, VOCABULARY))
    labels = torch.randint(0, VOCABULARY, (9,), generator=generator)
    found = {}
    for backend, dtype in (("exact", torch.float64), ("torch", torch.float32), ("triton", torch.float32)):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (hidden, head)]
        which = "torch" if backend == "exact" else backend
        loss = fused_loss(AllTerms(), *inputs, labels, mask=None, normalizer=9, chunk_size=4, backend=which)
        assert isinstance(loss, torch.Tensor)
        found[backend] = [loss.detach(), *torch.autograd.grad(loss, inputs)]
    return {
        backend: [
            float((mine.double() - exact).abs().max() / exact.abs().max())
            for mine, exact in zip(found[backend], found["exact"], strict=True)
        ]
        for backend in ("torch", "triton")
    }


if __name__ == "__main__":
    json.dump(errors(), sys.stdout)

"""How far both backends of `fused_loss` are from float64, on one small problem: for the tests and for a new device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import Reference, fused_loss, load

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sft", {}),
    ("idft", {}),
    ("eaft", {}),
    ("label_smoothing", {}),
    ("gem", {}),
    ("gem", {"variant": "logsigmoid"}),
    ("lp_sft", {}),
    ("target_sft", {}),
    ("sft_kl", {"estimator": "topk"}),
    ("sft_kl", {}),
)
"""Objectives that between them ask for every statistic that the passes over the vocabulary give."""

SHAPES = ((9, 8, 203), (21, 8, 1027), (70, 64, 9001))
"""Tokens, width and vocabulary: below, above and twice a kernel's block, none of them a multiple of it."""


def relative_errors(
    dtype: torch.dtype,
    name: str,
    settings: dict[str, Any],
    *,
    scale: float = 1.0,
    shape: tuple[int, int, int] = SHAPES[0],
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Largest error over largest value, of the backends `torch` and `triton` against float64.

    Six figures each: the loss, the gradients of hidden states, head and bias, the rows' losses and entropies.

    scale: of the hidden states, and with them of the logits.
    """
    tokens, width, vocab_size = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    hidden, head = (normal(tokens, width) * scale).to(dtype), normal(vocab_size, width).to(dtype)
    labels = torch.randint(0, vocab_size, (tokens,), generator=generator)
    other = (hidden.float() + 0.3 * normal(tokens, width)).to(dtype)
    reference = Reference.from_logits((other @ head.t()).float(), labels, top_k=20)
    fields = {field: reference.get(field).to(device) for field in reference.fields - {"logits"}}
    mask = torch.ones(tokens)
    mask[2::4] = 0
    bias = torch.linspace(-1, 1, vocab_size).to(dtype)
    found = {}
    for backend, kind in (("exact", torch.float64), ("torch", dtype), ("triton", dtype)):
        inputs = [tensor.to(device, kind).requires_grad_() for tensor in (hidden, head, bias)]
        live = (other.to(device, kind), head.to(device, kind), None)
        loss_and_statistics: Any = fused_loss(
            load(name, **settings),
            inputs[0],
            inputs[1],
            labels.to(device),
            head_bias=inputs[2],
            mask=mask.to(device),
            token_scale=torch.linspace(-1, 2, tokens, device=device),
            reference=Reference(**fields, live=live),
            normalizer=7,
            chunk_size=4 if tokens < 32 else 32,
            return_statistics=True,
            backend="torch" if backend == "exact" else backend,
        )
        value, statistics = loss_and_statistics
        gradients = torch.autograd.grad(value, inputs)
        assert all(gradient.dtype == kind for gradient in gradients)
        found[backend] = [value.detach(), *gradients, statistics["loss"], statistics["entropy"]]
    return {
        backend: [
            float((mine.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3))
            for mine, exact in zip(found[backend], found["exact"], strict=True)
        ]
        for backend in ("torch", "triton")
    }


EXPONENTIAL = 2e-6
"""Relative error of a GPU's own exponential, which Triton takes, at exponents of some -20: it rounds x log2(e)."""


def as_near(errors: dict[str, list[float]], dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether Triton's errors are at most 1.5 times those of PyTorch's passes, up to rounding."""
    rounding = 4 * torch.finfo(dtype).eps + (EXPONENTIAL if device == "cuda" else 0.0)
    return all(mine <= 1.5 * theirs + rounding for mine, theirs in zip(errors["triton"], errors["torch"], strict=True))

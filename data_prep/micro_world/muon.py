"""Muon in float32: PyTorch's own computes its products in bfloat16, which processors without it emulate.

For the micro-world's 28 matrices that is 2.2 s a step with AVX2 alone, where float32 takes 0.12 s (one thread).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov's momentum, in the parameters' own precision.

    A matrix is moved by `lr` times its orthogonalised momentum (Jordan 2024), scaled by 0.2 sqrt(longer side), which
    makes the root mean square of an element that of AdamW's updates (Liu et al. 2025, "Muon is scalable for LLM
    training", eq. 4), so that the two rates compare.

    params: matrices, (rows, columns) floating point, or groups of them; PyTorch raises ValueError for others. lr:
    learning rate. weight_decay: decoupled, times `lr`.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move every parameter that has a gradient. closure: not supported, raises ValueError."""
        if closure is not None:
            raise ValueError("a closure is not supported; call backward() before step()")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(mean, group["momentum"])
        update = orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonalised(matrix: torch.Tensor, coefficients: Sequence[float], steps: int, eps: float) -> torch.Tensor:
    """Newton and Schulz's iteration X <- aX + b(XX')X + c(XX')^2 X, which brings all singular values near 1.

    Args:
        matrix: (rows, columns), floating point; the result has its shape and dtype.
        coefficients: a, b and c; with Jordan's the values end between about 0.7 and 1.2.
        steps: iterations.
        eps: smallest norm to divide by.
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found

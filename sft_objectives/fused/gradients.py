"""Values whose gradients are computed already: backward only multiplies them, once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class WithGradients(torch.autograd.Function):
    """A value whose gradients are already there."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor):
        if ctx.gradients is None:
            raise RuntimeError("fused_loss: backward was called twice; its gradients exist once, so call it again")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if gradient is None else gradient.mul_(upstream[0]) for gradient in gradients]
        return None, None, *scaled


class RowsWithGradients(torch.autograd.Function):
    """Losses of rows; the gradients of their sum divided by the normalizer are already there."""

    @staticmethod
    def forward(ctx, losses: Tensor, normalizer: float, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.normalizer, ctx.gradients = normalizer, gradients
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor):
        if ctx.gradients is None:
            raise RuntimeError("fused losses: backward was called twice; their gradients exist once")
        gradients, ctx.gradients = ctx.gradients, None
        if len(upstream[0]):
            factor = upstream[0][0]
            if not bool((upstream[0] == factor).all()):
                raise RuntimeError(
                    "fused losses: upstream gradients differ between rows; only their sum has a gradient"
                )
            factor = factor * ctx.normalizer
            gradients = [None if gradient is None else gradient.mul_(factor) for gradient in gradients]
        return None, None, None, *gradients

"""The supervised rows of one call of the output head inside a larger global batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..contract import BatchConstants, Objective
from ..inputs import fitted
from ..reference import Reference
from .backend import student_of
from .chunks import ChunkedRows, ConstantsOfNoRows, Measure, check_inputs, statistics_dtype
from .gradients import RowsWithGradients


class HeadRows:
    """The supervised rows of one call of the output head, for a caller that knows what belongs to its global batch.

    hidden (N, D), head_weight (V, D), head_bias (V,) or None, as in `fused_loss`; rows (n,) int64 places in hidden.
    labels (n,), reference (n rows), columns (n,) and constants (n rows) are given for these rows alone. Sources of a
    `reference` mapping that the objective does not need are handed to `measure` too. Raises ValueError as `fused_loss`.
    """

    def __init__(
        self,
        objective: Objective,
        hidden: Tensor,
        head_weight: Tensor,
        labels: Tensor,
        *,
        rows: Tensor,
        reference: Mapping[str, Reference],
        columns: Mapping[str, Tensor],
        constants: BatchConstants,
        chunk_size: int,
        head_bias: Tensor | None,
    ) -> None:
        check_inputs(hidden, head_weight, head_bias, labels, None, None, chunk_size, rows=len(rows))
        self._inputs = [hidden, head_weight, *([] if head_bias is None else [head_bias])]
        self._batch = ChunkedRows(
            objective=objective,
            hidden=hidden.detach(),
            head_weight=head_weight.detach(),
            head_bias=None if head_bias is None else head_bias.detach(),
            rows=rows,
            labels=labels,
            reference=fitted(reference, len(head_weight)),
            columns=dict(columns),
            constants=constants if len(rows) else ConstantsOfNoRows(device=hidden.device),
            student=student_of("auto", hidden),
            chunk_size=chunk_size,
        )

    @torch.no_grad()
    def token_scalars(self) -> dict[str, Tensor]:
        """(n,) detached scalars of the objective's first pass, by name."""
        with torch.autocast(self._batch.hidden.device.type, enabled=False):
            return self._batch.token_scalars(self._batch.buffer())

    def values(self, normalizer: float, measure: Measure | None = None) -> dict[str, Tensor]:
        """(n,) float32 or float64 tensors by name: `loss`, and what `fused_loss` returns as statistics.

        `loss` is differentiable in the inputs for an upstream gradient that is the same on every row, as that of a sum
        is, else backward raises RuntimeError. normalizer: the sum will be divided by it; this only sets where bfloat16
        rounds. measure: gives further (n,) tensors by name, from the step of a chunk.
        """
        batch = replace(self._batch, measure=measure)
        trained = [
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
            for tensor in (*self._inputs, *[None] * (3 - len(self._inputs)))
        ]
        with torch.no_grad(), torch.autocast(batch.hidden.device.type, enabled=False):
            dtype = statistics_dtype(batch.hidden)
            scale = torch.full((len(batch.rows),), 1 / normalizer, dtype=dtype, device=batch.hidden.device)
            statistics, gradients = batch.train(scale, trained, batch.buffer(), True, True)
        if any(trained):
            gradients = gradients[: len(self._inputs)]
            statistics["loss"] = RowsWithGradients.apply(statistics["loss"], normalizer, gradients, *self._inputs)
        return statistics

"""Output head, objective and gradient in one pass over chunks of rows: the (N, V) logits never exist as a whole.

For each chunk of supervised rows: logits = hidden @ head_weight.T into one reused buffer, the objective's own `loss` on
the statistics of that buffer (`ChunkStudent`), autograd from the loss to these statistics only, one generic
vector-Jacobian product from there to the logits in place, and its two matrix products. The gradients are ready when
`fused_loss` returns; `backward` only multiplies them by the upstream scalar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..contract import BatchConstants, Objective
from ..inputs import Constants, dataset_constants, fitted, resolve_columns, select, sequence_ids, supervised_rows
from ..reference import Reference
from .backend import student_of
from .chunk_size import default_chunk_size
from .chunks import ChunkedRows, ConstantsOfNoRows, check_inputs, statistics_dtype
from .gradients import WithGradients


def fused_loss(
    objective: Objective,
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None,
    token_scale: Tensor | None = None,
    sequence_lengths: Tensor | None = None,
    reference: Reference | Mapping[str, Reference] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    constants: Constants | None = None,
    normalizer: float | Tensor | None,
    chunk_size: int | None = None,
    head_bias: Tensor | None = None,
    return_statistics: bool = False,
    accumulate_float32: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """sum(mask * token_scale * loss) / normalizer over N positions, differentiable in hidden, head_weight, head_bias.

    hidden (N, D), head_weight (V, D), head_bias (V,) or None: of one dtype, float64, float32 or bfloat16. labels (N,)
    int64: row t predicts labels[t]. mask (N,), None for all: rows with 0 are dropped before the head. token_scale (N,)
    multiplies the losses and carries no gradient. normalizer: None is that of the constants if they set one, else the
    number of supervised rows. sequence_lengths, reference, columns, constants: as in `token_losses`. Batch-coupled
    objectives make a first pass over the head without gradient, unless `constants` is a `BatchConstants`.

    chunk_size: rows whose logits exist at a time; None chooses from D and the free memory. The size changes the order
    of sums: for equal bits on a machine short of memory, name it. accumulate_float32: add the chunks' gradients of
    head_weight in float32 where the model is bfloat16. backend: torch, triton (a GPU, not float64), or auto, which is
    triton where it can run.

    Returns a float32 scalar, float64 for float64. With return_statistics also a dict of detached (N,) tensors, 0 on
    rows with mask 0: loss (without scale and normalizer), cross_entropy, entropy, and the objective's diagnostics as
    diagnostic_<name>; they cost further passes.

    The gradients exist once: a second backward raises RuntimeError. Raises ValueError for inputs that are missing or do
    not fit.
    """
    check_inputs(hidden, head_weight, head_bias, labels, mask, token_scale, chunk_size)
    n, vocab_size = len(hidden), len(head_weight)
    trained = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden, head_weight, head_bias)
    ]
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        rows, supervised = supervised_rows(labels, mask, vocab_size)
        sequence = sequence_ids(objective, sequence_lengths, n, hidden.device)
        reference = fitted(reference, vocab_size)
        given = select(reference, rows, n)
        if not len(rows):
            constants = ConstantsOfNoRows(device=hidden.device)
        elif constants is None:
            everywhere = torch.ones(n, dtype=torch.bool, device=hidden.device) if mask is None else mask != 0
            constants = dataset_constants(objective, reference, everywhere, sequence)
        batch = ChunkedRows(
            objective=objective,
            hidden=hidden.detach(),
            head_weight=head_weight.detach(),
            head_bias=None if head_bias is None else head_bias.detach(),
            rows=rows,
            labels=supervised,
            reference=given,
            columns=resolve_columns(objective, columns, rows, n),
            constants=BatchConstants(),
            student=student_of(backend, hidden),
            chunk_size=chunk_size or default_chunk_size(objective, hidden, vocab_size, trained[1]),
        )
        buffer = batch.buffer()
        if isinstance(constants, BatchConstants):
            constants = constants.rows(rows)
        else:
            first_pass = batch.constants_of_batch(None if sequence is None else sequence[rows], buffer)
            constants = first_pass.merged(constants or {})
        batch = replace(batch, constants=constants)
        if normalizer is None:
            normalizer = max(len(rows), 1) if constants.normalizer is None else constants.normalizer
        dtype = statistics_dtype(hidden)
        scale = torch.ones(len(rows), dtype=dtype, device=hidden.device)
        for factor in (mask, token_scale):
            if factor is not None:
                scale *= factor.detach()[rows]
        scale /= normalizer
        statistics, gradients = batch.train(scale, trained, buffer, return_statistics, accumulate_float32)
        value = (scale.double() * statistics["loss"]).sum().to(dtype)
    if any(trained):
        inputs = [hidden, head_weight, *([] if head_bias is None else [head_bias])]
        value = WithGradients.apply(value, gradients[: len(inputs)], *inputs)
    if not return_statistics:
        return value
    spread = {name: values.new_zeros(n).index_copy(0, rows, values) for name, values in statistics.items()}
    return value, spread

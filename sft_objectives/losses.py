"""The dense path: losses per token from (N, V) logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .contract import Objective, Step
from .inputs import (
    Constants,
    check_rows,
    dataset_constants,
    fitted,
    resolve_columns,
    resolve_constants,
    resolve_references,
    select,
    sequence_ids,
    supervised_rows,
)
from .reference import Reference
from .student import DenseStudent


def token_losses(
    objective: Objective,
    logits: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    sequence_lengths: Tensor | None = None,
    reference: Reference | Mapping[str, Reference] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    constants: Constants | None = None,
) -> Tensor:
    """The loss of each position, (N,), differentiable in `logits`.

    logits: (N, V), aligned so that row t predicts labels[t]. labels: (N,) int64. mask: (N,), nonzero on supervised
    positions, all if None; other rows give exactly 0 and get exactly zero gradient, whatever they hold.
    sequence_lengths: (B,) int64 of the packed batch, with sum N. reference: one `Reference` for every source asked for,
    or a mapping from source to `Reference`. columns: data columns, (N,) each.
    constants: a `BatchConstants`, or a mapping of data-set constants; what is not given is computed as if this call
    were the global batch (and, for data-set constants, with the base reference of this call as the data set).

    The result is float32, or float64 for float64 logits. Raises ValueError for inputs
    that do not fit, ConfigError for those that are missing.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: allowed: (N, V) and (N,); flatten them"
        )
    n = len(logits)
    check_rows("mask", mask, n)
    with torch.autocast(logits.device.type, enabled=False):  # the statistics are float32 whatever the context is
        vocab_size = logits.shape[1]
        rows, labels = supervised_rows(labels, mask, vocab_size)
        reference = fitted(reference, vocab_size)
        given = select(reference, rows, n)
        references = resolve_references(objective, given, labels, vocab_size)
        columns = resolve_columns(objective, columns, rows, n)
        sequence = sequence_ids(objective, sequence_lengths, n, logits.device)
        if not len(rows):  # no threshold or median of no positions is needed
            wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
            return torch.zeros(n, dtype=wide, device=logits.device).index_copy(0, rows, logits[rows, 0].to(wide))
        if constants is None:
            supervised = torch.ones(n, dtype=torch.bool, device=logits.device) if mask is None else mask != 0
            constants = dataset_constants(objective, reference, supervised, sequence)
        student = DenseStudent(logits if len(rows) == n else logits[rows], labels)
        sequence = None if sequence is None else sequence[rows]
        first_pass = Step(student, references, columns)
        constants = resolve_constants(objective, constants, first_pass, sequence, rows)
        losses = objective.loss(Step(student, references, columns, constants))
        return torch.zeros(n, dtype=losses.dtype, device=losses.device).index_copy(0, rows, losses)

"""The dense path: losses per token from (N, V) logits, and the checks that both paths share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .contract import BatchConstants, Objective
from .reference import Reference
from .student import DenseStudent, Student

DEFAULT_TOP_K = 64
"""Ids kept of a live reference where the objective names no number (TARGET, App. A)."""

Constants = BatchConstants | Mapping[str, float]


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

    The result is float32, or float64 for float64 logits. Raises ValueError for inputs that are missing or do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: allowed: (N, V) and (N,); flatten them"
        )
    n, vocab_size = logits.shape
    _check_rows("mask", mask, n)
    rows = torch.arange(n, device=logits.device) if mask is None else mask.nonzero().squeeze(-1)
    labels = labels[rows]
    if len(rows) and not 0 <= int(labels.min()) <= int(labels.max()) < vocab_size:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels of supervised positions are {found}; allowed: 0 to {vocab_size - 1}; mask the others")
    given = _select(reference, rows, n)
    references = resolve_references(objective, given, labels, vocab_size)
    columns = resolve_columns(objective, columns, rows, n)
    sequence = sequence_ids(objective, sequence_lengths, n, logits.device)
    if not len(rows):  # no threshold or median of no positions is needed
        wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
        return torch.zeros(n, dtype=wide, device=logits.device).index_copy(0, rows, logits[rows, 0].to(wide))
    if constants is None and objective.needs.dataset:
        supervised = torch.ones(n, dtype=torch.bool, device=logits.device) if mask is None else mask != 0
        constants = dataset_constants(objective, reference, supervised, sequence)
    student = DenseStudent(logits if len(rows) == n else logits[rows], labels)
    sequence = None if sequence is None else sequence[rows]
    constants = resolve_constants(objective, constants, student, references, columns, sequence, rows)
    losses = objective.loss(student, references, columns, constants)
    return torch.zeros(n, dtype=losses.dtype, device=losses.device).index_copy(0, rows, losses)


def _check_rows(what: str, tensor: Tensor | None, n: int) -> None:
    if tensor is not None and (tensor.ndim == 0 or len(tensor) != n):
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)}; allowed: {n} rows, one per position; align it with the labels"
        )


def _select(
    reference: Reference | Mapping[str, Reference] | None, rows: Tensor, n: int
) -> Reference | Mapping[str, Reference] | None:
    if reference is None:
        return None
    if isinstance(reference, Mapping):
        return {source: _rows_of(f"reference {source!r}", item, rows, n) for source, item in reference.items()}
    return _rows_of("reference", reference, rows, n)


def _rows_of(what: str, reference: Reference, rows: Tensor, n: int) -> Reference:
    for name in reference.fields - {"logits"}:
        value = getattr(reference, name)
        _check_rows(f"{what} field {name!r}", value[0] if name == "live" else value, n)
    _check_rows(f"{what} field 'logits'", reference.logits, n)
    return reference if len(rows) == n else reference.rows(rows)


def resolve_references(
    objective: Objective,
    reference: Reference | Mapping[str, Reference] | None,
    labels: Tensor,
    vocab_size: int,
) -> dict[str, Reference]:
    """The references that `objective.needs` asks for, by source, for the rows of `labels`.

    Absent fields are computed where the reference holds the whole distribution (logits or live). Raises ValueError if a
    source, a field or cached ids are missing.
    """
    resolved = {}
    for source, fields in objective.needs.references.items():
        if isinstance(reference, Mapping):
            found = reference.get(source)
            given = ", ".join(reference) or "none"
        else:
            found, given = reference, "none"
        if found is None:
            raise objective.error(
                f"needs reference {source!r}; given: {given}; pass it with {', '.join(sorted(fields))}"
            )
        width = objective.needs.support.get(source, 0)
        if not fields <= found.fields and "logits" in found.fields:
            found = found.filled(labels, top_k=max(width, DEFAULT_TOP_K), fields=fields)
        if missing := sorted(fields - found.fields):
            remedy = (
                "the full vocabulary needs a live reference (or logits); make the reference live, or choose a setting "
                "that uses the cached ids (estimator=topk, scope=local)"
                if missing == ["logits"]
                else "add the fields to the reference, or pass a live reference"
            )
            present = ", ".join(sorted(found.fields)) or "none"
            raise objective.error(f"needs {', '.join(missing)} of reference {source!r}; present: {present}; {remedy}")
        if found.support_ids is not None and width > found.support_ids.shape[-1] < vocab_size:
            raise objective.error(
                f"needs {width} ids per position of reference {source!r}; present: {found.support_ids.shape[-1]}; "
                "make the cache with a larger top_k, or lower objective.top_k"
            )
        resolved[source] = found
    return resolved


def resolve_columns(
    objective: Objective, columns: Mapping[str, Tensor] | None, rows: Tensor, n: int
) -> dict[str, Tensor]:
    """The data columns that `objective.needs` asks for, sliced to `rows`. Raises ValueError if one is missing."""
    columns = columns or {}
    if missing := sorted(objective.needs.columns - set(columns)):
        present = ", ".join(columns) or "none"
        raise objective.error(
            f"needs data column {', '.join(missing)}; present: {present}; add it to the training data"
        )
    for name in objective.needs.columns:
        _check_rows(f"column {name!r}", columns[name], n)
    return {name: columns[name][rows] for name in sorted(objective.needs.columns)}


def sequence_ids(objective: Objective, sequence_lengths: Tensor | None, n: int, device: torch.device) -> Tensor | None:
    """(N,) int64 index of the sequence of each position. Raises ValueError if it is needed and unknown."""
    if sequence_lengths is None:
        if objective.needs.sequences:
            raise objective.error("works on whole sequences and needs sequence_lengths; given: none; pass (B,) lengths")
        return None
    lengths = torch.as_tensor(sequence_lengths, device=device)
    if int(lengths.sum()) != n:
        raise ValueError(
            f"sequence_lengths sum to {int(lengths.sum())}; allowed: {n}, the number of positions; pass all of them"
        )
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)


def dataset_constants(
    objective: Objective,
    reference: Reference | Mapping[str, Reference] | None,
    mask: Tensor,
    sequence: Tensor | None,
) -> dict[str, float]:
    """Data-set constants with the base reference of this call as the data set. mask, sequence: (N,).

    Raises ValueError if there is no base reference with the fields that `objective.needs.dataset_fields` names.
    """
    base = reference.get("base") if isinstance(reference, Mapping) else reference
    fields = objective.needs.dataset_fields
    if base is None or not fields <= base.fields:
        raise objective.error(
            "needs constants of the training set; given: none; pass constants=objective.dataset_constants(...), fix "
            f"them as settings, or pass a base reference with {', '.join(sorted(fields))}"
        )
    scalars = {name: base.get(name) for name in fields} | {"mask": mask}
    return objective.dataset_constants(scalars if sequence is None else {**scalars, "sequence": sequence})


def resolve_constants(
    objective: Objective,
    constants: Constants | None,
    student: Student | None,
    references: Mapping[str, Reference],
    columns: Mapping[str, Tensor],
    sequence: Tensor | None,
    rows: Tensor,
) -> BatchConstants:
    """Constants of a single call that is the global batch, for its supervised `rows` (n,) of N positions.

    A `BatchConstants` is taken as it is, its (N,) tokens sliced to `rows`; beside a mapping of data-set constants, or
    None, those of the batch are computed. student, references, columns, sequence hold the n supervised rows; `student`
    may be None if `objective.needs.batch_student` is empty.
    """
    if isinstance(constants, BatchConstants):
        return constants.rows(rows)
    batch = BatchConstants()
    if objective.needs.batch:
        scalars = objective.token_scalars(student, references, columns) | {
            "mask": torch.ones_like(rows, dtype=torch.bool)
        }
        if sequence is not None:
            scalars["sequence"] = sequence
        batch = objective.batch_constants(scalars, lambda local: local)
    return batch.merged(constants or {})

"""What both paths check and prepare before an objective's loss: masks, references, columns, constants."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .contract import BatchConstants, Objective, Step
from .reference import Reference

DEFAULT_TOP_K = 64
"""Ids kept of a live reference where the objective names no number (TARGET, App. A)."""

Constants = BatchConstants | Mapping[str, float]


def supervised_rows(labels: Tensor, mask: Tensor | None, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(n,) places of nonzero `mask` (N,) (None: all) and their labels. Raises ValueError for one outside [0, V)."""
    rows = torch.arange(len(labels), device=labels.device) if mask is None else mask.nonzero().squeeze(-1)
    labels = labels[rows]
    if len(rows) and not 0 <= int(labels.min()) <= int(labels.max()) < vocab_size:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels of supervised positions are {found}; allowed: 0 to {vocab_size - 1}; mask the others")
    return rows, labels


def check_rows(what: str, tensor: Tensor | None, n: int) -> None:
    """Raise ValueError unless the tensor's first dimension is n; None is fine."""
    if tensor is not None and (tensor.ndim == 0 or len(tensor) != n):
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)}; allowed: {n} rows, one per position; align it with the labels"
        )


def fitted(
    reference: Reference | Mapping[str, Reference] | None, vocab_size: int
) -> Reference | Mapping[str, Reference] | None:
    """The references over the student's `vocab_size` ids, see `Reference.fitted`."""
    if isinstance(reference, Mapping):
        return {source: item.fitted(vocab_size) for source, item in reference.items()}
    return None if reference is None else reference.fitted(vocab_size)


def select(
    reference: Reference | Mapping[str, Reference] | None, rows: Tensor, n: int
) -> Reference | Mapping[str, Reference] | None:
    """The references of some `rows` (n,) of N. Raises ValueError if one does not hold N positions."""
    if reference is None:
        return None
    if isinstance(reference, Mapping):
        return {source: _rows_of(f"reference {source!r}", item, rows, n) for source, item in reference.items()}
    return _rows_of("reference", reference, rows, n)


def _rows_of(what: str, reference: Reference, rows: Tensor, n: int) -> Reference:
    for name in reference.fields - {"logits"}:
        value = getattr(reference, name)
        check_rows(f"{what} field {name!r}", value[0] if name == "live" else value, n)
    check_rows(f"{what} field 'logits'", reference.logits, n)
    return reference if len(rows) == n else reference.rows(rows)


def resolve_references(
    objective: Objective,
    reference: Reference | Mapping[str, Reference] | None,
    labels: Tensor,
    vocab_size: int,
) -> dict[str, Reference]:
    """The references that `objective.needs` asks for, by source, for the rows of `labels` (n,).

    Absent fields are computed where the reference holds the whole distribution (logits or live). Raises ConfigError if
    a source, a field or cached ids are missing.
    """
    resolved = {}
    for source, wanted in objective.needs.references.items():
        fields = wanted.fields
        if isinstance(reference, Mapping):
            found = reference.get(source)
            given = ", ".join(reference) or "none"
        else:
            found, given = reference, "none"
        if found is None:
            raise objective.error(
                f"needs reference {source!r}; given: {given}; pass it with {', '.join(sorted(fields))}"
            )
        if not fields <= found.fields and "logits" in found.fields:
            found = found.filled(labels, top_k=max(wanted.top_k, DEFAULT_TOP_K), fields=fields)
        if missing := sorted(fields - found.fields):
            remedy = (
                "the full vocabulary needs a live reference (or logits); make the reference live, or choose a setting "
                "that uses the cached ids (estimator=topk, scope=local)"
                if missing == ["logits"]
                else "add the fields to the reference, or pass a live reference"
            )
            present = ", ".join(sorted(found.fields)) or "none"
            raise objective.error(f"needs {', '.join(missing)} of reference {source!r}; present: {present}; {remedy}")
        present = vocab_size if found.support_ids is None else found.support_ids.shape[-1]
        if wanted.top_k > present < vocab_size:
            raise objective.error(
                f"needs {wanted.top_k} ids per position of reference {source!r}; present: {present}; "
                "make the cache with a larger top_k, or lower objective.top_k"
            )
        resolved[source] = found
    return resolved


def resolve_columns(
    objective: Objective, columns: Mapping[str, Tensor] | None, rows: Tensor, n: int
) -> dict[str, Tensor]:
    """The data columns that `objective.needs` asks for, sliced to `rows`. Raises ConfigError if one is missing."""
    columns = columns or {}
    if missing := sorted(objective.needs.columns - set(columns)):
        present = ", ".join(columns) or "none"
        raise objective.error(
            f"needs data column {', '.join(missing)}; present: {present}; add it to the training data"
        )
    for name in objective.needs.columns:
        check_rows(f"column {name!r}", columns[name], n)
    return {name: columns[name][rows] for name in sorted(objective.needs.columns)}


def sequence_ids(objective: Objective, sequence_lengths: Tensor | None, n: int, device: torch.device) -> Tensor | None:
    """(N,) int64 index of the sequence of each position. Raises ConfigError if it is needed and unknown."""
    if sequence_lengths is None:
        if objective.needs.batch and objective.needs.batch.sequences:
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
    """Data-set constants with the base reference of this call as the data set; none if the objective has none.

    mask, sequence: (N,). Raises ConfigError if there is no base reference with the fields of `objective.needs.dataset`.
    """
    if objective.needs.dataset is None:
        return {}
    base = reference.get("base") if isinstance(reference, Mapping) else reference
    fields = objective.needs.dataset.fields
    if base is None or not fields <= base.fields:
        raise objective.error(
            "needs constants of the training set; given: none; pass constants=objective.dataset_constants(...), fix "
            f"them as settings, or pass a base reference with {', '.join(sorted(fields))}"
        )
    scalars = {name: base.get(name) for name in fields} | {"mask": mask}
    return objective.dataset_constants(scalars if sequence is None else {**scalars, "sequence": sequence})


def batch_constants(
    objective: Objective, token_scalars: Mapping[str, Tensor], sequence: Tensor | None, rows: Tensor
) -> BatchConstants:
    """Those of a single call that is the global batch, from its (n,) token scalars; sequence, rows: (n,)."""
    scalars = {**token_scalars, "mask": torch.ones_like(rows, dtype=torch.bool)}
    if sequence is not None:
        scalars["sequence"] = sequence
    return objective.batch_constants(scalars, lambda local: local)


def resolve_constants(
    objective: Objective, constants: Constants | None, step: Step, sequence: Tensor | None, rows: Tensor
) -> BatchConstants:
    """Constants of a single call that is the global batch, for its supervised `rows` (n,) of N positions.

    A `BatchConstants` is taken as it is, its (N,) tokens sliced to `rows`; beside a mapping of data-set constants, or
    None, those of the batch are computed. step, sequence (n,): of the supervised rows.
    """
    if isinstance(constants, BatchConstants):
        return constants.rows(rows)
    batch = BatchConstants()
    if objective.needs.batch:
        batch = batch_constants(objective, objective.token_scalars(step), sequence, rows)
    return batch.merged(constants or {})

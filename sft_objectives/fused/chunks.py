"""Rows of one call of the output head, chunk by chunk: logits, the objective's losses, gradients of the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import BatchConstants, Objective, Step
from ..inputs import batch_constants, check_rows, resolve_references
from ..reductions import places_of
from ..reference import Reference
from .chunk_student import ChunkStudent

Measure = Callable[[Step], dict[str, Tensor]]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
WEIGHT_ROWS = 8192
"""Rows of the head's gradient that are formed at once, where it is accumulated in another dtype."""

MOVED_ROWS = 64
"""Rows of gradients that are copied at once."""


def statistics_dtype(hidden: Tensor) -> torch.dtype:
    """That of statistics and losses: float64 for float64 hidden states, else float32."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class ConstantsOfNoRows(BatchConstants):
    """Constants of no rows, for which every number does."""

    device: torch.device | str = "cpu"

    def get(self, name: str) -> Tensor:
        return torch.ones(0, device=self.device)

    def rows(self, index: slice | Tensor) -> BatchConstants:
        return self


@dataclass(frozen=True, eq=False)
class ChunkedRows:
    """The n supervised rows of a call; hidden (N, D) keeps all rows, the other row-wise fields hold the n."""

    objective: Objective
    hidden: Tensor
    head_weight: Tensor
    head_bias: Tensor | None
    rows: Tensor
    labels: Tensor
    reference: Reference | Mapping[str, Reference] | None
    columns: dict[str, Tensor]
    constants: BatchConstants
    student: type[ChunkStudent]
    chunk_size: int
    measure: Measure | None = None

    def token_scalars(self, buffer: Tensor) -> dict[str, Tensor]:
        """What the objective reads in the first pass, (n,) by name."""
        parts = []
        for chunk, references, columns in self._chunks():
            student = None
            if self.objective.needs.student_first:
                student, _ = self._student(chunk, references, buffer, differentiable=False)
            parts.append(self.objective.token_scalars(Step(student, references, columns)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def constants_of_batch(self, sequence: Tensor | None, buffer: Tensor) -> BatchConstants:
        """Those of the objective if this call is the global batch; sequence (n,)."""
        if not self.objective.needs.batch:
            return BatchConstants()
        return batch_constants(self.objective, self.token_scalars(buffer), sequence, self.rows)

    def train(
        self,
        scale: Tensor,
        trained: list[bool],
        buffer: Tensor,
        with_statistics: bool,
        accumulate_float32: bool,
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """(n,) statistics by name, and the gradients of sum(scale * loss) for hidden, head_weight and head_bias."""
        hidden = self.hidden
        gradients = [torch.zeros_like(hidden) if trained[0] else None, None, None]
        one_chunk = len(self.rows) <= self.chunk_size
        if trained[1]:
            accumulator = torch.float32 if hidden.dtype == torch.bfloat16 and accumulate_float32 else hidden.dtype
            gradients[1] = torch.empty_like(self.head_weight, dtype=hidden.dtype if one_chunk else accumulator)
        if trained[2]:
            gradients[2] = buffer.new_zeros(len(self.head_weight), dtype=statistics_dtype(hidden))
        parts: list[dict[str, Tensor]] = []
        for chunk, references, columns in self._chunks():
            student, features = self._student(chunk, references, buffer, differentiable=any(trained))
            logged = {} if with_statistics else None
            step = Step(student, references, columns, self.constants.rows(chunk), logged=logged)
            with torch.set_grad_enabled(any(trained)):
                losses = self.objective.loss(step)
            found = {"loss": losses.detach()}
            if logged is not None:
                found |= {"cross_entropy": -student.log_p_label.detach()}
                found |= {f"diagnostic_{name}": value for name, value in logged.items()}
                if self.measure is not None:
                    with torch.no_grad():
                        found |= self.measure(step)
            if any(trained):
                gradient = student.overwrite_with_gradient(losses, scale[chunk], entropy=logged is not None)
                rows = self.rows[chunk]
                moved = places_of(student.has_gradient)
                if moved is not None and len(moved) < 0.9 * len(rows):  # say, of tokens that were not selected
                    gradient, features, rows = _moved_up(gradient, moved), features[moved], rows[moved]
                self._accumulate(gradients, gradient, features, rows, first=chunk.start == 0)
            if logged is not None:
                found["entropy"] = student.entropy
            parts.append(found)
        if gradients[1] is not None:
            gradients[1] = gradients[1].to(self.head_weight.dtype)
        if gradients[2] is not None:
            gradients[2] = gradients[2].to(self.head_weight.dtype)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, gradients

    def _accumulate(
        self, gradients: list[Tensor | None], gradient: Tensor, features: Tensor, rows: Tensor, *, first: bool
    ) -> None:
        for_hidden, for_weight, for_bias = gradients
        if for_bias is not None:
            for_bias += gradient.sum(0, dtype=for_bias.dtype)
        gradient = gradient.to(features.dtype)
        if for_hidden is not None:
            for_hidden.index_copy_(0, rows, gradient @ self.head_weight)
        if for_weight is None:
            return
        if for_weight.dtype == gradient.dtype:
            for_weight.addmm_(gradient.t(), features, beta=0 if first else 1)
            return
        if for_weight.device.type == "cuda":  # its products add up in another dtype than they multiply
            torch.addmm(for_weight, gradient.t(), features, for_weight.dtype, beta=0 if first else 1, out=for_weight)
            return
        for start in range(0, len(for_weight), WEIGHT_ROWS):
            ids = slice(start, start + WEIGHT_ROWS)
            share = gradient[:, ids].t() @ features
            if first:
                for_weight[ids] = share
            else:
                for_weight[ids] += share

    def buffer(self) -> Tensor:
        """For the logits of a chunk."""
        rows = min(self.chunk_size, len(self.rows))
        dtype = statistics_dtype(self.hidden) if self.student is ChunkStudent else self.hidden.dtype
        return self.hidden.new_empty(rows, len(self.head_weight), dtype=dtype)

    def _student(
        self, chunk: slice, references: Mapping[str, Reference], buffer: Tensor, *, differentiable: bool
    ) -> tuple[ChunkStudent, Tensor]:
        features = self.hidden[self.rows[chunk]]
        logits = buffer[: len(features)]
        if logits.dtype != features.dtype:
            logits.copy_(torch.nn.functional.linear(features, self.head_weight, self.head_bias))
        elif self.head_bias is None:
            torch.mm(features, self.head_weight.t(), out=logits)
        else:
            torch.addmm(self.head_bias, features, self.head_weight.t(), out=logits)
        live = any(reference.live is not None for reference in references.values())
        student = self.student(logits, self.labels[chunk], whole=live, differentiable=differentiable)
        return student, features

    def _chunks(self) -> Iterator[tuple[slice, dict[str, Reference], dict[str, Tensor]]]:
        n, vocab_size = len(self.rows), len(self.head_weight)
        count = max(math.ceil(n / self.chunk_size), 1)
        size = max(math.ceil(n / count), 1)
        for start in range(0, max(n, 1), size):
            chunk = slice(start, min(start + size, n))
            given = _rows_of(self.reference, chunk)
            references = resolve_references(self.objective, given, self.labels[chunk], vocab_size)
            if isinstance(given, Mapping):
                references = {**given, **references}  # `measure` may read a source that the objective does not
            yield chunk, references, {name: column[chunk] for name, column in self.columns.items()}


def _moved_up(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows], in the memory of values; rows increase."""
    for start in range(0, len(rows), MOVED_ROWS):
        some = slice(start, min(start + MOVED_ROWS, len(rows)))
        values[some] = values[rows[some]]  # row i comes from row i or below: none that is still needed is lost
    return values[: len(rows)]


def _rows_of(
    reference: Reference | Mapping[str, Reference] | None, chunk: slice
) -> Reference | Mapping[str, Reference] | None:
    if isinstance(reference, Mapping):
        return {source: item.rows(chunk) for source, item in reference.items()}
    return None if reference is None else reference.rows(chunk)


def check_inputs(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    labels: Tensor,
    mask: Tensor | None,
    token_scale: Tensor | None,
    chunk_size: int | None,
    rows: int | None = None,
) -> None:
    if hidden.ndim != 2 or head_weight.ndim != 2 or hidden.shape[1] != head_weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and head_weight {tuple(head_weight.shape)}: allowed: (N, D) and (V, D); "
            "flatten the batch"
        )
    count = len(hidden) if rows is None else rows
    if labels.shape != (count,):
        raise ValueError(f"labels {tuple(labels.shape)}: allowed: ({count},), one per row of hidden; align them")
    if head_bias is not None and head_bias.shape != head_weight.shape[:1]:
        raise ValueError(f"head_bias {tuple(head_bias.shape)}: allowed: ({len(head_weight)},); pass the head's bias")
    dtypes = [tensor.dtype for tensor in (hidden, head_weight, head_bias) if tensor is not None]
    if len(set(dtypes)) > 1 or dtypes[0] not in DTYPES:
        found = ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"dtypes of hidden and head are {found}; allowed: one of float64, float32, bfloat16 for all; cast them"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}; allowed: None or int >= 1; set chunk_size=None")
    check_rows("mask", mask, len(hidden))
    check_rows("token_scale", token_scale, len(hidden))

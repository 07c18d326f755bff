"""Output head, objective and gradient in one pass over chunks of rows: the (N, V) logits never exist as a whole.

For each chunk of supervised rows: logits = hidden @ head_weight.T into one reused buffer, the objective's own `loss` on
the statistics of that buffer (`ChunkStudent`), autograd from the loss to these statistics only, one generic
vector-Jacobian product from there to the logits in place, and its two matrix products. The gradients are ready when
`fused_loss` returns; `backward` only multiplies them by the upstream scalar.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk_student import ChunkStudent
from .contract import BatchConstants, Objective
from .losses import (
    Constants,
    _check_rows,
    _select,
    dataset_constants,
    resolve_columns,
    resolve_references,
    sequence_ids,
)
from .reference import Reference
from .student import Student

Measure = Callable[[Student, Mapping[str, Reference]], dict[str, Tensor]]
BACKENDS = ("auto", "torch", "triton")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
WEIGHT_ROWS = 8192
"""Words of the vocabulary whose gradient is formed at once, where it is accumulated in another dtype."""

MOVED_ROWS = 64
"""Rows of gradients that are copied at once."""


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
    _check(hidden, head_weight, head_bias, labels, mask, token_scale, chunk_size)
    n, vocab_size = len(hidden), len(head_weight)
    trained = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden, head_weight, head_bias)
    ]
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        rows = torch.arange(n, device=hidden.device) if mask is None else mask.nonzero().squeeze(-1)
        supervised = labels[rows]
        if len(rows) and not 0 <= int(supervised.min()) <= int(supervised.max()) < vocab_size:
            found = f"{int(supervised.min())} to {int(supervised.max())}"
            raise ValueError(
                f"labels of supervised positions are {found}; allowed: 0 to {vocab_size - 1}; mask the others"
            )
        sequence = sequence_ids(objective, sequence_lengths, n, hidden.device)
        given = _select(reference, rows, n)
        if not len(rows):
            constants = _OfNoRows()
        elif constants is None and objective.needs.dataset:
            everywhere = torch.ones(n, dtype=torch.bool, device=hidden.device) if mask is None else mask != 0
            constants = dataset_constants(objective, reference, everywhere, sequence)
        batch = _Batch(
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
        dtype = _statistics_dtype(hidden)
        scale = torch.ones(len(rows), dtype=dtype, device=hidden.device)
        for factor in (mask, token_scale):
            if factor is not None:
                scale *= factor.detach()[rows]
        scale /= normalizer
        statistics, gradients = batch.train(scale, trained, buffer, return_statistics, accumulate_float32)
        value = (scale.double() * statistics["loss"]).sum().to(dtype)
    if any(trained):
        inputs = [hidden, head_weight, *([] if head_bias is None else [head_bias])]
        value = _WithGradients.apply(value, gradients[: len(inputs)], *inputs)
    if not return_statistics:
        return value
    spread = {name: values.new_zeros(n).index_copy(0, rows, values) for name, values in statistics.items()}
    return value, spread


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
        _check(hidden, head_weight, head_bias, labels, None, None, chunk_size, rows=len(rows))
        self._inputs = [hidden, head_weight, *([] if head_bias is None else [head_bias])]
        self._batch = _Batch(
            objective=objective,
            hidden=hidden.detach(),
            head_weight=head_weight.detach(),
            head_bias=None if head_bias is None else head_bias.detach(),
            rows=rows,
            labels=labels,
            reference=reference,
            columns=dict(columns),
            constants=constants if len(rows) else _OfNoRows(),
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
        rounds. measure: gives further (n,) tensors by name, from the student and the references of a chunk.
        """
        batch = replace(self._batch, measure=measure)
        trained = [
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
            for tensor in (*self._inputs, *[None] * (3 - len(self._inputs)))
        ]
        with torch.no_grad(), torch.autocast(batch.hidden.device.type, enabled=False):
            dtype = _statistics_dtype(batch.hidden)
            scale = torch.full((len(batch.rows),), 1 / normalizer, dtype=dtype, device=batch.hidden.device)
            statistics, gradients = batch.train(scale, trained, batch.buffer(), True, True)
        if any(trained):
            gradients = gradients[: len(self._inputs)]
            statistics["loss"] = _RowsWithGradients.apply(statistics["loss"], normalizer, gradients, *self._inputs)
        return statistics


def fixed_chunk_size(objective: Objective, head_weight: Tensor) -> int:
    """Rows of a chunk as `default_chunk_size`, but by the device's whole memory: the same in every call of a run."""
    vocab_size, width = head_weight.shape
    size = _preferred_chunk_size(objective, width)
    while size > 16 and size * vocab_size * 4 > _total_bytes(head_weight.device) / 16:
        size //= 2
    return size


def _preferred_chunk_size(objective: Objective, width: int) -> int:
    size = 2 * min(max(2 ** math.ceil(math.log2(width)), 256), 1024)
    # a reference's whole distribution takes three more buffers of a chunk's size
    return size // 4 if _reads_whole_reference(objective) else size


def _reads_whole_reference(objective: Objective) -> bool:
    return any("logits" in fields for fields in objective.needs.references.values())


def student_of(backend: str, hidden: Tensor) -> type[ChunkStudent]:
    """The class that makes the passes over the vocabulary. Raises ValueError for a backend that cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; allowed: {', '.join(BACKENDS)}")
    installed = importlib.util.find_spec("triton") is not None
    device = hidden.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    narrow = hidden.dtype != torch.float64
    if backend == "triton" and not (installed and device and narrow):
        wrong = "triton is not installed" if not installed else f"hidden is {hidden.dtype} on {hidden.device}"
        raise ValueError(f"backend=triton: {wrong}; allowed: float32 and bfloat16 on a GPU; set backend=torch")
    if backend == "torch" or (backend == "auto" and not (installed and narrow and hidden.device.type == "cuda")):
        return ChunkStudent
    from .triton_kernels import TritonStudent

    return TritonStudent


def default_chunk_size(objective: Objective, hidden: Tensor, vocab_size: int, trains_head: bool) -> int:
    """Rows of a chunk: a power of two near 2 D, from 512 to 2048, at most what a quarter of the free memory holds; a
    quarter of that where the objective reads a reference's whole distribution.

    From about D rows on the products dominate the traffic of accumulating the (V, D) gradient. The gradient itself is
    set aside before memory is counted.
    """
    width = hidden.shape[1]
    size = _preferred_chunk_size(objective, width)
    value_bytes = 8 if hidden.dtype == torch.float64 else 4
    copies = 4 if _reads_whole_reference(objective) else 1
    row_bytes = vocab_size * (copies * value_bytes + (hidden.element_size() if hidden.dtype == torch.bfloat16 else 0))
    free = _free_bytes(hidden.device) - (2 * vocab_size * width * value_bytes if trains_head else 0)
    while size > 16 and size * row_bytes > free / 4:
        size //= 2
    return size


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    import psutil

    return psutil.virtual_memory().available


def _total_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total


def _statistics_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class _Batch:
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
        needs, parts = self.objective.needs, []
        for chunk, references, columns in self._chunks():
            student = None
            if needs.batch_student:
                student, _ = self._student(chunk, references, buffer, differentiable=False)
            parts.append(self.objective.token_scalars(student, references, columns))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def constants_of_batch(self, sequence: Tensor | None, buffer: Tensor) -> BatchConstants:
        """Those of the objective if this call is the global batch; sequence (n,)."""
        if not self.objective.needs.batch:
            return BatchConstants()
        scalars = self.token_scalars(buffer)
        scalars["mask"] = torch.ones_like(self.rows, dtype=torch.bool)
        if sequence is not None:
            scalars["sequence"] = sequence
        return self.objective.batch_constants(scalars, lambda local: local)

    def train(
        self,
        scale: Tensor,
        trained: list[bool],
        buffer: Tensor,
        with_statistics: bool,
        accumulate_float32: bool,
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """(n,) statistics by name, and the gradients of sum(scale * loss) for hidden, head_weight and head_bias."""
        objective, hidden = self.objective, self.hidden
        gradients = [torch.zeros_like(hidden) if trained[0] else None, None, None]
        one_chunk = len(self.rows) <= self.chunk_size
        if trained[1]:
            accumulator = torch.float32 if hidden.dtype == torch.bfloat16 and accumulate_float32 else hidden.dtype
            gradients[1] = torch.empty_like(self.head_weight, dtype=hidden.dtype if one_chunk else accumulator)
        if trained[2]:
            gradients[2] = buffer.new_zeros(len(self.head_weight), dtype=_statistics_dtype(hidden))
        parts: list[dict[str, Tensor]] = []
        for chunk, references, columns in self._chunks():
            constants = self.constants.rows(chunk)
            student, features = self._student(chunk, references, buffer, differentiable=any(trained))
            with torch.set_grad_enabled(any(trained)):
                losses = objective.loss(student, references, columns, constants)
            found = {"loss": losses.detach()}
            if with_statistics:
                with torch.no_grad():
                    found |= {"cross_entropy": -student.log_p_label.detach(), "entropy": student.entropy}
                    diagnostics = objective.diagnostics(student, references, columns, constants)
                    found |= {f"diagnostic_{name}": value.detach() for name, value in diagnostics.items()}
                    if self.measure is not None:
                        found |= self.measure(student, references)
            parts.append(found)
            if any(trained):
                gradient, rows = student.overwrite_with_gradient(losses, scale[chunk]), self.rows[chunk]
                moved = student.has_gradient.nonzero().squeeze(-1)
                if len(moved) < 0.9 * len(rows):  # say, of tokens that were not selected
                    gradient, features, rows = _moved_up(gradient, moved), features[moved], rows[moved]
                self._accumulate(gradients, gradient, features, rows, first=chunk.start == 0)
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
        for start in range(0, len(for_weight), WEIGHT_ROWS):
            words = slice(start, start + WEIGHT_ROWS)
            share = gradient[:, words].t() @ features
            if first:
                for_weight[words] = share
            else:
                for_weight[words] += share

    def buffer(self) -> Tensor:
        """For the logits of a chunk."""
        rows = min(self.chunk_size, len(self.rows))
        dtype = _statistics_dtype(self.hidden) if self.student is ChunkStudent else self.hidden.dtype
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


def _check(
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
    _check_rows("mask", mask, len(hidden))
    _check_rows("token_scale", token_scale, len(hidden))


class _WithGradients(torch.autograd.Function):
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


class _RowsWithGradients(torch.autograd.Function):
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


class _OfNoRows(BatchConstants):
    """Constants of no rows, for which every number does."""

    def value(self, name: str) -> float:
        return 1.0

    def token(self, name: str) -> Tensor:
        return torch.zeros(0)

    def rows(self, index: slice | Tensor) -> BatchConstants:
        return self

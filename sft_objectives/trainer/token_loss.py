"""The loss callable that verl's engine evaluates, for one objective.

verl calls it twice for a micro-batch: with the student's logits it returns tensors of one value a token, with those
tensors (gathered over sequence-parallel ranks by verl) the scalar that is differentiated. A `TokenLoss` never changes;
for each pass over a global batch it makes a `Pass`, and that a `MicroBatchLoss` for each micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from tensordict import TensorDict
from torch import Tensor

from ..contract import BatchConstants, Objective, Step
from ..fused.chunk_size import fixed_chunk_size
from ..fused.engine_hook import Read
from ..fused.head_rows import HeadRows
from ..reference import Reference
from ..registry import load
from ..student import DenseStudent, Student
from .metrics import SUM
from .rows import SupervisedRows, next_token_rows


@dataclass(frozen=True, eq=False)
class TokenLoss:
    """What is trained, the same for a whole run.

    dataset_constants: of the objective, from the reference cache.
    layouts: source -> (top_k, id_bits) of the packed ids that the data set delivers.
    kl_from_base: also measure KL(base || student), from the cached ids of base plus one bucket for the rest.
    """

    objective: Objective
    dataset_constants: Mapping[str, float] = field(default_factory=dict)
    layouts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    kl_from_base: bool = False

    def __post_init__(self) -> None:
        for name in ("dataset_constants", "layouts"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def training(self, constants: BatchConstants, normalizer: float, *, shared: bool = False) -> Pass:
        """A pass whose scalar is differentiated. normalizer: what the sum over the global batch's tokens is divided by.

        shared: rows are spread over sequence-parallel ranks.
        """
        return Pass(self, "train", constants.merged(self.dataset_constants), normalizer, shared)

    def collecting(self, *, shared: bool = False) -> Pass:
        """The first pass of a batch-coupled objective: `Pass.collected` afterwards holds its token scalars."""
        return Pass(self, "collect", BatchConstants(), 1.0, shared)

    def validating(self, normalizer: float, *, shared: bool = False) -> Pass:
        """A pass that measures the cross-entropy, whatever the objective."""
        return Pass(self, "validate", BatchConstants(), normalizer, shared)


class _Progress:
    """What a pass has met so far: how many rows, and the token scalars of each micro-batch."""

    def __init__(self) -> None:
        self.rows = 0
        self.scalars: list[dict[str, Tensor]] = []


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over the micro-batches of one global batch; `TokenLoss` makes it."""

    loss: TokenLoss
    mode: Literal["train", "collect", "validate"]
    constants: BatchConstants
    normalizer: float
    shared: bool
    _progress: _Progress = field(default_factory=_Progress, repr=False)

    def micro_batch(self, live: Mapping[str, Reference] | None = None, read_head: Read | None = None) -> MicroBatchLoss:
        """The callable for the next micro-batch.

        live: whole distributions by source, N rows each. read_head: reads the values that a fused head returned in
        place of logits.
        """
        return MicroBatchLoss(self, MappingProxyType(dict(live or {})), read_head)

    def collected(self) -> dict[str, Tensor]:
        """The (M,) token scalars of the micro-batches so far, by name."""
        parts = self._progress.scalars
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def collect(self, scalars: Mapping[str, Tensor], sequence: Tensor) -> None:
        """Keep the (n,) token scalars of a micro-batch; sequence (n,) int64."""
        needs = self.loss.objective.needs.batch
        kept = {**scalars, "mask": torch.ones(len(sequence), device=sequence.device)}
        if needs is not None and needs.sequences:
            kept["sequence"] = sequence
        self._progress.scalars.append({name: value.detach() for name, value in kept.items()})

    def next_constants(self, count: int) -> BatchConstants:
        """The constants of the next `count` rows of the pass."""
        start = self._progress.rows
        self._progress.rows += count
        return self.constants.rows(slice(start, start + count))


@dataclass(frozen=True, eq=False)
class MicroBatchLoss:
    """The loss of one micro-batch of a pass; verl's callable."""

    whole: Pass
    live: Mapping[str, Reference]
    read_head: Read | None

    def __call__(
        self,
        *,
        data: TensorDict,
        model_output: Mapping[str, Tensor] | None = None,
        student_logits: Tensor | None = None,
        dp_group: Any = None,
    ) -> dict[str, Tensor] | tuple[Tensor, dict[str, float]]:
        """verl's two calls, see the module's docstring; `student_logits` is (1, N, V).

        verl makes them inside its autocast context, where sums of products would be bfloat16.
        """
        tokens = cast(Tensor, data["input_ids"])
        with torch.autocast(tokens.device.type, enabled=False):
            if student_logits is not None:
                return self.token_values(student_logits.squeeze(0), data)
            assert model_output is not None
            return self.reduced(model_output, data)

    def token_values(self, logits: Tensor, data: TensorDict) -> dict[str, Tensor]:
        """Tensors (1, N) by name, zero where nothing is supervised; `loss` is differentiable in logits (N, V).

        Under sequence parallelism N is this rank's share of the packed micro-batch, padded at its end.
        """
        if self.read_head is not None:
            return self.read_head(logits)
        rows = self._rows(data)
        student = DenseStudent(logits[rows.places], rows.labels)
        if self.whole.mode == "validate":
            values = {"loss": -student.log_p_label, "entropy": student.entropy}
        elif self.whole.mode == "collect":
            self.whole.collect(self._objective.token_scalars(self._step(student, rows)), rows.sequence)
            values = {"loss": torch.zeros_like(student.log_p_label)}
        else:
            values = self._objective_values(student, rows)
        return {name: value.unsqueeze(0) for name, value in rows.spread(values).items()}

    def collect_without_student(self, data: TensorDict) -> None:
        """The first pass over this micro-batch where the objective's token scalars need no forward pass."""
        rows = self._rows(data)
        self.whole.collect(self._objective.token_scalars(self._step(None, rows)), rows.sequence)

    def head_values(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor, data: TensorDict
    ) -> dict[str, Tensor]:
        """As `token_values`, (N,) each, from hidden (M, D) and the output head; token t is row places[t] of hidden."""
        rows, mode = self._rows(data), self.whole.mode
        validates = mode == "validate"
        objective = load("sft") if validates else self._objective
        head = HeadRows(
            objective,
            hidden,
            weight,
            rows.labels,
            rows=places[rows.places],
            reference={} if validates else self._references(rows, fill=False),
            columns={} if validates else rows.columns(objective.needs.columns),
            constants=self.whole.next_constants(len(rows.places)) if mode == "train" else BatchConstants(),
            chunk_size=fixed_chunk_size(objective, weight),
            head_bias=bias,
        )
        if mode == "collect":
            self.whole.collect(head.token_scalars(), rows.sequence)
            values = {"loss": torch.zeros(len(rows.places), device=hidden.device)}
        elif validates:
            values = head.values(self.whole.normalizer)
            values = {name: values[name] for name in ("loss", "entropy")}
        else:
            ranks = cast(int, data["dp_size"])
            measure = kl_from_base if self.whole.loss.kl_from_base else None
            values = head.values(self.whole.normalizer / ranks, measure)
        return rows.spread(values)

    def reduced(self, model_output: Mapping[str, Tensor], data: TensorDict) -> tuple[Tensor, dict[str, float]]:
        """The scalar to differentiate, and sums for the logger.

        FSDP averages gradients over data-parallel ranks, hence the factor: their mean is then the global sum divided by
        the normalizer.
        """
        losses = model_output["loss"].values()
        loss = losses.sum() / self.whole.normalizer * data["dp_size"]
        sums = {name: value.detach().values().double().sum() for name, value in model_output.items()}
        sums["tokens"] = next_token_rows(data)[1].double().sum()
        if "diagnostic_weight" in model_output:
            sums["weight_squared"] = model_output["diagnostic_weight"].detach().values().double().square().sum()
        values = torch.stack(list(sums.values())).tolist()
        return loss, {SUM + name: value for name, value in zip(sums, values, strict=True)}

    @property
    def _objective(self) -> Objective:
        return self.whole.loss.objective

    def _rows(self, data: TensorDict) -> SupervisedRows:
        return SupervisedRows.of(data, shared=self.whole.shared)

    def _objective_values(self, student: DenseStudent, rows: SupervisedRows) -> dict[str, Tensor]:
        logged: dict[str, Tensor] = {}
        step = self._step(student, rows, self.whole.next_constants(len(rows.places)), logged)
        values = {
            "loss": self._objective.loss(step),
            "cross_entropy": -student.log_p_label.detach(),
            "entropy": student.entropy,
        }
        values |= {f"diagnostic_{name}": value for name, value in logged.items()}
        return values | kl_from_base(step) if self.whole.loss.kl_from_base else values

    def _step(
        self,
        student: Student | None,
        rows: SupervisedRows,
        constants: BatchConstants | None = None,
        logged: dict[str, Tensor] | None = None,
    ) -> Step:
        columns, references = rows.columns(self._objective.needs.columns), self._references(rows, fill=True)
        if student is not None:
            references = {source: reference.fitted(student.vocab_size) for source, reference in references.items()}
        return Step(student, references, columns, constants, logged=logged)

    def _references(self, rows: SupervisedRows, *, fill: bool) -> dict[str, Reference]:
        needs, layouts = self._objective.needs.references, self.whole.loss.layouts
        return {
            source: rows.reference(
                source, layouts.get(source), self.live.get(source), needs.get(source) if fill else None
            )
            for source in {**needs, **layouts}
        }


def kl_from_base(step: Step) -> dict[str, Tensor]:
    """The (n,) divergence of the student from the base's cached ids."""
    return {"kl_from_base": topk_kl(step.student, step.reference("base"))}


@torch.no_grad()
def topk_kl(student: Student, reference: Reference) -> Tensor:
    """(n,) KL(q || p) over the ids of `reference` and one bucket for the rest, a lower bound of the full KL."""
    ids, log_q = reference.support(None)
    log_p = student.log_p(ids).double()
    q = log_q.double().exp()
    inside = (q * (log_q.double() - log_p)).masked_fill(q == 0, 0).sum(-1)
    tail_q = (1 - q.sum(-1)).clamp(min=0)
    tail_p = (1 - log_p.exp().sum(-1)).clamp(min=torch.finfo(torch.float32).tiny)
    return inside + torch.special.xlogy(tail_q, tail_q) - tail_q * tail_p.log()

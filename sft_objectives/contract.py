"""What an objective is, what it needs, and in which order an integrator calls it. Imports no torch.

One step of training, for the global batch of all micro-batches and all data-parallel ranks:

1. Before training, `objective.needs` says what to provide. `needs.dataset`: compute
   `objective.dataset_constants(cache_scalars)` once and keep the dict. `needs.state`: keep an old policy
   (refreshed every `needs.inner_updates` optimizer steps) or a moving average (`needs.momentum`), and
   save it in the checkpoint.
2. If `needs.batch`, a first pass without gradient and with the student in the mode of the second pass (no dropout):
   per micro-batch, `objective.token_scalars(student, references, columns)` gives a dict of detached (n,) tensors.
   `student` may be None when `needs.batch_student` is empty: then no forward pass is needed at all.
   Add "mask" (n,) and, if `needs.sequences`, "sequence" (n,): int64 ids that are unique over the *global* batch.
   Concatenate over this rank's micro-batches, then call `objective.batch_constants(token_scalars, reduce)` once.
   `reduce(x)` takes a local (M,) float or int64 tensor (M differs between ranks and may be 0) and returns the
   concatenation over every rank that holds different rows (data parallel x sequence parallel), in rank order, the
   same on every rank; on one process it is the identity.
   Every rank calls `reduce` equally often, also a rank without rows.
3. `constants = batch_constants.merged(dataset_constants)`; for a micro-batch (or chunk) that holds rows `index` of
   the concatenation, `constants.rows(index)`.
4. `objective.loss(student, references, columns, constants)` gives the (n,) losses of those rows;
   `reference.rows(index)` and `columns` are sliced in the same way. The scalar of the step is
   sum over the global batch of mask * loss / normalizer, with `constants.normalizer` if it is not None, else the number
   of supervised tokens of the global batch. Rows with mask 0 are best dropped before the head; they must not
   reach `loss` with a label outside the vocabulary.
5. `objective.diagnostics(...)`, same arguments as `loss`, gives detached (n,) tensors for the logger.

`student` is described in `sft_objectives.student`, `references` maps a source name (`base`, `teacher`, `checkpoint`,
`ema`, `old`) to a `sft_objectives.Reference`, `columns` maps a data column to an (n,) tensor.
`sft_objectives.losses.token_losses` is this procedure for one process whose single call is the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from .reference import Reference
    from .student import Student

Source = Literal["online", "base", "teacher", "checkpoint", "ema"]
SOURCES: tuple[str, ...] = get_args(Source)
FROZEN_SOURCES = tuple(source for source in SOURCES if source != "online")

Reduce = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Needs:
    """What must be provided before `loss` can be called.

    student: names of the statistics that `loss` reads (see `sft_objectives.student`): log_p_label, log_p,
        expected_log_p, mean_log_p, statistic, log_p_outside, entropy, top_k, logsumexp.
    references: source -> fields of `Reference`. The field "logits" means the full vocabulary: logits or live.
    columns: names of per-token data columns.
    dataset: `dataset_constants` must be called; it reads `dataset_fields`, and `dataset_top_k` cached ids per position.
    batch: `batch_constants` must be called; its first pass reads `batch_student` (empty: no student forward).
    state: what else the trainer keeps: the old policy is reference "old", the moving average is reference "ema".
    top_k: the largest k that `loss` or `token_scalars` asks of `student.top_k`, 0 if none.
    support: source -> the smallest number of cached ids per position (fewer are fine if they are the vocabulary).
    sequences: sequence boundaries must be known.
    momentum: of the moving average, if state is "ema".
    inner_updates: optimizer steps between two refreshes of the old policy, if state is "old_policy".
    """

    student: frozenset[str] = frozenset({"log_p_label"})
    references: Mapping[str, frozenset[str]] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    dataset: bool = False
    batch: bool = False
    state: Literal["none", "old_policy", "ema"] = "none"
    top_k: int = 0
    support: Mapping[str, int] = field(default_factory=dict)
    sequences: bool = False
    batch_student: frozenset[str] = frozenset()
    dataset_fields: frozenset[str] = frozenset()
    dataset_top_k: int = 0
    momentum: float | None = None
    inner_updates: int | None = None

    def __or__(self, other: Needs) -> Needs:
        """The needs of a composition. Raises ValueError if the two keep different states."""
        if "none" not in (self.state, other.state) and (self.state, self.momentum) != (other.state, other.momentum):
            raise ValueError(
                f"one objective cannot keep two states ({self.state}, momentum {self.momentum}; {other.state}, "
                f"momentum {other.momentum}); allowed: one; give both parts the same source and momentum"
            )
        sources = [*self.references, *(s for s in other.references if s not in self.references)]
        none: frozenset[str] = frozenset()
        return Needs(
            student=self.student | other.student,
            references={s: self.references.get(s, none) | other.references.get(s, none) for s in sources},
            columns=self.columns | other.columns,
            dataset=self.dataset or other.dataset,
            batch=self.batch or other.batch,
            state=self.state if self.state != "none" else other.state,
            top_k=max(self.top_k, other.top_k),
            support={
                s: max(self.support.get(s, 0), other.support.get(s, 0)) for s in {**self.support, **other.support}
            },
            sequences=self.sequences or other.sequences,
            batch_student=self.batch_student | other.batch_student,
            dataset_fields=self.dataset_fields | other.dataset_fields,
            dataset_top_k=max(self.dataset_top_k, other.dataset_top_k),
            momentum=self.momentum if self.momentum is not None else other.momentum,
            inner_updates=self.inner_updates if self.inner_updates is not None else other.inner_updates,
        )


@dataclass(frozen=True, eq=False)
class BatchConstants:
    """Numbers that are fixed while the gradient of one global batch is computed.

    values: floats by name, from the data set and from the batch.
    tokens: detached (M,) tensors by name, aligned with the rows that `batch_constants` was given.
    normalizer: what the sum of the global batch is divided by; None: the number of supervised tokens.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    normalizer: float | None = None

    def value(self, name: str) -> float:
        """The float `name`. Raises ValueError if it was not computed."""
        if name not in self.values:
            raise ValueError(
                f"constant {name!r} is missing; present: {', '.join(self.values) or 'none'}; compute it first"
            )
        return self.values[name]

    def token(self, name: str) -> Tensor:
        """The (n,) tensor `name`. Raises ValueError if it was not computed."""
        if name not in self.tokens:
            raise ValueError(
                f"constant {name!r} is missing; present: {', '.join(self.tokens) or 'none'}; run the first pass"
            )
        return self.tokens[name]

    def rows(self, index: slice | Tensor) -> BatchConstants:
        """The constants of some rows; `index` is anything that indexes the first dimension of a tensor."""
        return dataclasses.replace(self, tokens={name: tensor[index] for name, tensor in self.tokens.items()})

    def merged(self, values: Mapping[str, float]) -> BatchConstants:
        """These constants together with `values` (the data set's)."""
        return dataclasses.replace(self, values={**values, **self.values})


def setting(
    default: Any,
    *,
    kind: type | None = None,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    nullable: bool = False,
) -> Any:
    """A dataclass field of an objective, with what it allows.

    A value is allowed if it is one of `choices`, or None where `nullable`, or of type `kind` (default: the type of
    `default`, none if there are only choices) and low <= value, above < value, value <= high.
    """
    if kind is None and not choices and default is not None:
        kind = type(default)
    allowed = {"kind": kind, "choices": choices, "low": low, "above": above, "high": high, "nullable": nullable}
    return field(default=default, metadata=allowed)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss per token. Subclass it as a frozen, keyword-only dataclass whose fields are the settings.

    `name` is the objective's name in recipes. Fields made by `setting` are validated on construction. Modules that
    define objectives import torch only inside methods.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if "kind" in item.metadata:
                object.__setattr__(self, item.name, self._validated(item, getattr(self, item.name)))

    def _validated(self, item: dataclasses.Field[Any], value: Any) -> Any:
        allowed = item.metadata
        kind, low, above, high = allowed["kind"], allowed["low"], allowed["above"], allowed["high"]
        if value is None and allowed["nullable"]:
            return None
        if isinstance(value, str) and value in allowed["choices"]:
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if (
            kind is not None
            and isinstance(value, kind)
            and (kind is bool or not isinstance(value, bool))
            and (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
        ):
            return value
        words = [*allowed["choices"], *(["null"] if allowed["nullable"] else [])]
        if kind is not None:
            bounds = [
                f"{sign} {bound:g}" for sign, bound in ((">=", low), (">", above), ("<=", high)) if bound is not None
            ]
            words.append(" ".join([kind.__name__, " and ".join(bounds)]).strip())
        raise self.error(
            f"{item.name}={value!r} is not allowed; allowed: {', '.join(words)}; set objective.{item.name}"
        )

    def error(self, message: str) -> ValueError:
        """A ValueError whose one-line message starts with the objective's name."""
        return ValueError(f"objective {self.name!r}: {message}")

    @property
    def needs(self) -> Needs:
        """What `loss` needs; a function of the settings alone."""
        return Needs()

    def dataset_constants(self, cache_scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Constants of the training set, from `needs.dataset_fields` of its (sampled) positions.

        cache_scalars: fields of the base model's reference over M positions, (M,) or (M, K), with "mask" (M,)
        (1 = supervised) and, if `needs.sequences`, "sequence" (M,) int64 ids.
        """
        return {}

    def token_scalars(
        self, student: Student | None, references: Mapping[str, Reference], columns: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Detached (n,) scalars of the first pass that `batch_constants` reads, beside "mask" and "sequence"."""
        return {}

    def batch_constants(self, token_scalars: Mapping[str, Tensor], reduce: Reduce) -> BatchConstants:
        """Constants of the global batch, from this rank's (M,) `token_scalars`; see the module's docstring."""
        return BatchConstants()

    def loss(
        self,
        student: Student,
        references: Mapping[str, Reference],
        columns: Mapping[str, Tensor],
        constants: BatchConstants,
    ) -> Tensor:
        """The (n,) losses, differentiable in the statistics of `student`."""
        raise NotImplementedError

    def diagnostics(
        self,
        student: Student,
        references: Mapping[str, Reference],
        columns: Mapping[str, Tensor],
        constants: BatchConstants,
    ) -> dict[str, Tensor]:
        """Detached (n,) tensors for the logger, e.g. the token weight; called like `loss`."""
        return {}

"""What an objective needs before its loss can be called. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from common.errors import ConfigError

Source = Literal["online", "base", "teacher", "checkpoint", "ema"]
SOURCES: tuple[str, ...] = get_args(Source)
FROZEN_SOURCES = tuple(source for source in SOURCES if source != "online")

MOMENTUM = 0.999
"""Default of the moving average's momentum (PriFT D.1, rho); the paper prints no value."""


@dataclass(frozen=True)
class ReferenceNeeds:
    """What is read of a frozen distribution.

    fields: names of `sft_objectives.Reference`'s; "logits" means the whole vocabulary: logits or live.
    top_k: the smallest number of cached ids per position (fewer are fine if they are the vocabulary), 0 if none.
    """

    fields: frozenset[str]
    top_k: int = 0

    def __or__(self, other: ReferenceNeeds) -> ReferenceNeeds:
        return ReferenceNeeds(self.fields | other.fields, max(self.top_k, other.top_k))


@dataclass(frozen=True)
class BatchNeeds:
    """What the constants of a global batch are computed from, beside the references and columns.

    student: the first pass reads the student, so it needs forward passes. sequences: sequence boundaries are read.
    """

    student: bool = False
    sequences: bool = False

    def __or__(self, other: BatchNeeds) -> BatchNeeds:
        return BatchNeeds(self.student or other.student, self.sequences or other.sequences)


@dataclass(frozen=True)
class Ema:
    """The trainer keeps theta_ema = momentum * theta_ema + (1 - momentum) * theta, the reference "ema" (PriFT D.1)."""

    momentum: float
    source: ClassVar[str] = "ema"


@dataclass(frozen=True)
class OldPolicy:
    """The trainer keeps the weights of every `every`-th optimizer step, the reference "old"."""

    every: int
    source: ClassVar[str] = "old"


@dataclass(frozen=True)
class Needs:
    """What must be provided before `Objective.loss` can be called; the sum of two is `a | b`.

    references: by source. columns: names of per-token data columns. dataset: what `dataset_constants` reads of the base
    model's cache, None if it need not be called. batch: likewise for `batch_constants`. state: what the trainer keeps
    beside the student.
    """

    references: Mapping[str, ReferenceNeeds] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    dataset: ReferenceNeeds | None = None
    batch: BatchNeeds | None = None
    state: Ema | OldPolicy | None = None

    @staticmethod
    def reading(source: str, *fields: str, top_k: int = 0, momentum: float = MOMENTUM) -> Needs:
        """Those of reading `fields` from a source; nothing for "online". momentum: of source "ema"."""
        if source == "online":
            return Needs()
        references = {source: ReferenceNeeds(frozenset(fields), top_k)}
        return Needs(references, state=Ema(momentum) if source == "ema" else None)

    @property
    def student_first(self) -> bool:
        """Whether a pass of the student over the whole batch precedes the one that is trained."""
        return self.batch is not None and self.batch.student

    @property
    def live(self) -> list[str]:
        """Sources that must give their whole distribution, as no cache does."""
        return [source for source, wanted in self.references.items() if "logits" in wanted.fields]

    def __or__(self, other: Needs) -> Needs:
        """Raises ConfigError if the two keep different states."""
        if self.state and other.state and self.state != other.state:
            raise ConfigError(
                f"one objective cannot keep two states ({self.state}; {other.state}); allowed: one; give both parts "
                "the same source and momentum"
            )
        sources = [*self.references, *(source for source in other.references if source not in self.references)]
        return Needs(
            {source: _either(self.references.get(source), other.references.get(source)) for source in sources},
            self.columns | other.columns,
            _either(self.dataset, other.dataset),
            _either(self.batch, other.batch),
            self.state or other.state,
        )


def _either(first: Any, second: Any) -> Any:
    return second if first is None else first if second is None else first | second

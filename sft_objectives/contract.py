"""What an objective is, and in which order an integrator calls it. Imports no torch.

One step of training, for the global batch of all micro-batches and all data-parallel ranks:

1. Before training, `objective.needs` says what to provide. `needs.dataset`: compute
   `objective.dataset_constants(cache_scalars)` once and keep the dict; of a training set that is too large to hold, of
   `objective.condensed(part)` of its parts, joined. `needs.state`: keep an old policy or a moving average, and save it
   in the checkpoint.
2. If `needs.batch`, a first pass without gradient and with the student in the mode of the second pass (no dropout):
   per micro-batch, `objective.token_scalars(step)` gives a dict of detached (n,) tensors. The step has no student where
   `needs.batch.student` is false: then no forward pass is needed at all.
   Add "mask" (n,) and, if `needs.batch.sequences`, "sequence" (n,): int64 ids that are unique over the *global* batch.
   Concatenate over this rank's micro-batches, then call `objective.batch_constants(token_scalars, reduce)` once.
   `reduce(x)` takes a local (M,) float or int64 tensor (M differs between ranks and may be 0) and returns the
   concatenation over every rank that holds different rows (data parallel x sequence parallel), in rank order, the
   same on every rank; on one process it is the identity.
   Every rank calls `reduce` equally often, also a rank without rows.
3. `constants = batch_constants.merged(dataset_constants)`; for a micro-batch (or chunk) that holds rows `index` of
   the concatenation, `constants.rows(index)`.
4. `objective.loss(step)` gives the (n,) losses of those rows; references and columns are sliced in the same way. The
   scalar of the step is sum over the global batch of mask * loss / normalizer, with `constants.normalizer` if it is not
   None, else the number of supervised tokens of the global batch. Rows with mask 0 are best dropped before the head;
   they must not reach `loss` with a label outside the vocabulary. Give the step a dict as `logged` to collect the
   diagnostics that the loss meets on its way.

`sft_objectives.losses.token_losses` is this procedure for one process whose single call is the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from common.errors import ConfigError

from .needs import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from .reference import Reference
    from .student import Student

Reduce = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, eq=False)
class BatchConstants:
    """Numbers that are fixed while the gradient of one global batch is computed.

    values: floats by name, from the data set and from the batch.
    tokens: detached (M,) tensors by name, aligned with the rows that `batch_constants` was given.
    normalizer: what the sum of the global batch is divided by; None: the number of supervised tokens. 0 becomes 1:
    where nothing is kept the sum is 0 too.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    normalizer: float | None = None

    def __post_init__(self) -> None:
        if self.normalizer == 0:
            object.__setattr__(self, "normalizer", 1.0)

    def get(self, name: str) -> Any:
        """The float or the (n,) tensor `name`. Raises ValueError if it was not computed."""
        for constants in (self.values, self.tokens):
            if name in constants:
                return constants[name]
        present = ", ".join([*self.values, *self.tokens]) or "none"
        raise ConfigError(f"constant {name!r} is missing; present: {present}; compute it first, or run the first pass")

    def rows(self, index: slice | Tensor) -> BatchConstants:
        """The constants of some rows; `index` is anything that indexes the first dimension of a tensor."""
        return dataclasses.replace(self, tokens={name: tensor[index] for name, tensor in self.tokens.items()})

    def merged(self, values: Mapping[str, float]) -> BatchConstants:
        """These constants together with `values` (the data set's)."""
        return dataclasses.replace(self, values={**values, **self.values})


class Step:
    """What n rows of a micro-batch (or chunk) give to an objective.

    student: None where only frozen sources are read. references: by source (`base`, `teacher`, `checkpoint`, `ema`,
    `old`). columns: (n,) tensors by name. logged: takes the diagnostics; None: nobody wants them.
    """

    def __init__(
        self,
        student: Student | None = None,
        references: Mapping[str, Reference] | None = None,
        columns: Mapping[str, Tensor] | None = None,
        constants: BatchConstants | None = None,
        *,
        logged: dict[str, Tensor] | None = None,
    ) -> None:
        self._student = student
        self._references, self._columns = references or {}, columns or {}
        self._constants = constants or BatchConstants()
        self._logged = logged

    @property
    def student(self) -> Student:
        """Statistics of the model that is trained; each is computed once. Raises ValueError if it is absent."""
        if self._student is None:
            raise ConfigError("this step has no student: the needs of the objective do not ask for one")
        return self._student

    def reference(self, source: str) -> Reference:
        """What is known of a frozen distribution. Raises ValueError if the source is absent."""
        return self._given("reference", self._references, source)

    def column(self, name: str) -> Tensor:
        """The (n,) data column `name`. Raises ValueError if it is absent."""
        return self._given("column", self._columns, name)

    def constant(self, name: str) -> Any:
        """A constant of the data set or the batch: a float, or an (n,) detached tensor. Raises ValueError if absent."""
        return self._constants.get(name)

    def log(self, name: str, value: Tensor) -> None:
        """Give an (n,) diagnostic to the logger, where one listens."""
        if self._logged is not None:
            self._logged[name] = value.detach()

    @staticmethod
    def _given(what: str, given: Mapping[str, Any], name: str) -> Any:
        if name not in given:
            raise ConfigError(f"{what} {name!r} is missing; present: {', '.join(given) or 'none'}; add it to the needs")
        return given[name]


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
        options = [*allowed["choices"], *(["null"] if allowed["nullable"] else [])]
        if kind is not None:
            bounds = [
                f"{sign} {bound:g}" for sign, bound in ((">=", low), (">", above), ("<=", high)) if bound is not None
            ]
            options.append(" ".join([kind.__name__, " and ".join(bounds)]).strip())
        raise self.error(
            f"{item.name}={value!r} is not allowed; allowed: {', '.join(options)}; set objective.{item.name}"
        )

    def error(self, message: str) -> ConfigError:
        """A ConfigError whose one-line message starts with the objective's name."""
        return ConfigError(f"objective {self.name!r}: {message}")

    @property
    def needs(self) -> Needs:
        """What `loss` needs; a function of the settings alone."""
        return Needs()

    def condensed(self, cache_scalars: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Fewer positions that give `dataset_constants` the same, of a part of the training set that holds whole
        sequences; both are as `dataset_constants` takes them."""
        return cache_scalars

    def dataset_constants(self, cache_scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Constants of the training set, from `needs.dataset.fields` of its (sampled) positions.

        cache_scalars: fields of the base model's reference over M positions, (M,) or (M, K), with "mask" (M,)
        (1 = supervised) and "sequence" (M,) int64 ids.
        """
        return {}

    def token_scalars(self, step: Step) -> dict[str, Tensor]:
        """Detached (n,) scalars of the first pass that `batch_constants` reads, beside "mask" and "sequence"."""
        return {}

    def batch_constants(self, token_scalars: Mapping[str, Tensor], reduce: Reduce) -> BatchConstants:
        """Constants of the global batch, from this rank's (M,) `token_scalars`; see the module's docstring."""
        return BatchConstants()

    def loss(self, step: Step) -> Tensor:
        """The (n,) losses, differentiable in the statistics of `step.student`."""
        raise NotImplementedError

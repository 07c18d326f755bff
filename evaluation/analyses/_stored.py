"""An objective's weight and gradient of a token from what a token table keeps of the distributions.

Torch is imported here; an analysis imports this when it runs. Only what is kept is used: log-probabilities of the label
and of the most probable ids, and the entropy. A token whose loss needs more has no answer (NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sft_objectives
from common.errors import ConfigError
from sft_objectives.contract import Step
from sft_objectives.inputs import dataset_constants, resolve_constants
from sft_objectives.reference import Reference
from sft_objectives.student import Student

FIELDS = ("log_p", "mass", "entropy", "n1", "n2", "top_ids", "top_log_p")


class Unknown(Exception):
    """A loss asks what the table does not keep."""


class StoredStudent(Student):
    """A `Student` of the rows of a token table; `leaf` (n, 1 + TOP) holds the label's and the top ids' log p."""

    def __init__(self, rows: Mapping[str, np.ndarray]) -> None:
        self.labels = torch.from_numpy(rows["token"].astype(np.int64))
        self.vocab_size = 0
        self._ids = torch.from_numpy(rows["top_ids"].astype(np.int64))
        of_top = torch.from_numpy(rows["top_log_p"].astype(np.float64))
        self.of_label = torch.from_numpy(rows["log_p"].astype(np.float64)).requires_grad_()
        self.of_top = of_top.requires_grad_()
        self._entropy = torch.from_numpy(rows["entropy"].astype(np.float64))

    @property
    def ids(self) -> Tensor:
        return self._ids

    @property
    def log_p_label(self) -> Tensor:
        return self.of_label

    @property
    def entropy(self) -> Tensor:
        return self._entropy

    @property
    def logsumexp(self) -> Tensor:
        raise Unknown("the raw logits")

    def log_p(self, ids: Tensor) -> Tensor:
        """NaN for an id that is neither the label nor among the top."""
        same = self._ids[:, None, :] == ids[:, :, None]
        found = (self.of_top[:, None, :].expand(same.shape).masked_fill(~same, 0)).sum(-1)
        is_label = ids == self.labels[:, None]
        found = torch.where(is_label, self.of_label[:, None].expand(ids.shape), found)
        return found.masked_fill(~(same.any(-1) | is_label), torch.nan)

    def log_p_outside(self, ids: Tensor) -> Tensor:
        return torch.log1p(-self.log_p(ids).exp().sum(-1).clamp(max=1 - 1e-9))

    def expected_log_p(self, weights: Callable[[Any], Tensor]) -> Tensor:
        raise Unknown("the whole vocabulary")

    def statistic(self, of_chunk: Callable[[Any], Tensor]) -> Tensor:
        raise Unknown("the whole vocabulary")

    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        if k > self._ids.shape[1]:
            raise Unknown(f"the {k} most probable ids")
        return self.of_top[:, :k].detach(), self._ids[:, :k]


def reference_of(rows: Mapping[str, np.ndarray]) -> Reference:
    """A frozen model's rows as a reference."""
    n1, n2 = (torch.from_numpy(rows[name].astype(np.float64)) for name in ("n1", "n2"))
    of_label, mass, entropy = (torch.from_numpy(rows[name].astype(np.float64)) for name in ("log_p", "mass", "entropy"))
    return Reference(
        support_ids=torch.from_numpy(rows["top_ids"].astype(np.int64)).clamp(min=0),
        support_logprobs=torch.from_numpy(rows["top_log_p"].astype(np.float64)),
        label_logprob=of_label,
        label_mass=mass,
        entropy=entropy,
        n1=n1,
        n2=n2,
        ceil_n1=n1.ceil().long(),
        ceil_n2=n2.ceil().long(),
    )


def weight_and_gradient(
    objective: Mapping[str, Any], rows: Mapping[str, np.ndarray], references: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, str]:
    """-dL/dlog p_y and dL/dz_y of the tokens, (n,) float64 each, NaN where they are not known, and why if nowhere.

    rows, references (by source): columns of `TOKENS`, whole texts, which together are the global batch and, for
    constants of the training set, that set. The student's log p_y, its top ids and its entropy are exact, so these are.
    """
    nothing = np.full(len(rows["log_p"]), np.nan)
    settings = dict(objective)
    loaded = sft_objectives.load(str(settings.pop("name")), **settings)
    needs = loaded.needs
    missing = [source for source in needs.references if source not in references]
    if missing or needs.columns or needs.live:
        what = missing[0] if missing else next(iter(needs.columns), "the whole vocabulary")
        return nothing, nothing, f"needs {what}"
    short = [source for source, wanted in needs.references.items() if wanted.top_k > rows["top_ids"].shape[1]]
    if short:
        return nothing, nothing, f"needs {needs.references[short[0]].top_k} ids of the {short[0]}"
    student = StoredStudent(rows)
    given = {source: reference_of(references[source]) for source in references}
    everything, sequence = torch.ones(len(nothing), dtype=torch.bool), torch.from_numpy(rows["chat"].astype(np.int64))
    try:
        constants = dataset_constants(loaded, given, everything, sequence)
        index = torch.arange(len(nothing))
        fixed = resolve_constants(loaded, constants, Step(student, given), sequence, index)
        losses = loaded.loss(Step(student, given, {}, fixed))
    except (Unknown, ConfigError) as error:
        return nothing, nothing, f"needs {error}" if isinstance(error, Unknown) else str(error)
    leaves = (student.of_label, student.of_top)
    of_label, of_top = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    p = student.of_label.detach().exp()
    gradient = torch.zeros_like(p) if of_label is None else of_label * (1 - p)
    if of_top is not None:
        own = student.ids == student.labels[:, None]
        gradient = gradient + (of_top * (own.double() - p[:, None])).sum(-1)
    weight = torch.zeros_like(p) if of_label is None else -of_label
    unknown = ~losses.detach().isfinite()
    return weight.masked_fill(unknown, torch.nan).numpy(), gradient.masked_fill(unknown, torch.nan).numpy(), ""

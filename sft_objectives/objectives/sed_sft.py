"""SED-SFT: push the label's probability toward one half where the model leaves room for alternatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import Objective, setting
from ..needs import Needs, ReferenceNeeds


@dataclass(frozen=True, kw_only=True)
class SedSft(Objective):
    """-log p_y + weight * M_t * (p_y - 1/2)^2, M_t = 1[mass of the student's top_k ids < threshold] (SED eq. 1).

    weight is lambda, top_k is k. threshold (tau): None is the (1 - fraction)-quantile (fraction is r) of the base
    model's top-k mass over the positions of a sample of the training sequences, all of them or only the supervised.
    threshold_top_k: the k of that mass, top_k if None. mask false: M_t = 1, the "w/o mask" ablation.
    """

    name: ClassVar[str] = "sed_sft"

    weight: float = setting(1.0, low=0.0)
    top_k: int = setting(2, low=1)
    fraction: float = setting(0.7, low=0.0, high=1.0)
    threshold: float | None = setting(None, kind=float, nullable=True)
    threshold_top_k: int | None = setting(None, kind=int, low=1, nullable=True)
    positions: str = setting("all", choices=("all", "supervised"))
    mask: bool = setting(True)

    @property
    def needs(self) -> Needs:
        if not self.mask or self.threshold is not None:
            return Needs()
        return Needs(dataset=ReferenceNeeds(frozenset({"support_logprobs"}), self.threshold_top_k or self.top_k))

    def dataset_constants(self, cache_scalars):
        support, k = cache_scalars["support_logprobs"], self.threshold_top_k or self.top_k
        if support.shape[-1] < k and (support.double().exp().sum(-1) < 1 - 1e-6).any():  # else it is the vocabulary
            raise self.error(
                f"the threshold needs {k} ids per position; cached: {support.shape[-1]}; cache more, or set threshold"
            )
        if self.positions == "supervised":
            support = support[cache_scalars["mask"].bool()]
        if not len(support):
            raise self.error("the threshold needs positions; cached: none; cache some, or set threshold")
        mass = support[:, :k].double().exp().sum(-1).sort().values
        # torch.quantile refuses more than 16M elements
        place = (1 - self.fraction) * (len(mass) - 1)
        low = mass[int(place)]
        high = mass[min(int(place) + 1, len(mass) - 1)]
        return {"threshold": float(low + (place - int(place)) * (high - low))}

    def loss(self, step):
        log_p, m = step.student.log_p_label, self._selected(step)
        step.log("diversity_mask", m)
        return -log_p + self.weight * m * (log_p.exp() - 0.5) ** 2

    def _selected(self, step):
        dtype = step.student.log_p_label.dtype
        if not self.mask:
            return step.student.log_p_label.new_ones(len(step.student.labels))
        threshold = step.constant("threshold") if self.threshold is None else self.threshold
        return (step.student.top_k(self.top_k)[0].exp().sum(-1) < threshold).to(dtype)

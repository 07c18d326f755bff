"""Predictors that were measured already: of the target benchmark, and of held-out chats."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.readiness.contract import Evidence, Predictor
from evaluation.statistics import Estimate


@dataclass(frozen=True)
class OfTarget(Predictor):
    """Metrics of the target benchmark under their own names."""

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """See `Predictor.figures`."""
        return {name: Estimate(**found) for name, found in evidence.target.items() if self.has(name)}


@dataclass(frozen=True)
class OfHeldOut(Predictor):
    """One metric of the held-out chats."""

    metric: str = ""

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """See `Predictor.figures`."""
        found = evidence.held_out.get(self.metric)
        return {} if found is None else {self.name: Estimate(**found)}


PASS_AT_K = OfTarget("pass@k", "pass@k on the target", "max")
GREEDY = OfTarget("greedy", "greedy on the target", "max")
SELF_BLEU = OfTarget("self_bleu", "self-BLEU on the target", "min")
VALIDATION_LOSS = OfHeldOut("validation_loss", "validation loss", "min", metric="loss")
TOKEN_ENTROPY = OfHeldOut("token_entropy", "token entropy", "max", metric="entropy")
PLAUSIBLE = OfHeldOut("plausible_entropy", "entropy of plausible tokens", "max", metric="plausible_entropy")
KL = OfHeldOut("kl_from_base", "KL from the base", "min", metric="kl_from_base")
DRIFT = OfHeldOut("label_drift", "drift of label probabilities", "min", metric="label_drift")

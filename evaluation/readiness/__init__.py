"""Predictors of what RL will make of a model, from evidence before RL; one file for each kind of evidence."""

from __future__ import annotations

from common.errors import ConfigError
from common.registry import Registry
from evaluation.readiness.contract import Evidence, Predictor

__all__ = ["Evidence", "Predictor", "goal_of", "load", "names"]

_registry = Registry("evaluation.readiness", Predictor, "predictor", apart=("contract", "stage", "association"))
names, load = _registry.names, _registry.load


def goal_of(figure: str) -> str:
    """ "max" or "min": which value of a predictor's figure ("pass@16") speaks for RL.

    Raises ConfigError for a figure that no predictor has.
    """
    for predictor in map(load, names()):
        if predictor.has(figure):
            return predictor.goal
    raise ConfigError(f"no predictor of readiness is called {figure!r}; allowed: {', '.join(names())} (k a number)")

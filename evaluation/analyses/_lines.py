"""Measurements of the same line and model under several seeds, and their averages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.analyses._style import GREY, colour
from evaluation.analyses.contract import Given

BASE = "base"


@dataclass(frozen=True)
class Line:
    """What was measured of one model of one line, once for each seed. The base model is a line of its own."""

    name: str
    model: str
    colour: str
    measured: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """As a table names it, beside the model."""
        return self.name or "base model"

    @property
    def label(self) -> str:
        """As a legend names it."""
        return "base model" if self.model == BASE else f"{self.name} {self.model.upper()}"


def lines(inputs: Iterable[Given]) -> list[Line]:
    """Lines in the order given; the same artifact given twice, as the base model's of every branch, counts once."""
    from evaluation.artifact import read_measured  # a plan loads analyses, and reads nothing

    places: dict[str, int] = {}
    groups: dict[tuple[str, str], dict[Any, dict[str, Any]]] = {}
    for given in inputs:
        base = given.model == BASE
        if not base:
            places.setdefault(given.line, len(places))
        key = ("", BASE) if base else (given.line, given.model)
        groups.setdefault(key, {}).setdefault(given.path.resolve(), read_measured(given.path))
    return [
        Line(name, model, GREY if model == BASE else colour(places[name]), tuple(found.values()))
        for (name, model), found in groups.items()
    ]


def over_seeds(estimates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the values and of the bounds.

    That is no narrower than the mean's interval: a mean's deviation is at most the mean of the deviations.
    """
    return {name: sum(one[name] for one in estimates) / len(estimates) for name in ("value", "low", "high")}

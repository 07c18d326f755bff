"""Claims of the papers as tests on a study's runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

from common.errors import ConfigError
from evaluation.statistics import holm
from launch.evidence.differences import Difference, difference
from launch.evidence.runs import Run

MARGIN = 0.03  # of pass@1: the difference that the study was made to find; smaller ones count as none
Direction = Literal["higher", "lower", "equal"]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper as a difference: after `phase`, `figure` of `arm` is higher or lower than `against`, or
    equal to within `MARGIN`. where: its table or figure. measure: what we compare, in words."""

    name: str
    paper: str
    where: str
    says: str
    measure: str
    arm: str
    against: str
    phase: str
    figure: str
    direction: Direction


@dataclass(frozen=True)
class Result:
    """A claim with the difference that was measured, its p after Holm over all claims, and the verdict."""

    claim: Claim
    difference: Difference
    p_holm: float
    verdict: str


def read_claims(text: str) -> list[Claim]:
    """Claims from YAML, a list of mappings with the fields of `Claim`. Raises ConfigError for another field."""
    try:
        return [Claim(**one) for one in yaml.safe_load(text)]
    except TypeError as error:
        raise ConfigError(f"claims: {error}") from None


def decide(claims: Sequence[Claim], runs: Sequence[Run]) -> list[Result]:
    """The verdict of every claim.

    Of a difference: it holds where p after Holm is at most 0.05 and the sign is the claim's, does not hold where the
    sign is the other or the whole interval lies within `MARGIN`, and cannot be told else. Of an equality: it holds
    where the interval lies within `MARGIN`, does not where p after Holm is at most 0.05 and the difference is larger.
    """
    found = [difference(runs, one.arm, one.against, one.phase, one.figure) for one in claims]
    adjusted = holm([one.p for one in found])
    return [
        Result(claim, one, p, _verdict(claim.direction, one, p))
        for claim, one, p in zip(claims, found, adjusted, strict=True)
    ]


def _verdict(direction: Direction, found: Difference, p: float) -> str:
    within = found.low >= -MARGIN and found.high <= MARGIN
    if direction == "equal":
        return "holds" if within else "does not hold" if p <= 0.05 and abs(found.value) > MARGIN else "cannot tell"
    if p <= 0.05:
        return "holds" if (found.value > 0) == (direction == "higher") else "does not hold"
    return "does not hold" if within else "cannot tell"

"""A claim holds, does not, or cannot be told, by what was planted."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from launch.evidence.claims import Claim, decide, read_claims
from launch.evidence.runs import Run

FIELDS = """name: one
  paper: P
  where: T1
  says: s
  measure: m
  arm: b
  against: a
  phase: rl
  figure: general"""


def claim(direction: str, arm: str = "b") -> Claim:
    return Claim("one", "P", "T1", "s", "m", arm, "a", "rl", "general", direction)  # type: ignore[arg-type]


def runs(difference: float, noise: float) -> list[Run]:
    """Two arms of four seeds; the seeds' differences are `difference` give or take `noise`."""
    found = [Run("a", seed, "rl", "f", 1, (0,), {"general": 0.5}) for seed in range(4)]
    for seed in range(4):
        value = 0.5 + difference + noise * (1 if seed % 2 else -1)
        found.append(Run("b", seed, "rl", "f", 1, (0,), {"general": value}))
    return found


@pytest.mark.parametrize(
    ("direction", "difference", "noise", "verdict"),
    [
        ("higher", 0.1, 0.01, "holds"),
        ("higher", -0.1, 0.01, "does not hold"),
        ("higher", 0.0, 0.001, "does not hold"),  # the whole interval is smaller than the margin
        ("higher", 0.02, 0.05, "cannot tell"),
        ("lower", -0.1, 0.01, "holds"),
        ("equal", 0.005, 0.005, "holds"),
        ("equal", 0.1, 0.01, "does not hold"),
        ("equal", 0.02, 0.05, "cannot tell"),
    ],
)
def test_verdicts(direction, difference, noise, verdict):
    assert decide([claim(direction)], runs(difference, noise))[0].verdict == verdict


def test_holm_makes_a_claim_among_many_harder():
    found = runs(0.03, 0.012)
    alone = decide([claim("higher")], found)[0]
    among = decide([claim("higher")] * 12, found)[0]
    assert alone.verdict == "holds" and among.verdict == "cannot tell"
    assert among.p_holm == pytest.approx(12 * alone.p_holm)


def test_claims_are_read_from_yaml_and_an_unknown_field_is_named():
    assert read_claims(f"- {FIELDS}\n  direction: higher\n")[0].direction == "higher"
    with pytest.raises(ConfigError, match="colour"):
        read_claims(f"- {FIELDS}\n  direction: higher\n  colour: red\n")

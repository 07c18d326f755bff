"""What a branch makes: its models, and what is measured of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BranchModel:
    """One model of a branch.

    `phase` is "base", "sft" or "rl". `start` is the SFT checkpoint that an RL model started from ("final", "50").
    `role` is the role of the stage that made it. `measures` maps a benchmark, a task or "held_out" to the fingerprint
    of its `measure` stage.
    """

    name: str
    phase: str
    start: str | None
    role: str | None
    measures: dict[str, str]

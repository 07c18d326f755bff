"""A model of a branch, as reports and selections see it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BranchModel:
    """One model of a branch and where its scores are.

    name: "base", "sft", "sft@50", "rl@final". phase: base, sft or rl. start: the SFT checkpoint that an RL model
    started from. role: of the stage that made it; None for a model from outside. measures: name of a benchmark, of a
    task or "held_out" -> fingerprint of the stage that measured it.
    """

    name: str
    phase: str
    start: str | None = None
    role: str | None = None
    measures: dict[str, str] = field(default_factory=dict)

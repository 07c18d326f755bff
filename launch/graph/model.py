"""A model of a branch, as reports and selections see it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BranchModel:
    """One model of a branch and where its scores are.

    name: "base", "sft", "sft@50", "rl@final", "rl@final-20". phase: base, sft or rl. start: what an RL model started
    from, an SFT checkpoint or "base". role: of the stage that made it; None for a model from outside. measures: name of
    a benchmark, of a task or "held_out" -> fingerprint of the stage that measured it. step: of a checkpoint before the
    last one of its stage.
    """

    name: str
    phase: str
    start: str | None = None
    role: str | None = None
    measures: dict[str, str] = field(default_factory=dict)
    step: int | None = None

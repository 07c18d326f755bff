"""The rows of a plan: base models, and branches with their seeds taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.graph.model import BranchModel
from launch.graph.names import without_seed
from launch.graph.plan import Branch, Plan, Stage

BASE = "base model"
PHASES = {"sft": "SFT", "rl": "RL"}  # the phases that have columns, in their order, and how they are called


@dataclass(frozen=True)
class Model:
    """A model and the stages that measured it: by name of the benchmark or task, and "held_out"."""

    name: str
    measures: Mapping[str, Stage]


@dataclass(frozen=True)
class Member:
    """One seed of a row: by phase its model, and the stages that trained it."""

    seed: str = ""
    models: Mapping[str, Model] = field(default_factory=dict)
    trained: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)
    branch: str = ""  # name of the branch; of a base model one of those that start from it

    @property
    def last(self) -> Model | None:
        """The model at which the walk ended: after RL if there is RL."""
        return self.models.get("rl") or self.models.get("sft")


@dataclass(frozen=True)
class Line:
    """One row: the base model, or a branch from one SFT checkpoint, with each of its seeds."""

    name: str
    members: tuple[Member, ...]

    @property
    def is_base(self) -> bool:
        """Whether this is a model before any training of a branch."""
        return self.name == BASE


def lines(plan: Plan, ended: frozenset[str] = frozenset()) -> list[Line]:
    """The rows of a plan: base models first, then branches; branches that differ in `seed` alone make one row.

    `ended` are the branches that selection left at SFT; they have no row. A base model shows what it scores under the
    columns of SFT.
    """
    bases: dict[tuple[str, ...], Line] = {}
    members: dict[tuple[str, ...], list[Member]] = defaultdict(list)
    names: dict[tuple[str, ...], str] = {}
    for branch in plan.branches:
        for model in _of_phase(branch, "base"):
            measured = _measured(plan, model)
            if measured.measures:
                key = tuple(sorted(stage.fingerprint for stage in measured.measures.values()))
                bases.setdefault(
                    key, Line(BASE, (Member(models={"base": measured, "sft": measured}, branch=branch.name),))
                )
        if branch.name in ended:
            continue
        trained = _of_phase(branch, "rl") or [None]
        for model in trained:
            start = None if model is None else model.start
            key = (*(text for text in branch.overrides if not text.startswith("seed=")), str(start))
            members[key].append(_member(plan, branch, model))
            name = without_seed(branch.name, branch.overrides)[0] or str(branch.recipe.objective["name"])
            names[key] = name if len(trained) == 1 else f"{name}, from {start}"
    return [*bases.values(), *(Line(names[key], tuple(found)) for key, found in members.items())]


def _of_phase(branch: Branch, phase: str) -> list[BranchModel]:
    return [model for model in branch.models if model.phase == phase]


def _measured(plan: Plan, model: BranchModel) -> Model:
    # Selection drops stages from the plan, not from the branches' models.
    there = {name: plan.stages[one] for name, one in model.measures.items() if one in plan.stages}
    return Model(model.name, there)


def _member(plan: Plan, branch: Branch, rl: BranchModel | None) -> Member:
    seed = next((text for text in branch.overrides if text.startswith("seed=")), "")
    tuned = _of_phase(branch, "sft")
    start = None if rl is None else rl.start
    ended_at = _checkpoint(tuned, "" if start in (None, "final") else str(start))
    chosen = {"base": next(iter(_of_phase(branch, "base")), None), "sft": ended_at, "rl": rl}
    trained = {"sft": _stages(plan, branch, tuned), "rl": _stages(plan, branch, [] if rl is None else [rl])}
    models = {phase: _measured(plan, model) for phase, model in chosen.items() if model is not None}
    return Member(seed, models, trained, branch.name)


def _checkpoint(tuned: Sequence[BranchModel], step: str) -> BranchModel | None:
    """The last model made of an SFT checkpoint: of "sft" and "average" the second, where there is one."""
    found = [model for model in tuned if model.name.partition("@")[2] == step]
    return found[-1] if found else None


def _stages(plan: Plan, branch: Branch, models: Sequence[BranchModel]) -> tuple[Stage, ...]:
    roles = dict.fromkeys(model.role for model in models if model.role is not None)
    found = dict.fromkeys(branch.stages[role] for role in roles if role in branch.stages)
    return tuple(plan.stages[one] for one in found if one in plan.stages)

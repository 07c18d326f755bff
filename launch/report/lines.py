"""The rows of a plan: base models, and branches with their seeds taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.graph.model import BranchModel
from launch.graph.names import without_seed
from launch.graph.plan import Branch, Plan, Stage
from launch.report.drawing import key_of
from launch.report.parts import Key

BASE = "base model"
FROM_BASE = "RL from the base"
SFT_ALONE = ("objective", "sft", "cache", "average", "adopt")  # sections that RL from the base does not read
PHASES = {"sft": "SFT", "rl": "RL"}  # the phases that have columns, in their order, and how they are called


@dataclass(frozen=True)
class Model:
    """A model and the stages that measured it: by name of the benchmark or task, and "held_out"."""

    name: str
    measures: Mapping[str, Stage]


@dataclass(frozen=True)
class Member:
    """One seed of a row: by phase its model, and the stages that trained it.

    start: the model that RL started from. checkpoints: models before the last ones, by phase and step.
    """

    seed: str = ""
    models: Mapping[str, Model] = field(default_factory=dict)
    trained: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)
    branch: str = ""  # name of the branch; of a base model one of those that start from it
    start: Model | None = None
    checkpoints: Mapping[tuple[str, int], Model] = field(default_factory=dict)

    @property
    def last(self) -> Model | None:
        """The model at which the walk ended: after RL if there is RL."""
        return self.models.get("rl") or self.models.get("sft")


@dataclass(frozen=True)
class Line:
    """One row: the base model, RL from it, or a branch from one SFT checkpoint, with each of its seeds.

    objective: of SFT; empty for the base and RL from it.
    """

    name: str
    members: tuple[Member, ...]
    objective: str = ""

    @property
    def is_base(self) -> bool:
        """Whether this is a model before any training of a branch."""
        return self.name == BASE

    @property
    def from_base(self) -> bool:
        """Whether this is RL without SFT, which branches share."""
        return self.name.startswith(FROM_BASE)


def lines(plan: Plan, ended: frozenset[str] = frozenset()) -> list[Line]:
    """The rows of a plan: base models first, RL from them, then branches; those that differ in `seed` alone make one
    row.

    `ended` are the branches that selection left at SFT; they have no row. A base model shows what it scores under the
    columns of SFT.
    """
    bases: dict[tuple[str, ...], Line] = {}
    without_sft: dict[tuple[str, ...], dict[str, Member]] = defaultdict(dict)
    counted: set[str] = set()  # stages of RL from the base, which differ in less than the overrides of their branches
    members: dict[tuple[str, ...], list[Member]] = defaultdict(list)
    names: dict[tuple[str, ...], tuple[str, str]] = {}
    for branch in plan.branches:
        for model in _of_phase(branch, "base"):
            measured = _measured(plan, model)
            if measured.measures:
                key = tuple(sorted(stage.fingerprint for stage in measured.measures.values()))
                bases.setdefault(
                    key, Line(BASE, (Member(models={"base": measured, "sft": measured}, branch=branch.name),))
                )
        ends = [model for model in _of_phase(branch, "rl") if model.step is None]
        for model in ends:
            if model.start == "base" and model.role in branch.stages and branch.stages[model.role] not in counted:
                key = tuple(text for text in branch.overrides if _bears_on_rl(text))
                without_sft[key][branch.stages[model.role]] = _member(plan, branch, model)
                counted.add(branch.stages[model.role])
        tuned = [model for model in ends if model.start != "base"]
        if branch.name in ended or len(ends) > len(tuned) == 0:
            continue
        trained = tuned or [None]
        for model in trained:
            start = None if model is None else model.start
            key = (*(text for text in branch.overrides if not text.startswith("seed=")), str(start))
            members[key].append(_member(plan, branch, model))
            objective = str(branch.recipe.objective["name"])
            name = without_seed(branch.name, branch.overrides)[0] or objective
            names[key] = (name if len(trained) == 1 else f"{name}, from {start}", objective)
    from_base = [Line(_without_sft(key), tuple(found.values())) for key, found in without_sft.items()]
    return [*bases.values(), *from_base, *(_named(*names[key], found) for key, found in members.items())]


def _named(name: str, objective: str, members: Sequence[Member]) -> Line:
    return Line(name, tuple(members), objective)


def keys(lines: Sequence[Line]) -> dict[str, Key]:
    """Name of a line -> how it is marked: a colour and a shape for each objective, a kind of line for its variants."""
    places: dict[str, int] = {}
    variants: dict[str, int] = defaultdict(int)
    found = {}
    for line in lines:
        if line.objective:
            place = places.setdefault(line.objective, len(places))
            found[line.name] = key_of(place, variants[line.objective])
            variants[line.objective] += 1
    return found


def _bears_on_rl(override: str) -> bool:
    key = override.partition("=")[0]
    return key != "seed" and key.partition(".")[0] not in SFT_ALONE


def _without_sft(overrides: Sequence[str]) -> str:
    return ", ".join([FROM_BASE, *overrides])


def _of_phase(branch: Branch, phase: str) -> list[BranchModel]:
    return [model for model in branch.models if model.phase == phase]


def _measured(plan: Plan, model: BranchModel) -> Model:
    # Selection drops stages from the plan, not from the branches' models.
    there = {name: plan.stages[one] for name, one in model.measures.items() if one in plan.stages}
    return Model(model.name, there)


def _member(plan: Plan, branch: Branch, rl: BranchModel | None) -> Member:
    seed = next((text for text in branch.overrides if text.startswith("seed=")), "")
    start = None if rl is None else rl.start
    tuned = [] if start == "base" else _of_phase(branch, "sft")
    ended_at = _checkpoint(tuned, "" if start in (None, "final") else str(start))
    chosen = {"base": next(iter(_of_phase(branch, "base")), None), "sft": ended_at, "rl": rl}
    trained = {"sft": _stages(plan, branch, tuned), "rl": _stages(plan, branch, [] if rl is None else [rl])}
    models = {phase: _measured(plan, model) for phase, model in chosen.items() if model is not None}
    before = [m for m in (*tuned, *_of_phase(branch, "rl")) if m.step is not None and m.start in (None, start)]
    checkpoints = {(model.phase, model.step): _measured(plan, model) for model in before if model.step is not None}
    return Member(
        seed, models, trained, branch.name, None if rl is None else models.get("sft", models.get("base")), checkpoints
    )


def _checkpoint(tuned: Sequence[BranchModel], step: str) -> BranchModel | None:
    """The last model made of an SFT checkpoint: of "sft" and "average" the second, where there is one."""
    found = [model for model in tuned if model.name.partition("@")[2] == step]
    return found[-1] if found else None


def _stages(plan: Plan, branch: Branch, models: Sequence[BranchModel]) -> tuple[Stage, ...]:
    roles = dict.fromkeys(model.role for model in models if model.role is not None)
    found = dict.fromkeys(branch.stages[role] for role in roles if role in branch.stages)
    return tuple(plan.stages[one] for one in found if one in plan.stages)

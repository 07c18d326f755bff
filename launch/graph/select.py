"""Choosing swept settings on validation data: every candidate is fine-tuned, the best goes on to RL and evaluation.

`selection.fields=[sft.lr]` makes a group of the branches that differ in these fields, and in `seed`, alone. A group is
decided by the mean over seeds of a scalar that SFT measured on held-out chats, once every candidate has its artifact;
until then its branches end at SFT. What is decided follows from the store, so a killed run decides the same again.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass, field

from common.files import read_json
from launch import stages
from launch.graph.plan import Branch, Plan, Stage
from launch.recipe.compose import RecipeError
from launch.store import Store, StoreError


@dataclass(frozen=True)
class Candidate:
    """One value of the selected fields: its branches (one a seed), their SFT stages, and the mean metric if known."""

    setting: str
    branches: tuple[str, ...]
    stages: tuple[Stage, ...]
    value: float | None


@dataclass(frozen=True)
class Choice:
    """One group: what it is called, its candidates, and the setting that was chosen (None: not yet)."""

    group: str
    candidates: tuple[Candidate, ...]
    chosen: str | None


@dataclass(frozen=True)
class Selected:
    """The plan without what selection leaves out; `ended` are the branches that stop at SFT."""

    plan: Plan
    choices: tuple[Choice, ...] = ()
    ended: frozenset[str] = field(default_factory=frozenset)

    @property
    def undecided(self) -> tuple[Choice, ...]:
        """Groups whose candidates have not all been trained."""
        return tuple(choice for choice in self.choices if choice.chosen is None)


def select(plan: Plan, store: Store) -> Selected:
    """Applies the recipe's `selection` to a plan, as far as the store's artifacts decide it.

    Raises RecipeError for a field that is not swept or is not part of SFT, StoreError for a metric that SFT did not
    publish.
    """
    settings = plan.branches[0].recipe.selection
    if not settings.fields:
        return Selected(plan)
    for name in settings.fields:
        if not name.startswith(("sft.", "objective.")):
            raise RecipeError(f"selection.fields: {name} is not chosen on validation data; allowed: sft.*, objective.*")
        if not any(_is(text, name) for branch in plan.branches for text in branch.overrides):
            raise RecipeError(f"selection.fields: {name} is not swept; give several values, e.g. {name}=1e-5,3e-5")
    groups: dict[tuple[str, ...], dict[str, list[Branch]]] = defaultdict(lambda: defaultdict(list))
    for branch in plan.branches:
        chosen = [text for text in branch.overrides if any(_is(text, name) for name in settings.fields)]
        rest = tuple(text for text in branch.overrides if text not in chosen and not text.startswith("seed="))
        groups[rest][" ".join(chosen)].append(branch)
    choices, ended = [], set()
    for rest, by_setting in groups.items():
        candidates = []
        for setting, branches in by_setting.items():
            trained = tuple(plan.stages[_deciding(plan, branch)] for branch in branches)
            values = [_value(store, stage, settings.metric) for stage in trained]
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if len(known) == len(values) else None
            candidates.append(Candidate(setting, tuple(branch.name for branch in branches), trained, mean))
        chosen = _best(candidates, settings.goal)
        choices.append(Choice(" ".join(rest) or plan.recipe, tuple(candidates), chosen))
        ended |= {name for c in candidates if c.setting != chosen for name in c.branches}
    decided = all(choice.chosen is not None for choice in choices)
    return Selected(_without(plan, ended, decided), tuple(choices), frozenset(ended))


def _is(override: str, name: str) -> bool:
    return override.partition("=")[0] == name


def _value(store: Store, stage: Stage, metric: str) -> float | None:
    if store.find(stage) is None:
        return None
    path = store.directory(stage) / "metrics.json"
    metrics = read_json(path) or {}
    if metric not in metrics:
        raise StoreError(f"selection.metric={metric}: {path} has none; allowed: {', '.join(sorted(metrics))}")
    found = metrics[metric]  # null where training diverged
    return math.nan if found is None else float(found)


def _best(candidates: list[Candidate], goal: str) -> str | None:
    """The setting of the best candidate; a run that diverged (not a number) is the worst. The first one wins a tie."""
    if any(candidate.value is None for candidate in candidates):
        return None

    def badness(candidate: Candidate) -> float:
        assert candidate.value is not None
        if math.isnan(candidate.value):
            return math.inf
        return candidate.value if goal == "min" else -candidate.value

    return min(candidates, key=badness).setting


def _deciding(plan: Plan, branch: Branch) -> str:
    """The stage of a branch whose metrics decide."""
    return next(mark for mark in branch.stages.values() if stages.load(plan.stages[mark].kind).decides)


def _below(plan: Plan, mark: str) -> set[str]:
    """The stages that read what stage `mark` makes, directly or not."""
    found = {mark}
    for user, stage in plan.stages.items():  # inputs come before their users
        if any(given.stage in found for given in stage.inputs.values()):
            found.add(user)
    return found - {mark}


def _without(plan: Plan, ended: set[str], decided: bool) -> Plan:
    """The plan in which the branches `ended` stop at the stage that decided.

    What reads several branches reads those that are left, once all is decided.
    """
    kept: dict[str, dict[str, str]] = {}
    for branch in plan.branches:
        gone = _below(plan, _deciding(plan, branch)) if branch.name in ended else set()
        kept[branch.name] = {
            role: mark for role, mark in branch.stages.items() if mark not in gone and role not in plan.joint
        }
    stages_left = dict(plan.stages)
    for role, stage in (plan.rejoin(kept) if decided else {}).items():
        stages_left[stage.fingerprint] = stage
        for branch in plan.branches:
            if branch.name not in ended:
                kept[branch.name][role] = stage.fingerprint
    users: dict[str, list[str]] = defaultdict(list)
    for name, roles in kept.items():
        for mark in dict.fromkeys(roles.values()):
            users[mark].append(name)
    branches = [dataclasses.replace(branch, stages=kept[branch.name]) for branch in plan.branches]
    found = {
        mark: dataclasses.replace(stage, branches=tuple(users[mark]))
        for mark, stage in stages_left.items()
        if mark in users
    }
    return dataclasses.replace(plan, branches=branches, stages=found)

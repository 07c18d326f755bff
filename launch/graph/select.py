"""Choosing swept settings on validation data: every candidate is fine-tuned, the best goes on to RL and evaluation.

`selection.fields=[sft.lr]` makes a group of the branches that differ in these fields, and in `seed`, alone. A group is
decided by the mean over seeds of a scalar that SFT measured on held-out chats, or of a figure of readiness, once every
candidate has its artifact; until then its branches end there. With `selection.rungs` all candidates start RL and it is
decided at steps of RL (`launch.graph.rungs`). What is decided follows from the store, so a killed run decides the same
again.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.files import read_json
from evaluation import readiness
from launch import stages
from launch.graph.plan import Branch, Plan, Stage
from launch.graph.rungs import METRIC, Halving, halve, run_of, score_of
from launch.graph.siblings import START
from launch.recipe.compose import RecipeError
from launch.store import Store, StoreError
from launch.store.pauses import pausing

READINESS = "readiness/"  # before the name of a figure of readiness in `selection.metric`


@dataclass(frozen=True)
class Candidate:
    """One value of the selected fields: its branches (one a seed), the stages that decide, the mean metric if known.

    spent: fingerprints of all that was made of its branches alone to decide. stopped: the rung at which its RL ended.
    """

    setting: str
    branches: tuple[str, ...]
    stages: tuple[Stage, ...]
    value: float | None
    spent: frozenset[str] = frozenset()
    stopped: int | None = None


@dataclass(frozen=True)
class Choice:
    """One group: what it is called, its candidates, and the settings that were chosen (none: not yet).

    halving: how far its rungs are decided, where there are any.
    """

    group: str
    candidates: tuple[Candidate, ...]
    chosen: tuple[str, ...]
    halving: Halving | None = None


@dataclass(frozen=True)
class Selected:
    """The plan without what selection leaves out; `ended` are the branches that stop at what decides."""

    plan: Plan
    choices: tuple[Choice, ...] = ()
    ended: frozenset[str] = field(default_factory=frozenset)

    @property
    def undecided(self) -> tuple[Choice, ...]:
        """Groups whose candidates have not all been trained."""
        return tuple(choice for choice in self.choices if not choice.chosen)


def select(plan: Plan, store: Store) -> Selected:
    """Applies the recipe's `selection` to a plan, as far as the store's artifacts decide it.

    Raises RecipeError for a field that is not swept or is not part of SFT, and for readiness that is not measured,
    StoreError for a metric that was not published.
    """
    settings = plan.branches[0].recipe.selection
    if not settings.fields:
        return Selected(plan)
    for name in settings.fields:
        if not name.startswith(("sft.", "objective.")) and name not in ("objective", "adopt", "seed"):
            allowed = "objective, objective.*, sft.*, adopt, seed"
            raise RecipeError(f"selection.fields: {name} is not chosen on validation data; allowed: {allowed}")
        if not any(_is(text, name) for branch in plan.branches for text in branch.overrides):
            raise RecipeError(f"selection.fields: {name} is not swept; give several values, e.g. {name}=1e-5,3e-5")
    groups: dict[tuple[str, ...], dict[str, list[Branch]]] = defaultdict(lambda: defaultdict(list))
    for branch in plan.branches:
        chosen = [text for text in branch.overrides if any(_is(text, name) for name in settings.fields)]
        if not chosen and any(_is(text, "adopt") for text in branch.overrides):
            continue  # what SFT is chosen by does not bear on it: it goes on
        rest = tuple(text for text in branch.overrides if text not in chosen and not text.startswith("seed="))
        groups[rest][" ".join(chosen)].append(branch)
    choices, ended, pauses = [], set(), {}
    for rest, by_setting in groups.items():
        candidates = []
        deciding_of = {
            setting: tuple(plan.stages[_deciding(plan, branch, settings.metric)] for branch in branches)
            for setting, branches in by_setting.items()
        }
        halving = _halved(store, deciding_of, settings) if settings.rungs else None
        for setting, branches in by_setting.items():
            deciding = deciding_of[setting]
            mean = _mean(store, deciding, settings.metric) if halving is None else halving.values[setting]
            spent = {mark for branch in branches for mark in _spent(plan, branch, settings.metric)}
            names = tuple(branch.name for branch in branches)
            stopped = None if halving is None else halving.stopped.get(setting)
            candidates.append(Candidate(setting, names, deciding, mean, frozenset(spent), stopped))
            if halving is not None:
                pauses |= dict.fromkeys((stage.fingerprint for stage in deciding), stopped or halving.pending)
        if halving is None:
            chosen = _best(candidates, settings.goal or _goal(settings.metric), settings.keep)
        else:
            chosen = halving.left if halving.pending is None else ()
        choices.append(Choice(" ".join(rest) or plan.recipe, tuple(candidates), chosen, halving))
        ended |= {name for c in candidates if c.setting not in chosen for name in c.branches}
    decided = all(choice.chosen for choice in choices)
    left = _without(plan, ended, decided, settings.metric)
    if pauses:
        paused = {mark: pausing(stage, pauses[mark]) for mark, stage in left.stages.items() if mark in pauses}
        left = dataclasses.replace(left, stages={**left.stages, **paused})
    return Selected(left, tuple(choices), frozenset(ended))


def _halved(store: Store, runs: Mapping[str, Sequence[Stage]], settings: Any) -> Halving:
    """The rungs of a group. runs: setting -> its RL stages, one a seed."""
    sign = -1.0 if settings.goal == "min" else 1.0

    def score(setting: str, rung: int) -> float | None:
        found = score_of(store, runs[setting], settings.metric, rung)
        return None if found is None else sign * found

    halving = halve(tuple(runs), score, settings.rungs, settings.keep)
    values = {one: None if value is None else sign * value for one, value in halving.values.items()}
    return dataclasses.replace(halving, values=values)


def _mean(store: Store, deciding: Sequence[Stage], metric: str) -> float | None:
    values = [_value(store, stage, metric) for stage in deciding]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _goal(metric: str) -> str:
    return readiness.goal_of(metric.removeprefix(READINESS)) if metric.startswith(READINESS) else "min"


def _is(override: str, name: str) -> bool:
    return override.partition("=")[0] == name


def _value(store: Store, stage: Stage, metric: str) -> float | None:
    if store.find(stage) is None:
        return None
    path = store.directory(stage) / "metrics.json"
    metrics = read_json(path) or {}
    if metric.startswith(READINESS):
        metrics = {f"{READINESS}{name}": figure["value"] for name, figure in metrics["figures"].items()}
    if metric not in metrics:
        raise StoreError(f"selection.metric={metric}: {path} has none; allowed: {', '.join(sorted(metrics))}")
    found = metrics[metric]  # null where training diverged
    return math.nan if found is None else float(found)


def _best(candidates: list[Candidate], goal: str, keep: int) -> tuple[str, ...]:
    """The settings of the best candidates; a run that diverged (not a number) is the worst. The first ones win a tie.

    None while a candidate's value is not known.
    """
    if any(candidate.value is None for candidate in candidates):
        return ()

    def badness(candidate: Candidate) -> float:
        assert candidate.value is not None
        if math.isnan(candidate.value):
            return math.inf
        return candidate.value if goal == "min" else -candidate.value

    return tuple(candidate.setting for candidate in sorted(candidates, key=badness)[:keep])


def _deciding(plan: Plan, branch: Branch, metric: str) -> str:
    """The stage of a branch whose metrics decide. Raises RecipeError where it has none."""
    if metric.startswith(METRIC):
        return run_of(plan, branch)
    if not metric.startswith(READINESS):
        return _trained(plan, branch)
    for model in ("average", "sft"):
        if f"readiness:{model}" in branch.stages:
            return branch.stages[f"readiness:{model}"]
    raise RecipeError(f"selection.metric={metric}: no readiness is measured; set readiness.enabled=true")


def _trained(plan: Plan, branch: Branch) -> str:
    """The stage of a branch from which on selection may leave stages out."""
    own = (mark for role, mark in branch.stages.items() if not role.startswith(START))
    found = (mark for mark in own if stages.load(plan.stages[mark].kind).decides)
    first = next(found, None)
    if first is None:
        raise RecipeError(f"selection.fields: branch {branch.name} trains no SFT; leave them out")
    return first


def _spent(plan: Plan, branch: Branch, metric: str) -> set[str]:
    """What is made after SFT to decide on a branch, with SFT itself."""
    trained, deciding = _trained(plan, branch), _deciding(plan, branch, metric)
    needed, waiting = set(), [deciding]
    while waiting:
        mark = waiting.pop()
        if mark not in needed:
            needed.add(mark)
            waiting += [given.stage for given in plan.stages[mark].inputs.values() if given.stage is not None]
    return needed & (_below(plan, trained) | {trained})


def _below(plan: Plan, mark: str) -> set[str]:
    """The stages that read what stage `mark` makes, directly or not."""
    found = {mark}
    for user, stage in plan.stages.items():  # inputs come before their users
        if any(given.stage in found for given in stage.inputs.values()):
            found.add(user)
    return found - {mark}


def _without(plan: Plan, ended: set[str], decided: bool, metric: str) -> Plan:
    """The plan in which the branches `ended` stop at the stage that decided.

    What reads several branches reads those that are left, once all is decided.
    """
    kept: dict[str, dict[str, str]] = {}
    for branch in plan.branches:
        gone: set[str] = set()
        if branch.name in ended:
            gone = _below(plan, _trained(plan, branch)) - _spent(plan, branch, metric)
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

"""What trackers show of a plan: one run for each branch, fed by its training curves and its scores."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from launch import stages as stage_kinds
from launch import trackers
from launch.fingerprint import fingerprint
from launch.graph.plan import Branch, Plan, Stage
from launch.stages.contract import StageKind
from launch.store.records import redact
from launch.trackers.contract import TrackedRun

LONGEST = 80  # characters of a branch's name in that of its run


@dataclass(frozen=True)
class Source:
    """A stage whose numbers a run shows, and the series that they stand under."""

    series: str
    stage: Stage
    kind: StageKind


@dataclass(frozen=True)
class Tracked:
    """A run and what it is fed by."""

    run: TrackedRun
    sources: tuple[Source, ...]


def check_trackers(plan: Plan) -> None:
    """Refuses trackers of the plan that cannot be used here. Raises ConfigError (one line)."""
    for name in plan.branches[0].recipe.run.trackers:
        trackers.load(name).check()


def tracked(plan: Plan) -> list[Tracked]:
    """The runs of a plan, in the order of its branches; a branch of which nothing is shown has none.

    The id of a run is the fingerprint of the branch's last training stage. Where a branch has several, or none, or
    shares it with another branch of the plan, it is one of the fingerprints of all that is shown.
    """
    kinds = {kind.name: kind for kind in stage_kinds.in_order(plan.own_stages)}
    found = [(branch, sources) for branch in plan.branches if (sources := _sources(plan, branch, kinds))]
    last = [_last_training(plan, sources) for _, sources in found]
    shared = {mark for mark, count in Counter(last).items() if count > 1}
    runs: dict[str, Tracked] = {}
    for (branch, sources), mark in zip(found, last, strict=True):
        if mark is None or mark in shared:
            mark = fingerprint(sorted(source.stage.fingerprint for source in sources))
        runs.setdefault(mark, Tracked(_run(plan, branch, mark[:16]), sources))
    return list(runs.values())


def _sources(plan: Plan, branch: Branch, kinds: dict[str, StageKind]) -> tuple[Source, ...]:
    found = []
    for role, mark in branch.stages.items():
        stage = plan.stages.get(mark)
        kind = None if stage is None else kinds[stage.kind]
        if stage is not None and kind is not None and kind.series:
            series = kind.series + role.removeprefix(stage.kind).replace(":", "/")
            found.append(Source(series, stage, kind))
    return tuple(found)


def _last_training(plan: Plan, sources: tuple[Source, ...]) -> str | None:
    """The fingerprint of the only training stage that no other one goes on from; None where that is not one."""
    training = [source.stage.fingerprint for source in sources if source.kind.curve]
    read = {above for mark in training for above in _above(plan, mark)}
    ends = [mark for mark in training if mark not in read]
    return ends[0] if len(ends) == 1 else None


def _above(plan: Plan, mark: str) -> set[str]:
    """Fingerprints of all that a stage was made from."""
    found: set[str] = set()
    waiting = [mark]
    while waiting:
        given = {one.stage for one in plan.stages[waiting.pop()].inputs.values()} - found - {None}
        new = {stage for stage in given if stage is not None and stage in plan.stages}
        found |= new
        waiting += new
    return found


def _run(plan: Plan, branch: Branch, mark: str) -> TrackedRun:
    settings = branch.recipe.model_dump(mode="json", exclude={"sweep", "published", "selection"})
    addresses = {role: plan.stages[one].address for role, one in branch.stages.items() if one in plan.stages}
    return TrackedRun(
        id=mark,
        name=f"{_plain(branch.name)[:LONGEST]}-{mark}",
        project=_plain(plan.recipe),
        branch=branch.name,
        config={"branch": branch.name, "overrides": list(branch.overrides), "addresses": addresses, **redact(settings)},
    )


def _plain(text: str) -> str:
    """A text as a file name, and as every tracker takes a name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "run"

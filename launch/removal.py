"""`rm`: deletes artifacts of branches, or the weights of their models alone, whose scores then stay.

What goes is chosen by branch, by age, by rule (all but the branches made last), or by what the report cites. An
artifact that a branch outside the chosen ones reads as well is kept. A pruned artifact keeps its record, its metrics
and its curve; its weights are made again only when a stage that is missing reads them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import ConfigError
from launch.branches import named, selector
from launch.graph.plan import Branch, Plan, Stage
from launch.graph.select import Selected, select
from launch.store import Record, Store, StoreError
from launch.store.pauses import forget_pause, kept_by_pause
from launch.store.prune import FOLDER, prune, take_away, weights_of
from launch.text import bytes_text

DAY = 86_400.0


@dataclass(frozen=True)
class Rule:
    """What may go. branches: their names; none: all. checkpoints: only weights. days: only what was made longer ago.

    keep_last: spare the branches made last. keep_reported: only weights, and of those only what the report cites
    nowhere as a branch's last model. Raises ConfigError for rules that contradict each other.
    """

    branches: Sequence[str] = ()
    checkpoints: bool = False
    days: float | None = None
    keep_last: int | None = None
    keep_reported: bool = False

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise ConfigError(f"--keep-last {self.keep_last}: allowed: 1 or more; leave it out to keep none")
        if self.keep_last is not None and self.branches:
            raise ConfigError("--keep-last chooses the branches that stay; leave --branch out, or --keep-last")
        if self.keep_last is not None and self.keep_reported:
            raise ConfigError("--keep-last and --keep-reported are two rules; give one of them after the other")

    @property
    def weights(self) -> bool:
        """Whether records and scores stay."""
        return self.checkpoints or self.keep_reported


@dataclass(frozen=True)
class _Found:
    """What may go of one artifact: entries of its record by path, and the steps whose weights stay."""

    stage: Stage
    entries: Mapping[str, Mapping[str, Any]]
    keep: frozenset[int] = field(default_factory=frozenset)
    paused: bool = False  # it is not published: what goes is in its scratch directory

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.entries.values())


def remove(plan: Plan, rule: Rule, *, delete: bool) -> int:
    """Prints what goes and how many bytes, and with `delete` deletes it; returns 0.

    Raises ConfigError for an unknown branch, StoreError for deleting while a run is alive.
    """
    store = Store(plan.root)
    found = list(_found(plan, store, rule))
    if delete and any(store.alive(driver.run) for driver in store.list_drivers()):
        raise StoreError(f"{store.root}: a run is alive, which may read what would go; stop it first")
    for one in found:
        for path, size in _shown(store.directory(one.stage), one, rule):
            print(f"{bytes_text(size):>10}  {path}")
        if delete and one.paused:
            forget_pause(store, one.stage, scores=rule.weights)
        elif delete and rule.weights:
            prune(store, one.stage, one.keep)
        elif delete:
            take_away(store, one.stage)
    what = "weights of artifacts" if rule.weights else "artifacts"
    total = bytes_text(sum(one.bytes for one in found))
    print(f"{len(found)} {what}, {total}" + (" deleted" if delete else "; add --delete to delete them"))
    return 0


def _found(plan: Plan, store: Store, rule: Rule) -> Iterable[_Found]:
    chosen = {branch.name for branch in named(plan, rule.branches)}
    if rule.keep_last is not None:
        chosen -= {branch.name for branch in _last_made(plan, store)[: rule.keep_last]}
    cited, losers = {}, frozenset(chosen)
    if rule.keep_reported:
        selected = select(plan, store)
        losers = _losers(selected)
        cited = _cited(plan, selected, losers, store)
    for mark, stage in plan.stages.items():
        if not chosen.issuperset(stage.branches):
            continue
        record = store.find(stage)
        if record is None:
            size = kept_by_pause(store, stage, scores=rule.weights)
            if size and rule.days is None and losers.issuperset(stage.branches):
                yield _Found(stage, {"": {"bytes": size}}, paused=True)
            continue
        if rule.days is not None and time.time() - record.started < rule.days * DAY:
            continue
        keep = cited.get(mark, frozenset())
        one = _Found(stage, weights_of(record, keep) if rule.weights else _left(record), keep)
        if one.bytes:
            yield one


def _left(record: Record) -> Mapping[str, Mapping[str, Any]]:
    return {name: entry for name, entry in record.payload.items() if "pruned" not in entry}


def _last_made(plan: Plan, store: Store) -> list[Branch]:
    """The branches, the one whose artifacts were begun last first; what several share tells none of them apart."""

    def begun(branch: Branch) -> list[float]:
        records = (store.find(plan.stages[mark]) for mark in branch.stages.values())
        return sorted((record.started for record in records if record is not None), reverse=True)

    return sorted(plan.branches, key=begun, reverse=True)


def _cited(plan: Plan, selected: Selected, losers: frozenset[str], store: Store) -> dict[str, frozenset[int]]:
    """Fingerprint -> steps of the models with which a phase of a branch ended and that were measured.

    Of branches that a selection left behind none; where nothing of a branch is measured, all that ended a phase. What
    a stage reads that is still missing stays too.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for branch in selected.plan.branches:
        last = [one for one in branch.models if one.step is None and one.role in branch.stages]
        measured = [one for one in last if any(mark in branch.stages.values() for mark in one.measures.values())]
        for model in measured or last:
            if branch.name in losers and model.phase != "base":
                continue
            assert model.role is not None
            found[branch.stages[model.role]].add(selector(model))
    for stage in selected.plan.stages.values():
        for given in stage.inputs.values() if store.find(stage) is None else ():
            if given.stage is not None and given.select:
                found[given.stage].add(given.select)
    return {mark: _steps(store, plan.stages[mark], selects) for mark, selects in found.items()}


def _losers(selected: Selected) -> frozenset[str]:
    """Branches that a decided selection left behind, or that a rung has stopped."""
    open_still = {
        name for c in selected.undecided for one in c.candidates if one.stopped is None for name in one.branches
    }
    return selected.ended - open_still


def _steps(store: Store, stage: Stage, selects: Iterable[str]) -> frozenset[int]:
    """The steps whose checkpoints these are; none of an artifact that is not there."""
    if store.find(stage) is None:
        return frozenset()
    paths = (store.select(store.directory(stage), one) for one in selects)
    return frozenset(int(path.name.removeprefix("step_")) for path in paths)


def _shown(directory: Path, found: _Found, rule: Rule) -> Iterable[tuple[Path, int]]:
    """The artifact with its bytes, or each of its checkpoints where the others stay."""
    if found.paused:
        return [(directory.with_name(f"{directory.name} (paused)"), found.bytes)]
    if not rule.keep_reported:
        return [(directory, found.bytes)]
    sizes: dict[Path, int] = defaultdict(int)
    for name, entry in found.entries.items():
        sizes[directory / FOLDER / PurePosixPath(name).parts[1]] += entry["bytes"]
    return sizes.items()

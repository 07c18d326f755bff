"""Successive halving: all candidates start RL, at each rung the better half goes on.

A rung is a step of RL at which its run pauses. The last rung is the whole run, so the schedule of learning rates is
that of an uninterrupted run, and so is the fingerprint. What is decided follows from the scores at the pauses alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launch.graph.plan import Branch, Plan, Stage
from launch.recipe.compose import RecipeError
from launch.store import Store, StoreError
from launch.store.pauses import scores_at

METRIC = "rl/"  # before a column of RL's curve, in `selection.metric`


@dataclass(frozen=True)
class Halving:
    """How far the rungs have been decided.

    left: candidates that have not been stopped. pending: the rung that those have to reach now; None: they run to the
    end. stopped: candidate -> rung. values: candidate -> its score at the last rung that it has reached.
    """

    left: tuple[str, ...]
    pending: int | None
    stopped: Mapping[str, int]
    values: Mapping[str, float | None]


def kept_of(count: int, keep: int) -> int:
    """How many of `count` candidates go on at a rung: the better half, rounded up, and `keep` at least."""
    return min(count, max(keep, math.ceil(count / 2)))


def halve(
    candidates: Sequence[str], score: Callable[[str, int], float | None], rungs: Sequence[int], keep: int
) -> Halving:
    """Decides as many rungs as there are scores for. Of equal scores the first ones go on; not a number is the worst.

    score: of a candidate at a rung, the larger the better; None: not reached yet.
    """
    left, stopped = list(candidates), {}
    values: dict[str, float | None] = dict.fromkeys(candidates)
    for rung in rungs[:-1]:
        count = kept_of(len(left), keep)
        if count == len(left):
            continue  # nobody would stop here, so nobody has to pause
        found = {one: score(one, rung) for one in left}
        values |= {one: value for one, value in found.items() if value is not None}
        if None in found.values():
            return Halving(tuple(left), rung, stopped, values)

        def badness(one: str, found: Mapping[str, float | None] = found) -> float:
            value = found[one]
            return math.inf if value is None or math.isnan(value) else -value

        ranked = sorted(left, key=badness)
        stopped |= dict.fromkeys(ranked[count:], rung)
        left = [one for one in left if one not in stopped]
    return Halving(tuple(left), None, stopped, values)


def run_of(plan: Plan, branch: Branch) -> str:
    """The fingerprint of the RL run of a branch that pauses. Raises RecipeError unless there is one from SFT."""
    runs = [role for role in branch.stages if role.startswith("rl@") and role != "rl@base"]
    if len(runs) != 1:
        raise RecipeError(
            f"selection.rungs: branch {branch.name} has {len(runs)} RL runs from SFT checkpoints; set "
            "rl.from=final, or [base,final]"
        )
    return branch.stages[runs[0]]


def score_of(store: Store, runs: Sequence[Stage], metric: str, rung: int) -> float | None:
    """Mean over seeds of a column of RL's curve at a rung; None while a run has not come there, nan where one diverged.

    Raises StoreError for a column that RL does not have.
    """
    name, found = metric.removeprefix(METRIC), []
    for stage in runs:
        row = scores_at(store, stage, rung)
        if row is None:
            return None
        if name not in row and not any(one.startswith("validation_") for one in row):
            raise StoreError(f"selection.rungs: {stage.name} was not validated at step {rung}; leave that rung out")
        if name not in row:
            raise StoreError(f"selection.metric={metric}: RL has none; allowed: {', '.join(_columns(row))}")
        found.append(row[name])
    return sum(found) / len(found)


def _columns(row: Mapping[str, float]) -> list[str]:
    return [METRIC + name for name in sorted(row) if name.startswith("validation_")]


@dataclass(frozen=True)
class Budget:
    """Device-hours of RL over all rungs, by which candidates go on, and what all of them to the end would take."""

    least: float
    most: float
    whole: float


def budget(halving: Halving, costs: Mapping[str, float], rungs: Sequence[int], keep: int) -> Budget:
    """What all rungs take together, the decided ones too. costs: candidate -> device-hours of its whole runs."""

    def share(one: str) -> float:
        return costs[one] * halving.stopped[one] / rungs[-1]

    found = []
    for dear in (False, True):
        left = sorted(halving.left, key=costs.__getitem__, reverse=dear)
        total = sum(map(share, halving.stopped))
        for rung in rungs[:-1]:
            if halving.pending is None or rung < halving.pending:
                continue  # decided
            count = kept_of(len(left), keep)
            total += sum(costs[one] * rung / rungs[-1] for one in left[count:])
            left = left[:count]
        found.append(total + sum(costs[one] for one in left))
    least, most = found
    return Budget(least, most, sum(costs.values()))

"""What a study measured: a row for each model of each seed of each arm, as CSV and from the store's records."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import write_text
from evaluation.compare import average_of, headlines
from evaluation.readiness.stage import read_figures
from launch.fingerprint import fingerprint
from launch.graph.plan import Branch, Plan
from launch.graph.select import select
from launch.report.cells import HELD_OUT
from launch.report.lines import BASE, Line, Member, lines
from launch.report.readiness import stage_of as readiness_of
from launch.report.source import Source
from launch.store import Store

BEFORE_RL = "readiness/"  # before the names of figures of readiness
OF_TARGET = ("pass@1", "greedy", "self_bleu", "truncated", "tokens_p50")
OF_HELD_OUT = ("loss", "entropy", "kl_from_base")
KEYS = ("arm", "seed", "phase", "fingerprint", "measured", "samples", "right")
MARK = 16  # digits of a fingerprint that are written
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Run:
    """One model of a study.

    arm: the row of the report that it belongs to. phase: base, sft or rl. fingerprint: of the stage that trained it, of
    a base model of the one that measured its target. samples: drawn of every problem of the target. right: (problems,)
    of them right, by the problems' ids. figures: name -> value; not there where it was not measured. measured: stands
    for all the stages that the figures come from; empty where that is not known.
    """

    arm: str
    seed: int
    phase: str
    fingerprint: str
    samples: int
    right: tuple[int, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""


def collect(plan: Plan, earlier: Iterable[Run] = ()) -> list[Run]:
    """The runs of a plan that the store has measured on all benchmarks, in the report's order; a base model once.

    earlier: runs that another store had. Where the same stages measured them they stand for what this store lacks.
    Raises ConfigError where nothing was measured, models were asked different problems, or drew more samples than one
    character counts.
    """
    store = Store(plan.root)
    selected = select(plan, store)
    source, target = Source(store), plan.branches[0].recipe.eval.target
    elsewhere = {run.measured: run for run in earlier if run.measured}
    found: list[Run] = []
    problems: set[frozenset[str]] = set()
    for line, member, phase in _models(selected.plan, selected.ended):
        model = member.models[phase]
        whole = all(source.whole(stage) for stage in model.measures.values())
        outcomes = source.outcomes(model, target, "sampled") if whole else {}
        other = elsewhere.get(_measured(selected.plan, member, phase))
        if outcomes:
            problems.add(frozenset(outcomes))
            run = _run(selected.plan, source, target, line, member, phase, outcomes)
            found.append(replace(run, figures={**(other.figures if other else {}), **run.figures}))
        elif other is not None:
            found.append(replace(other, arm=line.name, seed=_seed(selected.plan, member)))
    if not found:
        raise ConfigError(f"{store.root}: nothing of this plan has been measured on {target}; run the recipe first")
    if len(problems) > 1 or len({(run.samples, len(run.right)) for run in found}) > 1:
        raise ConfigError(f"benchmark {target}: the models of this plan were asked different problems")
    return found


def count(plan: Plan) -> int:
    """How many runs a plan has once all is measured."""
    selected = select(plan, Store(plan.root))
    return sum(1 for _ in _models(selected.plan, selected.ended))


def _models(plan: Plan, ended: frozenset[str]) -> Iterator[tuple[Line, Member, str]]:
    for line in lines(plan, ended):
        for member in line.members:
            for phase in ("sft", "rl"):
                if phase in member.models and member.models[phase].measures:
                    yield line, member, phase


def _run(
    plan: Plan,
    source: Source,
    target: str,
    line: Line,
    member: Member,
    phase: str,
    outcomes: Mapping[str, Sequence[bool]],
) -> Run:
    model = member.models[phase]
    metrics = source.metrics(model)
    assert metrics is not None  # it has outcomes
    among = metrics["benchmarks"][target]["metrics"]
    figures = {name: among[name]["value"] for name in among if name in OF_TARGET or name.startswith("pass@")}
    scores = headlines(metrics)
    general = [name for name in scores if name != target]
    figures |= {name: scores[name]["value"] for name in general}
    if general:
        figures["general"] = average_of(metrics, None, None, without=(target,))["value"]
    if HELD_OUT in model.measures and metrics["held_out"]:
        held_out = metrics["held_out"]["metrics"]
        figures |= {f"held_out_{name}": held_out[name]["value"] for name in OF_HELD_OUT if name in held_out}
    trained = member.trained.get(phase, ())
    figures |= _readiness(plan, source, member, model.name) if phase == "sft" else {}
    records = [record for stage in trained if (record := source.record(stage)) is not None]
    if records:
        figures["train_seconds"] = sum(record.seconds for record in records)
    counts = {len(samples) for samples in outcomes.values()}
    if len(counts) > 1 or max(counts) >= len(DIGITS):
        raise ConfigError(f"benchmark {target}: num_samples has to be one number below {len(DIGITS)} for a study")
    right = tuple(sum(outcomes[problem]) for problem in sorted(outcomes, key=_number))
    mark = trained[-1].fingerprint if trained and not line.is_base else model.measures[target].fingerprint
    seed = _seed(plan, member)
    measured = _measured(plan, member, phase)
    return Run(line.name, seed, "base" if line.is_base else phase, mark, counts.pop(), right, figures, measured)


def _measured(plan: Plan, member: Member, phase: str) -> str:
    """What stands for the stages that a run's figures come from, whatever store has them."""
    model = member.models[phase]
    stages = [*member.trained.get(phase, ()), *model.measures.values()]
    readiness = readiness_of(plan, _branch(plan, member), model.name) if phase == "sft" else None
    return fingerprint(sorted({stage.fingerprint for stage in [*stages, *([readiness] if readiness else [])]}))[:MARK]


def _seed(plan: Plan, member: Member) -> int:
    return int(member.seed.partition("=")[2] or plan.branches[0].recipe.seed)


def _branch(plan: Plan, member: Member) -> Branch | None:
    return next((one for one in plan.branches if one.name == member.branch), None)


def _number(problem: str) -> tuple[int, str]:
    last = problem.rpartition("-")[2]
    return (int(last) if last.isdecimal() else 0, problem)


def _readiness(plan: Plan, source: Source, member: Member, model: str) -> dict[str, float]:
    stage = readiness_of(plan, _branch(plan, member), model)
    if stage is None or not source.whole(stage):
        return {}
    found = read_figures(source.store.directory(stage))
    return {f"{BEFORE_RL}{name}": figure["value"] for name, figure in found.items()}


def as_csv(runs: Iterable[Run]) -> str:
    """The runs as CSV: `KEYS` (right: a digit a problem), then a column for each figure, empty where a run has none."""
    runs = list(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEYS, *names])
    for run in runs:
        values = [f"{run.figures[name]:.6g}" if name in run.figures else "" for name in names]
        right = "".join(DIGITS[count] for count in run.right)
        keys = (run.arm, run.seed, run.phase, run.fingerprint[:MARK], run.measured, run.samples, right)
        writer.writerow([*keys, *values])
    return text.getvalue()


def write_csv(runs: Iterable[Run], path: Path) -> None:
    """Writes the runs; see `as_csv`."""
    write_text(path, as_csv(runs))


def read_csv(path: Path) -> list[Run]:
    """The runs of a file that `write_csv` wrote. Raises ConfigError, with the line, for one that it did not write."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        missing = [key for key in KEYS if key not in (rows.fieldnames or ())]
        if missing:
            raise ConfigError(
                f"{path}: has no column {missing[0]}; move it away, and `python -m launch evidence` writes it"
            )
        try:
            return [_of_row(row) for row in rows]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {rows.line_num}: {error}") from None


def called(runs: Sequence[Run], names: Mapping[str, str]) -> list[Run]:
    """The runs with the arms' names of a page instead of the report's (`sft` for `sft lr=0.0005`), where it has one.

    Raises ConfigError for a name of the report that no run has.
    """
    there = {run.arm for run in runs}
    missing = [name for name in names if name not in there]
    if missing:
        raise ConfigError(f"arms: no row {missing[0]!r} in the report; allowed: {', '.join(sorted(there))}")
    return [replace(run, arm=names.get(run.arm, run.arm)) for run in runs]


def _of_row(row: Mapping[str, Any]) -> Run:
    figures = {name: float(value) for name, value in row.items() if name not in KEYS and value}
    right = tuple(DIGITS.index(digit) for digit in row["right"])
    samples, measured = int(row["samples"]), row["measured"]
    return Run(row["arm"], int(row["seed"]), row["phase"], row["fingerprint"], samples, right, figures, measured)


def of_arm(runs: Sequence[Run], arm: str, phase: str) -> dict[int, Run]:
    """The runs of an arm by seed."""
    return {run.seed: run for run in runs if run.arm == arm and run.phase == phase}


def arms(runs: Sequence[Run]) -> list[str]:
    """The arms in their order, without the base model."""
    return list(dict.fromkeys(run.arm for run in runs if run.arm != BASE))

"""The tables of the report: by objective, by benchmark, diversity and drift, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evaluation.compare import headlines
from launch.graph.plan import Plan
from launch.report.cells import Cells
from launch.report.contrasts import Place, with_best
from launch.report.lines import PHASES, Line
from launch.report.parts import Cell, Grid, Row, grid
from launch.store import Store

COLUMNS = {
    "sft_pass1": "SFT pass@1",
    "sft_passk": "SFT pass@k",
    "sft_general": "SFT general pass@1",
    "entropy": "token entropy",
    "rl_pass1": "RL pass@1",
    "rl_passk": "RL pass@k",
    "rl_general": "RL general pass@1",
    "gain": "gain from RL, pass@1",
    "gain_greedy": "gain from RL, greedy",
    "time": "time SFT + RL",
    "memory": "peak memory",
}
TAKEN = ("time", "memory")  # of `COLUMNS`, those that are costs and no results
TESTED = {"sft_pass1": "sft", "rl_pass1": "rl"}  # of `COLUMNS`, those whose best one is tested, and the phase
# Metric of the target, or of held-out chats, to the column that shows it.
DRIFT = {
    "self_bleu": "self-BLEU",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "tokens_p25": "tokens, p25",
    "tokens_p50": "tokens, p50",
    "tokens_p75": "tokens, p75",
    "truncated": "truncated",
    "unanswered": "unanswered",
    "ungraded": "ungraded",
}
DRIFT_HELD_OUT = {"entropy": "token entropy", "loss": "held-out loss", "kl_from_base": "KL from base"}
COST = ("attempts", "hours", "device-hours")


def main_row(cells: Cells, line: Line) -> dict[str, Cell]:
    """The cells of a row of the main table, by the names of `COLUMNS`."""
    target = "pass@1"
    return {
        "sft_pass1": cells.of_target(line, "sft", target),
        "sft_passk": cells.passk(line, "sft"),
        "sft_general": cells.general(line, "sft"),
        "entropy": cells.of_held_out(line, "sft", "entropy"),
        "rl_pass1": cells.of_target(line, "rl", target),
        "rl_passk": cells.passk(line, "rl"),
        "rl_general": cells.general(line, "rl"),
        "gain": cells.gain(line, "sampled"),
        "gain_greedy": cells.gain(line, "greedy"),
        "time": cells.time(line),
        "memory": cells.memory(line),
    }


def main_grid(cells: Cells, rows: Sequence[tuple[Line, dict[str, Cell]]]) -> Grid:
    """The results of rows as `main_row` makes them, with the best pass@1 marked where tests tell it from the others."""
    columns = {name: [row[name] for _, row in rows] for name in COLUMNS if name not in TAKEN}
    for name, phase in TESTED.items():
        columns[name] = with_best(cells, [(line, phase) for line, _ in rows], columns[name], cells.settings.target)
    return _of_columns([COLUMNS[name] for name in columns], [line.name for line, _ in rows], list(columns.values()))


def taken_grid(rows: Sequence[tuple[Line, dict[str, Cell]]]) -> Grid:
    """What training took, of rows as `main_row` makes them."""
    table = grid([COLUMNS[name] for name in TAKEN], [(line.name, [row[name] for name in TAKEN]) for line, row in rows])
    return with_values(table)


def _of_columns(titles: Sequence[str], names: Sequence[str], columns: Sequence[Sequence[Cell]]) -> Grid:
    return grid(titles, [(name, [column[place] for column in columns]) for place, name in enumerate(names)])


def with_values(table: Grid) -> Grid:
    """A table without the rows that have no value."""
    return replace(table, rows=tuple(row for row in table.rows if any(cell.text for cell in row[1])))


def after_each_phase(lines: Sequence[Line]) -> list[tuple[Line, str, str]]:
    """Line, phase and name for every line after SFT and after RL."""
    found = []
    for line in lines:
        for phase, title in PHASES.items():
            if any(phase in member.models and member.models[phase].measures for member in line.members):
                found.append((line, phase, line.name if line.is_base or line.from_base else f"{line.name} {title}"))
    return found


def benchmarks(cells: Cells, lines: Sequence[Line]) -> Grid:
    """The score on every benchmark and task, of every line after SFT and after RL, with the best marked where tests
    tell it from the others (of benchmarks scored by pass@1)."""
    places = after_each_phase(lines)
    models = (member.models.get(phase) for line, phase, _ in places for member in line.members)
    measured = [metrics for model in models if (metrics := cells.source.metrics(model)) is not None]
    names = list(dict.fromkeys(name for metrics in measured for name in headlines(metrics)))
    columns = []
    for name in names:
        column = [cells.score(line, phase, name) for line, phase, _ in places]
        if all(_by_pass1(metrics, name) for metrics in measured):
            of_line: list[Place] = [(line, phase) for line, phase, _ in places]
            column = with_best(cells, of_line, column, name)
        columns.append(column)
    return with_values(_of_columns(names, [title for *_, title in places], columns))


def _by_pass1(metrics: dict[str, Any], name: str) -> bool:
    """Whether a benchmark is one that is scored by pass@1, where it was measured."""
    if name in metrics["tasks"]:
        return False
    found = metrics["benchmarks"].get(name)
    return found is None or "balanced_accuracy" not in found["metrics"]


def drift(cells: Cells, lines: Sequence[Line]) -> Grid:
    """How diverse and how long the responses to the target are, and how far the model has moved from the base."""
    rows: list[Row] = []
    for line, phase, title in after_each_phase(lines):
        responses = [cells.of_target(line, phase, name) for name in DRIFT]
        chats = [cells.of_held_out(line, phase, name) for name in DRIFT_HELD_OUT]
        rows.append((title, (*responses, *chats)))
    return with_values(grid([*DRIFT.values(), *DRIFT_HELD_OUT.values()], rows))


def costs(plan: Plan, store: Store) -> Grid:
    """Per branch: attempts, hours and device-hours of all its stages; a shared stage counts in each branch."""
    attempts = store.costs()
    rows: list[Row] = []
    for name, stages in (
        *((branch.name, set(branch.stages.values())) for branch in plan.branches),
        ("all, shared stages once", plan.stages.keys()),
    ):
        mine = [row for row in attempts if row["fingerprint"] in stages]
        hours, devices = sum(r["seconds"] for r in mine) / 3600, sum(r["device_hours"] for r in mine)
        used = Cell(f"{devices:.2f}", devices) if any(row["devices"] for row in mine) else Cell()
        rows.append((name, (Cell(str(len(mine)), len(mine)), Cell(f"{hours:.2f}", hours), used)))
    return grid(COST, rows, head="branch")

"""What predicted RL: how each figure from before RL orders the branches by what they score after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation import readiness
from evaluation.readiness.association import FEWEST, Association, Outcome, associations, outcomes_of
from evaluation.readiness.stage import read_figures
from launch.graph.plan import Plan
from launch.report.cells import Cells
from launch.report.drawing import COLOURS, GREY, INK, TIP, WIDTH, drawn
from launch.report.lines import Line
from launch.report.parts import Cell, Figure, Section, estimate, grid
from launch.report.readiness import stage_of, titles

COLUMNS = ("branches", "Spearman", "Kendall", "p (Holm)", "regret", "regret at random", "it chooses")
NOTE = (
    "Rank correlation of each figure before RL with pass@1 on the target after RL (the score itself, not the gain), "
    "over branches with their seeds averaged: positive where the figure is right in the direction of its arrow. "
    "Intervals: 95%, drawing branches and their seeds. p: permutation test, Holm over all figures. Regret: the best "
    "branch's score less that of the branch which the figure chooses."
)


def sections(plan: Plan, cells: Cells, lines: Sequence[Line]) -> list[Section]:
    """The section; none where no branch has both readiness and a score after RL."""
    outcomes, records, branches = _outcomes(plan, cells, lines)
    if not branches:
        return []
    if branches < FEWEST:
        text = f"RL of {branches} branches is measured: with fewer than {FEWEST} nothing can be concluded."
        return [Section("What predicted RL", text)]
    names = titles(set(outcomes))
    found = associations(
        {name: outcomes[name] for name in names},
        {name: readiness.goal_of(name) for name in names},
        seed=cells.settings.seed,
        resamples=cells.settings.resamples,
    )
    rows = [(names[name], _row(one, records)) for name, one in found.items()]
    left = [names[name] for name in names if name not in found]
    missing = f" Without a row, since too few branches have them or all are equal: {', '.join(left)}." if left else ""
    figures = (_figure(names, found),) if found else ()
    table = grid(COLUMNS, rows)
    return [Section("What predicted RL", f"{_sentence(names, found)}{missing}", (table,), figures, note=NOTE)]


def _outcomes(plan: Plan, cells: Cells, lines: Sequence[Line]) -> tuple[dict[str, list[Outcome]], tuple[str, ...], int]:
    """By figure the branches that have it, the records behind them, and how many branches have any."""
    of_branch = {branch.name: branch for branch in plan.branches}
    target = cells.settings.target
    outcomes: dict[str, list[Outcome]] = {}
    records: dict[str, None] = {}
    count = 0
    for line in lines:
        seeds: list[tuple[Mapping[str, float], float]] = []
        for member in line.members:
            model = member.models.get("rl")
            metrics = None if line.is_base else cells.source.metrics(model)
            score = {} if metrics is None else cells.target(metrics)
            if "pass@1" not in score or member.start is None or model is None:
                continue
            stage = stage_of(plan, of_branch.get(member.branch), member.start.name)
            if stage is None or not cells.source.whole(stage):
                continue
            found = read_figures(cells.source.store.directory(stage))
            figures = {name: figure["value"] for name, figure in found.items()}
            seeds.append((figures, score["pass@1"]["value"]))
            records |= dict.fromkeys((stage.address, model.measures[target].address))
        count += bool(seeds)
        for name, outcome in outcomes_of(line.name, seeds).items():
            outcomes.setdefault(name, []).append(outcome)
    return outcomes, tuple(records), count


def _row(one: Association, records: tuple[str, ...]) -> tuple[Cell, ...]:
    estimates = [
        estimate(found.value, found.low, found.high, records, places=2, signed=True)
        for found in (one.spearman, one.kendall)
    ]
    return (
        Cell(str(one.n), one.n),
        *estimates,
        Cell(f"{one.p_holm:.3f}", one.p_holm, records=records),
        estimate(one.regret.value, one.regret.low, one.regret.high, records),
        Cell(f"{one.at_random:.3f}", one.at_random, records=records),
        Cell(one.chosen),
    )


def _sentence(names: Mapping[str, str], found: Mapping[str, Association]) -> str:
    """What may be said at 5%, Holm-adjusted."""
    shown = sorted((n for n, one in found.items() if one.p_holm <= 0.05), key=lambda n: -abs(found[n].spearman.value))
    if not shown:
        return "No figure orders the branches better than chance would (p <= 0.05 after Holm)."
    right = [names[name] for name in shown if found[name].spearman.value > 0]
    wrong = [names[name] for name in shown if found[name].spearman.value < 0]
    parts = [f"RL was predicted by {', '.join(right)}."] if right else []
    parts += [f"In the direction opposite to its arrow: {', '.join(wrong)}."] if wrong else []
    return " ".join(parts)


def _figure(names: Mapping[str, str], found: Mapping[str, Association]) -> Figure:
    """Spearman's correlation of every figure with its interval, the largest on top."""
    order = sorted(found, key=lambda name: found[name].spearman.value)
    values = [found[name].spearman for name in order]
    bars = [[one.value - one.low for one in values], [one.high - one.value for one in values]]

    def draw(canvas: Any) -> None:
        axis = canvas.subplots()
        axis.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        look: dict[str, Any] = {"fmt": "o", "color": COLOURS[0], "markersize": 5, "elinewidth": 1.2}
        mark = axis.errorbar([one.value for one in values], range(len(order)), xerr=bars, **look)
        mark[0].set_gid(f"{TIP}Spearman's correlation")
        axis.set_yticks(range(len(order)), [names[name] for name in order])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.grid(visible=False, axis="y")
        axis.set(xlim=(-1.05, 1.05), xlabel="Spearman's correlation with pass@1 after RL")

    svg = drawn(WIDTH, 0.9 + 0.24 * len(order), draw)
    caption = "Rank correlation of each figure before RL with the score after it, with 95% intervals."
    return Figure("predicted", "predicted.svg", svg, caption, ours=True)

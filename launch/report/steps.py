"""Scores over the steps of training: what was measured of the checkpoints before the last, beside the last itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.files import read_json
from launch.report.cells import Cells
from launch.report.figures import COLOURS, STYLE
from launch.report.lines import PHASES, Line, Member, Model
from launch.report.parts import Cell, Figure, Section, grid

COLUMNS = ("pass@1", "pass@k", "self-BLEU", "token entropy", "KL from base")
NOTE = "Of the target and of held-out chats, as in the other tables; bars are 95% intervals over problems."
Point = tuple[Line, str, int, tuple[Cell, ...]]  # line, phase, step and a cell for each of `COLUMNS`


def sections(cells: Cells, lines: Sequence[Line]) -> list[Section]:
    """The table and picture of the checkpoints; none where no stage published more than its last."""
    points = [point for line in lines for phase in PHASES for point in _points(cells, line, phase)]
    if not any(cell.text for *_, found in points for cell in found):
        return []
    rows = [(f"{line.name}, {PHASES[phase]} step {step}", found) for line, phase, step, found in points]
    return [Section("Over the steps", NOTE, (grid(COLUMNS, rows),), (_figure(points),))]


def _points(cells: Cells, line: Line, phase: str) -> list[Point]:
    """Every step of a phase of which some checkpoint was measured, the last one included; none if that is the only."""
    steps: dict[int, list[Member]] = {}
    for member in line.members:
        before = [(step, model) for (of, step), model in member.checkpoints.items() if of == phase]
        last = _last_step(cells, member, phase)
        if before and last is not None and phase in member.models:
            before.append((last, member.models[phase]))
        for step, model in before:
            steps.setdefault(step, []).append(_as_if_last(member, phase, model))
    found = []
    for step, members in sorted(steps.items()):
        at = Line(line.name, tuple(members))
        measured = (
            cells.of_target(at, phase, "pass@1"),
            cells.passk(at, phase),
            cells.of_target(at, phase, "self_bleu"),
            cells.of_held_out(at, phase, "entropy"),
            cells.of_held_out(at, phase, "kl_from_base"),
        )
        found.append((line, phase, step, measured))
    return found


def _as_if_last(member: Member, phase: str, model: Model) -> Member:
    return replace(member, models={**member.models, phase: model})


def _last_step(cells: Cells, member: Member, phase: str) -> int | None:
    stages = member.trained.get(phase, ())
    path = cells.source.file(stages[-1], "checkpoints.json") if stages else None
    return None if path is None else int(read_json(path)["final"])


def _figure(points: Sequence[Point]) -> Figure:
    """A panel for each phase and column that has values; a colour for each line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(line.name for line, *_ in points))
    panels: dict[tuple[str, str], dict[str, list[tuple[int, Cell]]]] = {}
    for line, phase, step, found in points:
        for column, cell in zip(COLUMNS, found, strict=True):
            if cell.value is not None:
                panels.setdefault((phase, column), {}).setdefault(line.name, []).append((step, cell))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows, columns, figsize=(2 + 3 * columns, 2.8 * rows), squeeze=False)
        shown: dict[str, Any] = {}
        for axis, ((phase, column), of_line) in zip(axes.flat, panels.items(), strict=False):
            for name, places in of_line.items():
                values = [cell.value or 0.0 for _, cell in places]
                below = [value - (cell.low or 0.0) for value, (_, cell) in zip(values, places, strict=True)]
                above = [(cell.high or 0.0) - value for value, (_, cell) in zip(values, places, strict=True)]
                colour = COLOURS[names.index(name) % len(COLOURS)]
                steps = [step for step, _ in places]
                drawn = axis.errorbar(steps, values, [below, above], color=colour, marker="o", markersize=3, capsize=2)
                shown.setdefault(name, drawn)
            axis.set(title=f"{column} after {PHASES[phase]}", xlabel="step")
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_axis_off()
        figure.tight_layout()
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        figure.legend(list(shown.values()), list(shown), fontsize=7, frameon=False, **place)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    svg = text.getvalue()
    return Figure("steps", "steps.svg", svg[svg.index("<svg") :], "Scores over the steps of SFT and of RL.")

"""Scores over the steps of training: what was measured of the checkpoints before the last, beside the last itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.files import read_json
from launch.report.cells import Cells
from launch.report.drawing import COLOURS, DASHES, GREY, SHAPES, TIP, WIDTH, bars, drawn
from launch.report.figures import ACROSS, legend, steps_along
from launch.report.lines import PHASES, Line, Member, Model
from launch.report.parts import Cell, Figure, Key, Section, grid

COLUMNS = ("pass@1", "pass@k", "self-BLEU", "token entropy", "KL from base")
NOTE = "Of the target and of held-out chats, as in the other tables; bars are 95% intervals over problems."
Point = tuple[Line, str, int, tuple[Cell, ...]]  # line, phase, step and a cell for each of `COLUMNS`


def sections(
    cells: Cells, lines: Sequence[Line], keys: Mapping[str, Key], training: Sequence[Figure] = ()
) -> list[Section]:
    """The curves of training, then the picture and table of the checkpoints; none where there is neither.

    The checkpoints are shown where a stage published more than its last.
    """
    points = [point for line in lines for phase in PHASES for point in _points(cells, line, phase)]
    if not any(cell.text for *_, found in points for cell in found):
        return [Section("Over the steps", figures=tuple(training))] if training else []
    rows = [(f"{line.name}, {PHASES[phase]} step {step}", found) for line, phase, step, found in points]
    return [Section("Over the steps", "", (grid(COLUMNS, rows),), (_figure(points, keys), *training), note=NOTE)]


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
        at = replace(line, members=tuple(members))
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


def _figure(points: Sequence[Point], keys: Mapping[str, Key]) -> Figure:
    """A panel for each phase and column that has values."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        for column, cell in zip(COLUMNS, point[3], strict=True):
            if cell.value is not None:
                title = f"{column} over {PHASES[point[1]]}"
                panels.setdefault(title, {}).setdefault(point[0].name, []).append((*point[:3], (cell,)))
    rows = -(-len(panels) // ACROSS)
    svg = drawn(WIDTH, 0.5 + 1.9 * rows, lambda canvas: _draw(canvas, rows, panels, keys))
    return Figure("steps", "steps.svg", svg, "Scores over the steps of training.", ours=True)


def _draw(canvas: Any, rows: int, panels: Mapping[str, Mapping[str, list[Point]]], keys: Mapping[str, Key]) -> None:
    axes = canvas.subplots(rows, ACROSS, squeeze=False)
    shown: dict[str, Any] = {}
    for axis, (title, of_line) in zip(axes.flat, panels.items(), strict=False):
        for name, places in of_line.items():
            found, own = [cells[0] for *_, cells in places], keys.get(name)
            look: dict[str, Any] = {"color": GREY, "markersize": 4, "linewidth": 1.1, "elinewidth": 0.8}
            if own is not None:
                look |= {"color": COLOURS[own.colour], "linestyle": DASHES[own.dash], "marker": SHAPES[own.shape]}
            steps, values = [step for _, _, step, _ in places], [cell.value or 0.0 for cell in found]
            mark = axis.errorbar(steps, values, bars(found), **look)
            mark[0].set_gid(f"{TIP}{name}")
            shown.setdefault(places[0][0].objective or name, mark)
        axis.set_title(title)
        steps_along(axis)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    legend(canvas, shown)

"""The one picture of the first screen: SFT score against RL score, or the scores alone where RL did not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.report.drawing import COLOURS, GREY, INK, PAPER, SHAPES, TIP, WIDTH, bars, drawn
from launch.report.lines import BASE, Line
from launch.report.parts import Cell, Figure, Key

Scores = Mapping[str, Cell]  # of a line, by the names of the main table's columns
AGAINST = (
    "Each line's pass@1 on {target} before RL and after it, with 95% intervals over problems. On the dotted diagonal "
    "RL changed nothing. Horizontal lines: {lines}."
)
ALONE = "pass@1 on {target} with 95% intervals over problems{lines}."


def picture(rows: Sequence[tuple[Line, Scores]], keys: Mapping[str, Key], target: str) -> Figure | None:
    """The picture; None where nothing is scored."""
    trained = [(line, row) for line, row in rows if line.name in keys]
    levels = _levels(rows)
    both = [(line, row) for line, row in trained if row["sft_pass1"].text and row["rl_pass1"].text]
    said = ", ".join(name for name, _, _ in levels)
    if both:
        svg = drawn(WIDTH, 4.6, lambda canvas: _against(canvas, both, keys, levels, target))
        return Figure("scores", "scores.svg", svg, AGAINST.format(target=target, lines=said or "none"), ours=True)
    scored = [(line, cell) for line, row in trained if (cell := row["sft_pass1"]).text]
    if not scored:
        return None
    svg = drawn(WIDTH, 1.2 + 0.22 * len(scored), lambda canvas: _alone(canvas, scored, keys, levels, target))
    lines = f"; vertical lines: {said}" if said else ""
    return Figure("scores", "scores.svg", svg, ALONE.format(target=target, lines=lines), ours=True)


def _levels(rows: Sequence[tuple[Line, Scores]]) -> list[tuple[str, Cell, str]]:
    """Name, score and kind of line of the base and of RL from it."""
    found = []
    for line, row in rows:
        if line.is_base and row["sft_pass1"].text:
            found.append((BASE, row["sft_pass1"], "--"))
        elif line.from_base and row["rl_pass1"].text:
            found.append((line.name, row["rl_pass1"], "-."))
    return found


def _against(
    canvas: Any,
    rows: Sequence[tuple[Line, Scores]],
    keys: Mapping[str, Key],
    levels: Sequence[tuple[str, Cell, str]],
    target: str,
) -> None:
    axis = canvas.subplots()
    xs, ys = ([row[name] for _, row in rows] for name in ("sft_pass1", "rl_pass1"))
    axis.axline((0, 0), slope=1, linestyle=":", color=GREY, linewidth=1.0, zorder=0)
    shown: dict[str, Any] = {}
    for name, cell, dash in levels:
        _level(axis.axhline, axis.axhspan, name, cell, dash)
    for (line, _), x, y in zip(rows, xs, ys, strict=True):
        mark = _mark(axis, keys[line.name], [x.value], [y.value], bars([x]), bars([y]))
        mark[0].set_gid(f"{TIP}{line.name}: {x.head or x.text} after SFT, {y.head or y.text} after RL")
        shown.setdefault(line.objective, mark)
    axis.set(xlabel=f"pass@1 on {target} after SFT", ylabel="pass@1 after RL")
    axis.set(xlim=_range(xs), ylim=_range([*ys, *(cell for _, cell, _ in levels)]))
    _named_levels(axis, levels)
    _legend(canvas, shown)


def _alone(
    canvas: Any,
    rows: Sequence[tuple[Line, Cell]],
    keys: Mapping[str, Key],
    levels: Sequence[tuple[str, Cell, str]],
    target: str,
) -> None:
    axis = canvas.subplots()
    for name, cell, dash in levels:
        _level(axis.axvline, axis.axvspan, name, cell, dash)
    for place, (line, cell) in enumerate(rows):
        mark = _mark(axis, keys[line.name], [cell.value], [-place], bars([cell]), None)
        mark[0].set_gid(f"{TIP}{line.name}: {cell.text}")
    axis.set_yticks([-place for place in range(len(rows))], [line.name for line, _ in rows])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(f"pass@1 on {target} after SFT")


def _range(cells: Sequence[Cell]) -> tuple[float, float]:
    """From the lowest bound to the highest, and a little more."""
    known = [one for cell in cells for one in (cell.low, cell.value, cell.high) if one is not None]
    room = 0.05 * max(max(known) - min(known), 0.02)
    return min(known) - room, max(known) + room


def _mark(axis: Any, key: Key, x: Any, y: Any, across: Any, up: Any) -> Any:
    colour = COLOURS[key.colour]
    look = {"markeredgecolor": PAPER, "markeredgewidth": 0.6, "markersize": 7, "elinewidth": 1.0, "capsize": 0}
    mark = axis.errorbar(x, y, xerr=across, yerr=up, fmt=SHAPES[key.shape], color=colour, zorder=3, **look)
    for part in mark[2]:
        part.set_alpha(0.55)
    return mark


def _level(line: Any, span: Any, name: str, cell: Cell, dash: str) -> None:
    drawn_line = line(cell.value, color=GREY, linestyle=dash, linewidth=1.1, zorder=1)
    drawn_line.set_gid(f"{TIP}{name}: {cell.text}")
    if cell.low is not None and cell.high is not None:
        span(cell.low, cell.high, color=GREY, alpha=0.09, linewidth=0, zorder=0)


def _named_levels(axis: Any, levels: Sequence[tuple[str, Cell, str]]) -> None:
    """The names of horizontal lines at their right ends, the higher one above its line and the lower one below."""
    order = sorted(levels, key=lambda one: -(one[1].value or 0.0))
    for place, (name, cell, _) in enumerate(order):
        where = "bottom" if place == 0 else "top"
        offset = {"xytext": (-2, 2 if place == 0 else -2), "textcoords": "offset points"}
        at = (1.0, cell.value)
        axis.annotate(
            name, at, xycoords=("axes fraction", "data"), ha="right", va=where, fontsize=8, color=GREY, **offset
        )


def _legend(canvas: Any, shown: Mapping[str, Any]) -> None:
    """Below the picture, one entry for each objective."""
    columns = min(6, len(shown))
    canvas.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=columns, handletextpad=0.2)

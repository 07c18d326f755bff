"""The training curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.report.drawing import COLOURS, DASHES, GREY, TIP, WIDTH, drawn
from launch.report.lines import Line
from launch.report.parts import Figure, Key
from launch.report.source import Source

# Phase, metric and title of what may stand on one axis whatever the objective is; an objective's own loss may not.
SHARED = (
    ("sft", "cross_entropy", "SFT: cross-entropy"),
    ("sft", "val_loss", "SFT: cross-entropy, held-out"),
    ("sft", "entropy", "SFT: token entropy"),
    ("rl", "reward", "RL: reward"),
    ("rl", "validation_pass_rate", "RL: pass rate, held-out prompts"),
    ("rl", "entropy", "RL: token entropy"),
)
LOSS = "loss"
CROSS_ENTROPY = ("sft",)  # objectives whose loss is the cross-entropy itself
ACROSS = 3  # panels in a row
CAPTION = "Training, a curve for each seed, in the colours of the tables."
LOSSES = "The loss that each objective minimizes: different quantities, which share no axis."


@dataclass(frozen=True)
class Curve:
    """One stage's values of a metric over the steps, and the line that it belongs to."""

    line: Line
    steps: list[float]
    values: list[float]


def training_curves(lines: Sequence[Line], keys: Mapping[str, Key], source: Source) -> list[Figure]:
    """A picture of what all lines share, a panel for each metric that some curve.jsonl holds, and one of the losses, a
    panel for each objective; neither where there is nothing to draw."""
    shared = {title: _curves(lines, source, phase, metric) for phase, metric, title in SHARED}
    losses: dict[str, list[Curve]] = defaultdict(list)
    for curve in _curves(lines, source, "sft", LOSS):
        if curve.line.objective not in CROSS_ENTROPY:
            losses[curve.line.objective].append(curve)
    if not shared["SFT: cross-entropy"]:  # where a run logs none, a loss that is one stands for it
        own = [one for one in _curves(lines, source, "sft", LOSS) if one.line.objective in CROSS_ENTROPY]
        shared["SFT: cross-entropy"] = own
    of_losses = {f"{name}: loss": curves for name, curves in losses.items()}
    found = (("training", shared, CAPTION), ("losses", of_losses, LOSSES))
    return [_figure(name, panels, keys, caption) for name, panels, caption in found if any(panels.values())]


def _figure(name: str, panels: Mapping[str, Sequence[Curve]], keys: Mapping[str, Key], caption: str) -> Figure:
    kept = {title: curves for title, curves in panels.items() if curves}
    rows = -(-len(kept) // ACROSS)
    svg = drawn(WIDTH, 0.5 + 1.9 * rows, lambda canvas: _draw(canvas, rows, kept, keys))
    return Figure(name, f"{name}.svg", svg, caption, ours=True)


def _draw(canvas: Any, rows: int, panels: Mapping[str, Sequence[Curve]], keys: Mapping[str, Key]) -> None:
    axes = canvas.subplots(rows, ACROSS, squeeze=False)
    shown: dict[str, Any] = {}
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for curve in curves:
            key = keys.get(curve.line.name)
            look = {"color": COLOURS[key.colour], "linestyle": DASHES[key.dash]} if key else {"color": GREY}
            marker = {"marker": "."} if len(curve.steps) < ACROSS else {}
            (line,) = axis.plot(curve.steps, curve.values, linewidth=1.1, **look, **marker)
            line.set_gid(f"{TIP}{curve.line.name}")
            shown.setdefault(curve.line.objective or curve.line.name, line)
        axis.set_title(title)
        steps_along(axis)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    if any(len({curve.line.objective for curve in curves}) > 1 for curves in panels.values()):
        legend(canvas, shown)


def steps_along(axis: Any) -> None:
    """Steps, which are whole numbers, along a panel."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def legend(canvas: Any, shown: Mapping[str, Any]) -> None:
    """Below the panels, an entry for each objective."""
    canvas.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=min(6, len(shown)))


def _curves(lines: Sequence[Line], source: Source, phase: str, metric: str) -> list[Curve]:
    found: list[Curve] = []
    for line in lines:
        if line.is_base:
            continue
        for stage in (stage for member in line.members for stage in member.trained.get(phase, ())):
            rows = [row for row in source.curve(stage) if row.get(metric) is not None]
            if rows:
                found.append(Curve(line, [row["step"] for row in rows], [row[metric] for row in rows]))
    return found

"""The training curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from launch.report.lines import Line
from launch.report.parts import Figure
from launch.report.source import Source

PANELS = (("sft", "loss", "SFT loss"), ("sft", "entropy", "SFT token entropy"), ("rl", "reward", "RL reward"))
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sft-then-rl",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Curve = tuple[str, str, list[float], list[float]]  # name of the line, colour, steps, values


def training_curves(lines: Sequence[Line], source: Source) -> Figure | None:
    """A panel for each metric that some stage's curve.jsonl holds, all seeds of a line in one colour; None without."""
    panels = [(title, curves) for phase, metric, title in PANELS if (curves := _curves(lines, source, phase, metric))]
    if not panels:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, row = pyplot.subplots(1, len(panels), figsize=(2 + 3 * len(panels), 3.2), squeeze=False)
        shown: dict[str, Any] = {}
        for axis, (title, curves) in zip(row[0], panels, strict=True):
            for name, colour, steps, values in curves:
                (drawn,) = axis.plot(steps, values, color=colour, linewidth=1)
                shown.setdefault(name, drawn)
            axis.set(title=title, xlabel="step")
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        row[0][-1].legend(list(shown.values()), list(shown), fontsize=7, frameon=False, **place)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    svg = text.getvalue()
    return Figure("training", "training.svg", svg[svg.index("<svg") :])


def _curves(lines: Sequence[Line], source: Source, phase: str, metric: str) -> list[Curve]:
    found: list[Curve] = []
    for index, line in enumerate(line for line in lines if not line.is_base):
        for stage in (stage for member in line.members for stage in member.trained.get(phase, ())):
            rows = [row for row in source.curve(stage) if metric in row]
            if rows:
                colour = COLOURS[index % len(COLOURS)]
                found.append((line.name, colour, [row["step"] for row in rows], [row[metric] for row in rows]))
    return found

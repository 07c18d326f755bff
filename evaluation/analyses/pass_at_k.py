"""pass@k by k: how much of a benchmark is within reach of several samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses._lines import Line, lines, over_seeds
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table

COLUMNS = ("line", "model", "k", "pass@k", "low", "high", "seeds")
NOTE = "Means over the seeds of the values and of the bounds of their 95% intervals."


class Settings(BaseModel):
    """benchmarks: those to show; empty: all that are given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: tuple[str, ...] = ()


class PassAtK(Analysis):
    """Curves of every line and model, one figure and table for each benchmark."""

    name = "pass_at_k"
    measured = ("benchmark",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        shown = settings.benchmarks or tuple(dict.fromkeys(given.name for given in inputs))
        tables, figures, best = {}, {}, []
        for benchmark in shown:
            curves = [
                (line, found)
                for line in lines(given for given in inputs if given.name == benchmark)
                if (found := _curve(line))
            ]
            if not curves:
                if settings.benchmarks:
                    raise ConfigError(f"pass_at_k: no benchmark {benchmark!r} among what was measured")
                continue
            rows = [
                [line.title, line.model, k, one["value"], one["low"], one["high"], len(line.measured)]
                for line, found in curves
                for k, one in found.items()
            ]
            tables[f"pass_at_k_{benchmark}"] = Table(f"pass@k, {benchmark}", COLUMNS, rows, NOTE)
            caption = f"pass@k on {benchmark} with 95% intervals; dashed: before reinforcement learning."
            figures[f"pass_at_k_{benchmark}"] = Figure(partial(_draw, curves, benchmark), caption)
            best.append(_sentence(curves, benchmark))
        if not tables:
            raise ConfigError("pass_at_k: no benchmark among what was measured; name one in eval.benchmarks")
        return Findings(tables, figures, " ".join(best))


def _curve(line: Line) -> dict[int, dict[str, float]]:
    names = {name for one in line.measured for name in one["metrics"] if name.startswith("pass@")}
    # A harness task may call a metric of its own "pass@1,create_test".
    ks = sorted(int(k) for name in names if (k := name.removeprefix("pass@")).isdecimal())
    return {
        k: over_seeds([one["metrics"][f"pass@{k}"] for one in line.measured if f"pass@{k}" in one["metrics"]])
        for k in ks
    }


def _sentence(curves: list[tuple[Line, dict[int, dict[str, float]]]], benchmark: str) -> str:
    k = max(k for _, found in curves for k in found)
    line, found = max(((line, found) for line, found in curves if k in found), key=lambda pair: pair[1][k]["value"])
    one = found[k]
    return (
        f"pass@{k} on {benchmark} is highest for {line.label}: "
        f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})."
    )


def _draw(curves: list[tuple[Line, dict[int, dict[str, float]]]], benchmark: str, figure: Any) -> None:
    from matplotlib.ticker import StrMethodFormatter

    axis = figure.subplots()
    for line, found in curves:
        dash = "--" if line.model in ("base", "sft") else "-"
        _style.band(axis, list(found), found.values(), dash, color=line.colour, label=line.label)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set(xlabel="k", ylabel=f"pass@k, {benchmark}, 95% intervals", ylim=(0, 1.02))
    _style.legend(axis)


pass_at_k = PassAtK()

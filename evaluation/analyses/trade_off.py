"""What a sweep trades: target against general ability, pass@1 against pass@k, SFT's score against RL's.

TALR's figures 1, 2, 4 and 6, LP-SFT's figure 3 and PriFT's table 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses._lines import BASE, over_seeds
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.artifact import read_measured

Estimate = dict[str, float]
MARKS = {"base": "s", "sft": "o", "rl": "^"}


class Settings(BaseModel):
    """target: the benchmark of the SFT domain; "": the recipe's `eval.target`. general: those of general ability;
    empty: all others. k: of pass@k; 0: the largest that all models have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = ""
    general: tuple[str, ...] = ()
    k: int = 0


@dataclass(frozen=True)
class Point:
    """A model of a line, averaged over seeds. scores: by benchmark or task. many: pass@k of the target, if it has k."""

    line: str
    model: str
    target: Estimate
    general: Estimate | None
    many: Mapping[int, Estimate]
    seeds: int

    @property
    def label(self) -> str:
        return "base model" if self.model == BASE else f"{self.line} {self.model.upper()}"


class TradeOff(Analysis):
    """Tables and pictures of all models of a sweep, with the Pareto fronts."""

    name = "trade_off"
    measured = ("benchmark", "task")
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        points = _points(inputs, settings)
        tables, figures, said = {}, {}, []
        pairs = {
            point.label: (point.general["value"], point.target["value"])
            for point in points
            if point.general is not None
        }
        if pairs:
            front = pareto(pairs)
            tables["trade_off"] = _general_table(points, front)
            figures["trade_off"] = Figure(
                partial(_draw_general, points, front, settings),
                f"Score of {settings.target} against the mean of the other benchmarks; the line joins what no model "
                "beats in both, bars are 95% intervals.",
            )
            said.append(f"Of {len(pairs)} models {len(front)} are on the Pareto front: {', '.join(front)}.")
        k = _common_k(points, settings)
        if k is not None:
            tables["trade_off_pass_at_k"] = _pass_table(points, k)
            figures["trade_off_pass_at_k"] = Figure(
                partial(_draw_pass, points, k, settings),
                f"pass@1 against pass@{k} of {settings.target}, 95% intervals.",
            )
        both = _after_rl(points)
        if both:
            tables["trade_off_rl"] = _rl_table(both, k)
            figures["trade_off_rl"] = Figure(
                partial(_draw_rl, both, settings, _lines(points)),
                f"{settings.target} after SFT and after RL from it, 95% intervals; on the grey line RL gains nothing.",
            )
            best, gained = max(both, key=lambda pair: pair[1].target["value"])
            said.append(
                f"After RL {gained.line} is highest, {gained.target['value']:.3f} from {best.target['value']:.3f} "
                "after SFT."
            )
        if not tables:
            raise ConfigError(
                "trade_off: one benchmark with pass@1 alone shows no trade-off; measure another benchmark or task, "
                "more samples, or RL"
            )
        return Findings(tables, figures, " ".join(said) or _best(points, settings))


def pareto(pairs: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other is at least as high as in both and higher in one, by falling first value."""
    front, best = [], float("-inf")
    ordered = sorted(pairs.items(), key=lambda item: (-item[1][0], -item[1][1]))
    for name, (first, second) in ordered:
        same = front and pairs[front[-1]] == (first, second)
        if second > best or same:
            front.append(name)
            best = max(best, second)
    return front


def _headline(measured: Mapping[str, Any]) -> Estimate:
    """pass@1, or balanced accuracy where the benchmark has it; of a task its first metric."""
    metrics = measured["metrics"]
    name = next((one for one in ("balanced_accuracy", "pass@1") if one in metrics), next(iter(metrics)))
    return {key: metrics[name][key] for key in ("value", "low", "high")}


def _points(inputs: Sequence[Given], settings: Settings) -> list[Point]:
    groups: dict[tuple[str, str], dict[str, dict[Any, dict[str, Any]]]] = {}
    for given in inputs:
        base = given.model == BASE
        key = ("", BASE) if base else (given.line, given.model)
        there = groups.setdefault(key, {}).setdefault(given.name, {})
        there.setdefault(given.path.resolve(), read_measured(given.path))
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    if settings.target not in names:
        raise ConfigError(
            f"trade_off: settings.target={settings.target!r}: was not measured; there are {', '.join(names) or 'none'}"
        )
    others = tuple(name for name in names if name != settings.target)
    missing = [name for name in settings.general if name not in others]
    if missing:
        allowed = ", ".join(others) or "none"
        raise ConfigError(
            f"trade_off: settings.general={missing[0]}: allowed: measured ones beside the target: {allowed}"
        )
    general = settings.general or others
    points = []
    for (line, model), found in groups.items():
        if settings.target not in found:
            continue
        scores = {name: over_seeds([_headline(one) for one in same.values()]) for name, same in found.items()}
        whole = general and all(name in scores for name in general)
        runs = list(found[settings.target].values())
        many = {
            int(name.removeprefix("pass@")): over_seeds([one["metrics"][name] for one in runs])
            for name in runs[0]["metrics"]
            if name.removeprefix("pass@").isdecimal() and all(name in one["metrics"] for one in runs)
        }
        mean = over_seeds([scores[name] for name in general]) if whole else None
        points.append(Point(line, model, scores[settings.target], mean, many, len(runs)))
    return points


def _common_k(points: Sequence[Point], settings: Settings) -> int | None:
    shared = set.intersection(*(set(point.many) for point in points)) - {1}
    if settings.k:
        if settings.k not in shared:
            allowed = ", ".join(map(str, sorted(shared))) or "none"
            raise ConfigError(f"trade_off: settings.k={settings.k}: not measured of all models; allowed: {allowed}")
        return settings.k
    return max(shared) if shared else None


def _after_rl(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Each line's SFT and RL models."""
    found = {(point.line, point.model): point for point in points}
    return [
        (found[point.line, "sft"], point) for point in points if point.model == "rl" and (point.line, "sft") in found
    ]


def _cells(one: Estimate) -> list[float]:
    return [one["value"], one["low"], one["high"]]


def _general_table(points: Sequence[Point], front: Sequence[str]) -> Table:
    rows = [
        [point.label, *_cells(point.target), *_cells(point.general), point.label in front, point.seeds]
        for point in points
        if point.general is not None
    ]
    columns = ("model", "target", "low", "high", "general", "general low", "general high", "Pareto", "seeds")
    note = (
        "Means over seeds of the values and of the bounds of their 95% intervals; general is the mean over benchmarks, "
        "whose bounds are averaged too and so are no narrower than its interval."
    )
    return Table("Target against general ability", columns, rows, note)


def _pass_table(points: Sequence[Point], k: int) -> Table:
    rows = [[point.label, *_cells(point.many[1]), *_cells(point.many[k]), point.seeds] for point in points]
    columns = ("model", "pass@1", "low", "high", f"pass@{k}", f"pass@{k} low", f"pass@{k} high", "seeds")
    return Table("pass@1 against pass@k", columns, rows, "Means over seeds of the values and of the bounds.")


def _rl_table(both: Sequence[tuple[Point, Point]], k: int | None) -> Table:
    rows = []
    for before, after in both:
        row: list[Any] = [before.line]
        for old, new in [(before.target, after.target), *([(before.many[k], after.many[k])] if k else [])]:
            row += [old["value"], new["value"], new["value"] - old["value"]]
        rows.append(row)
    columns = ["line", "SFT", "RL", "gain", *([f"SFT pass@{k}", f"RL pass@{k}", f"gain of pass@{k}"] if k else [])]
    return Table("Score after SFT and after RL", columns, rows, "The target benchmark, means over seeds.")


def _best(points: Sequence[Point], settings: Settings) -> str:
    best = max(points, key=lambda point: point.target["value"])
    return f"{best.label} is highest on {settings.target}: {best.target['value']:.3f}."


def _lines(points: Sequence[Point]) -> list[str]:
    """Names of the lines, in the order of their colours."""
    return list(dict.fromkeys(point.line for point in points if point.model != BASE))


def _scatter(
    axis: Any, points: Sequence[Point], xs: Sequence[Estimate], ys: Sequence[Estimate], lines: Sequence[str]
) -> None:
    """Points with their intervals, a colour for each of `lines`, a mark for each phase; checkpoints on the way are
    small and carry their step."""
    for point, x, y in zip(points, xs, ys, strict=True):
        colour = _style.GREY if point.model == BASE else _style.colour(lines.index(point.line))
        spread = [[[one["value"] - one["low"]], [one["high"] - one["value"]]] for one in (x, y)]
        phase, _, step = point.model.partition("@")
        filled = phase != "rl"
        if step:
            axis.annotate(step, (x["value"], y["value"]), (4, 4), textcoords="offset points", fontsize=7, color=colour)
        axis.errorbar(
            x["value"],
            y["value"],
            xerr=spread[0],
            yerr=spread[1],
            fmt=MARKS.get(phase, "D"),
            color=colour,
            markerfacecolor=colour if filled else "white",
            elinewidth=0.6,
            markersize=4 if step else 7,
            label=point.label,
        )


def _draw_general(points: Sequence[Point], front: Sequence[str], settings: Settings, figure: Any) -> None:
    axis = figure.subplots()
    there = [point for point in points if point.general is not None]
    by_label = {point.label: point for point in there}
    on = [by_label[name] for name in front]
    # The steps bound what the front dominates.
    steps = [(point.general["value"], point.target["value"]) for point in on if point.general is not None]
    axis.step(*zip(*steps, strict=True), where="post", color="black", linewidth=0.8, linestyle="--", zorder=0)
    _scatter(
        axis,
        there,
        [point.general for point in there if point.general],
        [point.target for point in there],
        _lines(points),
    )
    axis.set(xlabel="general: mean of the other benchmarks", ylabel=f"target: {settings.target}")
    _style.legend(axis)


def _draw_pass(points: Sequence[Point], k: int, settings: Settings, figure: Any) -> None:
    axis = figure.subplots()
    _scatter(axis, points, [point.many[1] for point in points], [point.many[k] for point in points], _lines(points))
    axis.set(xlabel=f"pass@1, {settings.target}", ylabel=f"pass@{k}, {settings.target}")
    _style.legend(axis)


def _draw_rl(both: Sequence[tuple[Point, Point]], settings: Settings, lines: Sequence[str], figure: Any) -> None:
    axis = figure.subplots()
    _scatter(
        axis,
        [after for _, after in both],
        [before.target for before, _ in both],
        [after.target for _, after in both],
        lines,
    )
    ends = [value for pair in both for point in pair for value in (point.target["low"], point.target["high"])]
    axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color=_style.GREY, linewidth=0.8, zorder=0)
    axis.set(xlabel=f"{settings.target} after SFT", ylabel=f"{settings.target} after RL")
    _style.legend(axis)


trade_off = TradeOff()

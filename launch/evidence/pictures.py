"""Pictures of a study's page, from its runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.evidence.claims import MARGIN, Result
from launch.evidence.differences import Difference, difference
from launch.evidence.runs import Run, arms, of_arm
from launch.report.drawing import COLOURS, GREY, INK, WIDTH, drawn
from launch.report.lines import BASE, FROM_BASE

FIGURE = "pass@1"
VERDICTS = {"holds": (COLOURS[0], "o"), "does not hold": (COLOURS[1], "s"), "cannot tell": (GREY, "D")}


def scores_picture(runs: Sequence[Run], against: str) -> str:
    """SVG: pass@1 of every arm after SFT and after RL, and beside it how far it ends from `against`.

    Arms in the order of pass@1 after RL; those without RL have no row.
    """
    after = {arm: of_arm(runs, arm, "rl") for arm in arms(runs)}
    means = {arm: _mean(found.values()) for arm, found in after.items() if found}
    order = sorted((arm for arm in means if arm != FROM_BASE), key=means.__getitem__)
    bases = [run.figures[FIGURE] for run in runs if run.arm == BASE]

    def draw(canvas: Any) -> None:
        scores, differences = canvas.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
        for place, arm in enumerate(order):
            before = of_arm(runs, arm, "sft")
            if before:
                scores.plot([_mean(before.values()), means[arm]], [place] * 2, color=GREY, linewidth=0.8, zorder=1)
                scores.plot(_mean(before.values()), place, "o", color=COLOURS[0], markerfacecolor="white", zorder=2)
            scores.plot(means[arm], place, "o", color=COLOURS[0], zorder=3)
        for value in bases:
            _level(scores, value, "base", ":")
        if FROM_BASE in means:
            _level(scores, means[FROM_BASE], FROM_BASE, "--")
        differences.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, linewidth=0)
        differences.axvline(0, color=GREY, linewidth=0.8)
        for place, arm in enumerate(order):
            if arm != against and len(after[arm].keys() & after.get(against, {}).keys()) > 1:
                found = difference(runs, arm, against, "rl", FIGURE)
                sure = found.low > 0 or found.high < 0
                _interval(differences, place, found, COLOURS[1] if sure else GREY, "o")
        scores.set_yticks(range(len(order)), order)
        scores.set_ylim(-0.6, len(order) - 0.4)
        scores.tick_params(axis="y", labelcolor=INK)
        scores.set(xlabel=f"{FIGURE} after SFT (hollow) and after RL (full)")
        differences.set(xlabel=f"{FIGURE} after RL, less {against}'s")
        for axis in (scores, differences):
            axis.grid(visible=False, axis="y")

    return drawn(WIDTH, 1.0 + 0.24 * len(order), draw)


def claims_picture(results: Sequence[Result]) -> str:
    """SVG: the difference of every claim with its interval, marked by the verdict, in the claims' order; of self-BLEU
    none, which is on another scale."""

    def draw(canvas: Any) -> None:
        axis = canvas.subplots()
        axis.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, linewidth=0)
        axis.axvline(0, color=GREY, linewidth=0.8)
        shown: dict[str, Any] = {}
        for place, one in enumerate(reversed(_drawable(results))):
            colour, shape = VERDICTS[one.verdict]
            mark = _interval(axis, place, one.difference, colour, shape)
            shown.setdefault(one.verdict, mark)
        names = [f"{one.claim.name} ({one.claim.direction})" for one in reversed(_drawable(results))]
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.tick_params(axis="y", labelcolor=INK)
        axis.grid(visible=False, axis="y")
        canvas.supxlabel("difference with its 95% interval (of self-BLEU, another scale, in the table)", fontsize=9)
        canvas.legend([shown[one] for one in VERDICTS if one in shown], [one for one in VERDICTS if one in shown],
                      loc="outside upper right", ncols=3)  # fmt: skip

    return drawn(WIDTH, 1.2 + 0.24 * len(_drawable(results)), draw)


def _drawable(results: Sequence[Result]) -> list[Result]:
    """Those in pass@k and the like: a difference of self-BLEU is a hundred times as large."""
    return [one for one in results if one.claim.figure != "self_bleu"]


def _mean(runs: Any) -> float:
    values = [run.figures[FIGURE] for run in runs]
    return sum(values) / len(values)


def _level(axis: Any, value: float, name: str, dash: str) -> None:
    axis.axvline(value, color=GREY, linestyle=dash, linewidth=1.0, zorder=0)
    axis.annotate(
        name, (value, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=GREY, fontsize=8
    )


def _interval(axis: Any, place: int, found: Difference, colour: str, shape: str) -> Any:
    sides = [[found.value - found.low], [found.high - found.value]]
    return axis.errorbar([found.value], [place], xerr=sides, fmt=shape, color=colour, markersize=5, elinewidth=1.2)

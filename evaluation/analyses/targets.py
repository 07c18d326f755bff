"""What a loss drives the student to: the induced target Q = p - dL/dz by label probability (TARGET-SFT, 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table

SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)  # p_y of the table
OTHER, DOUBTED = 1, 2  # ids: the student's favourite after the label, and the one that the teacher likes
SEEN = 0.001  # of a panel's height: what a drawn line may miss a value by
LINES = ((0, "label", "-"), (OTHER, "likeliest other", "--"), (DOUBTED, "teacher's other", ":"))


class Settings(BaseModel):
    """objectives: names, dotted paths of one's own, or {name: ..., and settings}; empty: all. points: values of p_y."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: tuple[str | dict[str, Any], ...] = ()
    points: int = Field(97, ge=9)


class Targets(Analysis):
    """Curves of Q and of the gradient for the label and two other ids, and TARGET-SFT's table 5 made from the code."""

    name = "targets"
    needs = ()
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        import sft_objectives
        from evaluation.analyses._induced import Induced, induced

        p_label = np.linspace(0.005, 0.995, settings.points)
        asked = settings.objectives or tuple(sft_objectives.names())
        found: dict[str, Induced] = {}
        for place, entry in enumerate(asked):
            own = {"name": entry} if isinstance(entry, str) else dict(entry)
            if "name" not in own:
                raise ConfigError(f"targets: settings.objectives.{place}: no name; give {{name: ..., and settings}}")
            title = str(own.pop("name"))
            found[_title(title, own)] = induced(title, own, p_label)
            beat(place + 1, len(asked))
        figures = {
            "targets": Figure(
                partial(_draw, found, p_label),
                "Induced target Q (left) and gradient dL/dz (right) by the label's probability, for the label, the "
                "student's likeliest other id and the one that the teacher likes; thin: p itself.",
            )
        }
        tables = {"targets": _table(found, p_label), "table_5": _table_5()}
        outside = [name for name, one in found.items() if _leaves(one)]
        sentence = (
            f"Of {len(found)} objectives {len(outside)} have an induced target that leaves [0, 1] somewhere"
            f"{': ' + ', '.join(outside) if outside else ''}."
        )
        return Findings(tables, figures, sentence, {"targets": _data(found, p_label)})


def _title(name: str, settings: Mapping[str, Any]) -> str:
    return " ".join([name.rpartition(":")[2] or name, *(f"{key}={value}" for key, value in settings.items())])


def _leaves(one: Any) -> bool:
    return bool(one.target.min() < -1e-9 or one.target.max() > 1 + 1e-9)


def _table(found: Mapping[str, Any], p_label: np.ndarray) -> Table:
    places = [int(np.abs(p_label - p).argmin()) for p in SHOWN]
    rows = [
        [name, *(float(one.target[at, 0]) for at in places), *(float(one.gradient[at, 0]) for at in places)]
        for name, one in found.items()
    ]
    columns = (
        "objective",
        *(f"Q of the label at {p_label[at]:.2f}" for at in places),
        *(f"gradient at {p_label[at]:.2f}" for at in places),
    )
    note = (
        "Q = p - dL/dz by autograd in float64; Q sums to 1 and need not be a distribution. The references are fixed, "
        "and the values of p together are the global batch: a median or a quantile over a batch is over them."
    )
    return Table("Induced targets", columns, rows, note)


def _table_5() -> Table:
    from evaluation.analyses._unified import DATA_LEVEL, ONES, ROWS, measured

    at = int(np.abs(ONES - 0.25).argmin())
    rows = []
    for row in ROWS:
        one = measured(row)
        same = "" if one.error is None else one.error < 1e-9 and one.left < 1e-9
        settings = ", ".join(f"{key}={value}" for key, value in row.settings.items())
        rows.append(
            [row.title, row.category, f"{row.objective} {settings}".strip(), row.formula, float(one.gamma[at]),
             one.error, row.residual_name, one.left, same]
        )  # fmt: skip
    columns = (
        "variant", "category", "objective here", "the paper's gamma", f"gamma measured at p = {ONES[at]:.2f}",
        "largest error of gamma", "the paper's residual", "gradient left over", "as the paper says",
    )  # fmt: skip
    note = (
        "TARGET-SFT table 5 from the code: each gradient is written as a (p - e_y) + b (p - R) with the paper's "
        f"residual R, and gamma is a / (a + b) (a where R is the student). {', '.join(DATA_LEVEL)} change the data and "
        "no loss; for proximal SFT the paper names no formula, and here gamma is the ratio p / p_old until it is "
        "clipped. The sum a + b is a scale of the learning rate, which the paper leaves out as well."
    )
    return Table("SFT variants as targets", columns, rows, note)


def _data(found: Mapping[str, Any], p_label: np.ndarray) -> Any:
    import pyarrow as pa

    parts = []
    for name, one in found.items():
        n, size = one.target.shape
        parts.append(
            pa.table(
                {
                    "objective": pa.array([name] * (n * size), pa.string()),
                    "p_label": np.repeat(p_label, size),
                    "id": np.tile(np.arange(size), n),
                    "p": one.p.reshape(-1),
                    "q": one.target.reshape(-1),
                    "gradient": one.gradient.reshape(-1),
                }
            )
        )
    return pa.concat_tables(parts)


def corners(x: np.ndarray, y: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices, rising, of the points of (n,) x and y between which straight lines miss no y by more than `tolerance`:
    of every stretch its ends, and the point furthest from their line, again and again."""
    kept, stretches = {0, len(x) - 1}, [(0, len(x) - 1)]
    while stretches:
        first, last = stretches.pop()
        off = np.abs(y[first : last + 1] - np.interp(x[first : last + 1], x[[first, last]], y[[first, last]]))
        at = first + int(off.argmax())
        if off.max() > tolerance:
            kept.add(at)
            stretches += [(first, at), (at, last)]
    return np.array(sorted(kept))


def _draw(found: Mapping[str, Any], p_label: np.ndarray, figure: Any) -> None:
    across = 2 if len(found) > 1 else 1
    down = -(-len(found) // across)
    figure.set_size_inches(3.5 * across, 1.25 * down + 0.5)
    axes = figure.subplots(down, 2 * across, sharex=True, squeeze=False).reshape(-1, 2)
    for (left, right), (name, one) in zip(axes, found.items(), strict=False):
        for axis, values, low, high in ((left, one.target, -0.5, 1.5), (right, one.gradient, -1.5, 1.5)):
            shown = values[:, [at for at, _, _ in LINES]]
            # What explodes is cut; what stays small fills the panel.
            bottom, top = max(low, shown.min() - 0.08), min(high, max(shown.max() + 0.08, 0.15))
            for place, (at, _, dash) in enumerate(LINES):
                kept = corners(p_label, values[:, at], (top - bottom) * SEEN)
                axis.plot(p_label[kept], values[kept, at], dash, color=_style.COLOURS[place], linewidth=1.3)
            axis.set_ylim(bottom, top)
            axis.tick_params(labelsize=6.5)
        for at in (0, OTHER):
            kept = corners(p_label, one.p[:, at], SEEN)
            left.plot(p_label[kept], one.p[kept, at], color=_style.GREY, linewidth=0.5)
        right.axhline(0, color=_style.GREY, linewidth=0.5)
        left.set_title(f"{name}: Q", fontsize=8, loc="left", pad=2)
        right.set_title("dL/dz", fontsize=8, loc="left", pad=2)
    for left, right in axes[len(found) :]:
        left.set_axis_off()
        right.set_axis_off()
    handles = [axes[0][0].lines[place] for place in range(len(LINES))]
    figure.legend(handles, [label for _, label, _ in LINES], loc="upper center", ncols=3, fontsize=8, frameon=False)
    figure.supxlabel("probability of the label", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_size_inches()[1]), h_pad=0.4, w_pad=0.4)


targets = Targets()

"""Where a model's distribution leaves room to explore, and what SED-SFT's threshold selects (SED-SFT, figures 2, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from evaluation.analyses import _style, _text
from evaluation.analyses._counts import Quantiles
from evaluation.analyses._models import Model, colours, models, shortened
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.token_table import TOP, batches, rows_of, texts

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Settings(BaseModel):
    """top_k: whose cumulative mass is counted. fractions: SED-SFT's r. chat: whose tokens are drawn, at most `tokens`
    of them. selected: the (r, k) whose selection is marked in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: tuple[int, ...] = Field((1, 2, 3, 10), min_length=1)
    fractions: tuple[float, ...] = Field((0.2, 0.5, 0.7, 0.8), min_length=1)
    chat: int = Field(0, ge=0)
    tokens: int = Field(400, ge=1, le=2000)
    selected: tuple[float, int] = (0.7, 2)


@dataclass
class Masses:
    """What a model's k most probable ids leave to all others, by k, and how many tokens thresholds select.

    What is left is counted, because most of the mass lies near 1, where floats are coarse.
    """

    model: Model
    left: dict[int, Quantiles]
    below: dict[tuple[float, int], int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return next(iter(self.left.values())).total

    def mass(self, k: int, shares: Sequence[float]) -> list[float]:
        """Quantiles of the mass of the k most probable ids."""
        return [1 - one for one in self.left[k].at([1 - share for share in shares])]


class Exploration(Analysis):
    """Cumulative top-k mass of every model, shares selected by (r, k), and a text coloured by label probability."""

    name = "exploration"
    needs = ("generate",)
    measured = ("held_out",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        wanted = tuple(dict.fromkeys((*settings.top_k, settings.selected[1])))
        wrong = [k for k in wanted if not 1 <= k <= TOP]
        if wrong:
            raise ConfigError(f"{self.name}: settings.top_k={wrong[0]}: allowed: 1 to {TOP}, the ids that are kept")
        fractions = tuple(dict.fromkeys((*settings.fractions, settings.selected[0])))
        wrong = [one for one in fractions if not 0 < one < 1]
        if wrong:
            raise ConfigError(f"{self.name}: settings.fractions={wrong[0]}: allowed: above 0 and below 1")
        there = models(self.name, inputs)
        found = [_counted(model, wanted) for model in there]
        first = found[0]
        thresholds = {
            # SED-SFT: the (1 - r)-quantile of the initial model's top-k mass, whose equals are not below it
            (r, k): 1 - first.left[k].above(r)
            for k in wanted
            for r in fractions
        }
        for one in found:
            _select(one, thresholds)
        shown = _chat(first.model, settings)
        marked = shown["masses"] < thresholds[settings.selected]
        figures = {
            "exploration_mass": Figure(
                partial(_draw_masses, found, settings.top_k),
                "Probability of the k most probable ids together: box from 25% to 75%, line at the median, whiskers at "
                "5% and 95% of held-out tokens.",
            ),
            "exploration_text": Figure(
                partial(_draw_text, shown, marked, settings),
                f"Label probability under {first.model.label}; boxed: selected by r = {settings.selected[0]:g}, "
                f"k = {settings.selected[1]}.",
            ),
        }
        tables = {"exploration_mass": _masses(found, wanted), "exploration_selected": _selected(found, thresholds)}
        return Findings(
            tables, figures, _sentence(first, thresholds, settings), {"exploration_text": _data(shown, marked)}
        )


def _cumulative(top_log_p: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64 mass of the k most probable ids."""
    return np.exp(top_log_p[:, :k].astype(np.float64)).sum(-1)


def _counted(model: Model, wanted: Sequence[int]) -> Masses:
    found, done, total = Masses(model, {k: Quantiles() for k in wanted}), 0, rows_of(model.path)
    for batch in batches(model.path, ("top_log_p",)):
        for k in wanted:
            found.left[k].add(np.maximum(1 - _cumulative(batch["top_log_p"], k), 0))
        done += len(batch["top_log_p"])
        beat(done, 2 * total)
    return found


def _select(one: Masses, thresholds: dict[tuple[float, int], float]) -> None:
    one.below = dict.fromkeys(thresholds, 0)
    done = one.tokens
    for batch in batches(one.model.path, ("top_log_p",)):
        for k in one.left:
            mass = _cumulative(batch["top_log_p"], k)
            for key, threshold in thresholds.items():
                if key[1] == k:
                    one.below[key] += int((mass < threshold).sum())
        done += len(batch["top_log_p"])
        beat(done, 2 * one.tokens)


def _chat(model: Model, settings: Settings) -> dict[str, Any]:
    columns = ("chat", "token", "log_p", "top_log_p")
    tokens, probabilities, masses = [], [], []
    for batch in batches(model.path, columns):
        there = np.flatnonzero(batch["chat"] == settings.chat)[: settings.tokens - len(tokens)]
        tokens += batch["token"][there].tolist()
        probabilities += np.exp(batch["log_p"][there].astype(np.float64)).tolist()
        masses += _cumulative(batch["top_log_p"][there], settings.selected[1]).tolist()
    if not tokens:
        raise ConfigError(f"exploration: settings.chat={settings.chat}: no token of that chat was measured")
    written = texts(model.path)
    return {"tokens": [written[one] for one in tokens], "p": np.array(probabilities), "masses": np.array(masses)}


def _masses(found: Sequence[Masses], wanted: Sequence[int]) -> Table:
    rows = [[one.model.label, k, *one.mass(k, SHARES), one.tokens] for one in found for k in wanted]
    columns = ("model", "k", *(f"{share:.0%}" for share in SHARES), "tokens")
    return Table("Cumulative top-k probability", columns, rows, "Quantiles over the tokens of held-out responses.")


def _selected(found: Sequence[Masses], thresholds: dict[tuple[float, int], float]) -> Table:
    rows = [
        [k, r, threshold, *(one.below[r, k] / max(1, one.tokens) for one in found)]
        for (r, k), threshold in thresholds.items()
    ]
    columns = ("k", "r", "threshold", *(one.model.label for one in found))
    note = (
        f"The threshold is the (1 - r)-quantile of the top-k mass under {found[0].model.label} over held-out response "
        "tokens; then the share of each model's tokens below it, which SED-SFT keeps diverse."
    )
    return Table("What a threshold selects", columns, rows, note)


def _data(shown: dict[str, Any], marked: np.ndarray) -> Any:
    import pyarrow as pa

    columns = {"token": shown["tokens"], "p": shown["p"], "top_k_mass": shown["masses"], "selected": marked}
    return pa.table(columns)


def _sentence(first: Masses, thresholds: dict[tuple[float, int], float], settings: Settings) -> str:
    r, k = settings.selected
    share = first.below[r, k] / max(1, first.tokens)
    k_shown = settings.top_k[0]
    return (
        f"With r = {r:g} and k = {k} the threshold is {thresholds[r, k]:.3f} and selects {share:.1%} of the tokens of "
        f"{first.model.label}; its median top-{k_shown} probability is {first.mass(k_shown, [0.5])[0]:.3f}."
    )


def _draw_masses(found: Sequence[Masses], wanted: Sequence[int], figure: Any) -> None:
    axis = figure.subplots()
    found = [one for one in found if "@" not in one.model.model]  # checkpoints on the way are in the table
    width, shades = 0.8 / len(found), colours(one.model for one in found)
    for place, (one, name) in enumerate(zip(found, shortened([one.model.label for one in found]), strict=True)):
        boxes = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), one.mass(k, SHARES), strict=True)) for k in wanted]
        at = [index + (place - (len(found) - 1) / 2) * width for index in range(len(wanted))]
        _style.boxes(axis, boxes, at, width, shades[one.model.label], name, hatched=one.model.model == "rl")
    axis.set_xticks(range(len(wanted)), [str(k) for k in wanted])
    axis.set(xlabel="k", ylabel="probability of the top k", ylim=(-0.02, 1.03))
    _style.legend(axis)


def _draw_text(shown: dict[str, Any], marked: np.ndarray, settings: Settings, figure: Any) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    scale = colormaps["cividis"]
    inks = ["black" if p > 0.5 else "white" for p in shown["p"]]
    axis = _text.draw(figure, shown["tokens"], [scale(p) for p in shown["p"]], inks, bottom=0.55)
    placed, _ = _text.laid_out(shown["tokens"])
    for (line, column, text), one in zip(placed, marked, strict=True):
        if one:
            box = {"fill": False, "edgecolor": _style.COLOURS[1], "linewidth": 1.1}
            axis.add_patch(Rectangle((column + 0.05, line + 0.08), len(text) - 0.1, 0.84, **box))
    height = figure.get_size_inches()[1]
    bar = figure.add_axes((0.3, 0.3 / height, 0.4, 0.1 / height))
    figure.colorbar(ScalarMappable(Normalize(0, 1), scale), cax=bar, orientation="horizontal").set_label(
        f"label probability; boxed: selected by r = {settings.selected[0]:g}, k = {settings.selected[1]}", fontsize=7
    )
    bar.tick_params(labelsize=6)


exploration = Exploration()

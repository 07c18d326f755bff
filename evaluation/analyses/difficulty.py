"""How hard the tokens are, and for which models (TALR, figures 3 and 7): probabilities, hard tokens, TALR's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evaluation.analyses import _style
from evaluation.analyses._counts import Chats, Largest, Quantiles
from evaluation.analyses._models import Model, colours, models, one_line, shortened
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.token_table import batches, contexts, rows_of, texts

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Settings(BaseModel):
    """threshold: probability from which a token counts as easy. hardest: tokens listed. w_min: TALR's smallest
    weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(0.2, gt=0, lt=1)
    hardest: int = Field(20, ge=1)
    w_min: float = Field(0.01, ge=0, le=1)


@dataclass
class Hardness:
    """One model. easy: tokens at or above the threshold. losses: of the chats, means over their tokens. weights:
    TALR's, of temperature `temperature`, the median of the losses."""

    model: Model
    p: Quantiles = field(default_factory=Quantiles)
    losses: Quantiles = field(default_factory=Quantiles)
    weights: Quantiles = field(default_factory=Quantiles)
    easy: int = 0
    temperature: float = float("nan")
    weight_sum: float = 0.0


class Difficulty(Analysis):
    """Box plots of token probability, share of easy tokens by checkpoint, the hardest tokens, TALR's weights."""

    name = "difficulty"
    needs = ("generate",)
    measured = ("held_out",)
    also = ("checkpoints",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        there = models(self.name, inputs)
        hardest = Largest(settings.hardest)
        found = [_counted(model, settings, hardest if model is there[0] else None) for model in there]
        for one in found:
            _weigh(one, settings)
        tables = {
            "difficulty": _table(found, settings),
            "difficulty_hardest": _hardest(there[0], hardest),
        }
        figures = {
            "difficulty": Figure(
                partial(_draw, found, "p", "token probability"),
                "Probability of held-out tokens: box from 25% to 75%, line at the median, whiskers at 5%, 95%.",
            ),
            "difficulty_share": Figure(
                partial(_draw_share, found, settings),
                f"Share of tokens with a probability of at least {settings.threshold:g}, by checkpoint.",
            ),
            "difficulty_weights": Figure(
                partial(_draw, found, "weights", "TALR weight"),
                "TALR's weights p^(1 / tau) over training, tau the median of the chats' mean losses; boxes as above.",
            ),
        }
        return Findings(tables, figures, _sentence(found[0], settings))


def _counted(model: Model, settings: Settings, hardest: Largest | None) -> Hardness:
    found, done, total = Hardness(model), 0, rows_of(model.path)
    chats = Chats()
    for batch in batches(model.path, ("chat", "position", "token", "log_p", "rank")):
        log_p = batch["log_p"].astype(np.float64)
        p = np.exp(log_p)
        found.p.add(p)
        found.easy += int((p >= settings.threshold).sum())
        if hardest is not None:
            hardest.add(-log_p, **{name: batch[name] for name in ("chat", "position", "token", "rank")})
        ended = chats.add(batch["chat"], -log_p)
        found.losses.add(ended.total / ended.tokens)
        done += len(log_p)
        beat(done, 2 * total)
    ended = chats.close()
    found.losses.add(ended.total / ended.tokens)
    return found


def _weigh(found: Hardness, settings: Settings) -> None:
    found.temperature = found.losses.at([0.5])[0]
    done, total = rows_of(found.model.path), rows_of(found.model.path)
    for batch in batches(found.model.path, ("log_p",)):
        weights = np.maximum(np.exp(batch["log_p"].astype(np.float64) / max(found.temperature, 1e-6)), settings.w_min)
        found.weights.add(weights)
        found.weight_sum += float(weights.sum())
        done += len(weights)
        beat(done, 2 * total)


def _table(found: Sequence[Hardness], settings: Settings) -> Table:
    rows = [
        [
            one.model.label,
            *one.p.at(SHARES),
            one.easy / max(1, one.p.total),
            one.temperature,
            one.weight_sum / max(1, one.p.total),
            one.p.total,
        ]
        for one in found
    ]
    columns = (
        "model", *(f"p, {share:.0%}" for share in SHARES), f"share of p >= {settings.threshold:g}", "tau",
        "mean TALR weight", "tokens",
    )  # fmt: skip
    note = (
        "Quantiles of the probability of held-out tokens. tau is the median over chats of their mean loss, and "
        f"the weight max(p^(1 / tau), {settings.w_min:g}), as if all chats were one batch."
    )
    return Table("Difficulty of tokens", columns, rows, note)


def _hardest(model: Model, largest: Largest) -> Table:
    rows: Mapping[str, np.ndarray] = largest.rows
    written = texts(model.path)
    places = list(zip(rows["chat"].tolist(), rows["position"].tolist(), strict=True))
    around = contexts(model.path, places)
    found = []
    for (chat, position), loss, rank, token in zip(
        places, largest.scores.tolist(), rows["rank"].tolist(), rows["token"].tolist(), strict=True
    ):
        before, _, after = around[chat, position]
        found.append(
            [chat, position, one_line(before), one_line(written[token]), one_line(after), float(np.exp(-loss)), rank]
        )
    columns = ("chat", "position", "before", "token", "after", "p", "rank")
    return Table(f"Hardest tokens, {model.label}", columns, found, "Lowest probability first.")


def _sentence(first: Hardness, settings: Settings) -> str:
    return (
        f"For {first.model.label} {first.easy / max(1, first.p.total):.1%} of held-out tokens have a probability of at "
        f"least {settings.threshold:g} and the median is {first.p.at([0.5])[0]:.3f}: most tokens are easy and few are "
        "hard."
        if first.easy > 0.5 * first.p.total
        else f"For {first.model.label} only {first.easy / max(1, first.p.total):.1%} of held-out tokens have a "
        f"probability of at least {settings.threshold:g}."
    )


def _draw(found: Sequence[Hardness], which: str, label: str, figure: Any) -> None:
    figure.set_size_inches(6.4, 0.32 * len(found) + 1.1)
    axis = figure.subplots()
    names = shortened([one.model.label for one in found])
    shades = colours(one.model for one in found)
    for place, one in enumerate(found):
        quantiles = getattr(one, which).at(SHARES)
        box = dict(zip(("whislo", "q1", "med", "q3", "whishi"), quantiles, strict=True))
        _style.boxes(axis, [box], [place], 0.8, shades[one.model.label], names[place], across=True)
    axis.set_yticks(range(len(found)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel=label, xlim=(-0.02, 1.02))


def _draw_share(found: Sequence[Hardness], settings: Settings, figure: Any) -> None:
    axis = figure.subplots()
    base = next((one for one in found if one.model.model == "base"), None)
    runs = list(dict.fromkeys(one.model.run for one in found if one.model.model not in ("base", "teacher")))
    stages = {one.model.model: one.model.order for one in found if one.model.run in runs}
    names = [*(["base"] if base is not None else []), *sorted(stages, key=lambda name: stages[name])]
    for place, run in enumerate(runs):
        line = [one for one in (base, *(one for one in found if one.model.run == run)) if one is not None]
        points = [(names.index(one.model.model), one.easy / max(1, one.p.total)) for one in line]
        axis.plot(*zip(*points, strict=True), color=_style.colour(place), marker="o", markersize=4, label=run)
    if not runs and base is not None:
        axis.plot([0], [base.easy / max(1, base.p.total)], color=_style.GREY, marker="o", label="base")
    axis.set_xticks(range(len(names)), names, fontsize=7)
    axis.set(ylabel=f"share of tokens with p >= {settings.threshold:g}")
    _style.legend(axis)


difficulty = Difficulty()

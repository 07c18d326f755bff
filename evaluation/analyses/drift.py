"""How far a run's label probabilities move from the base's, and which tokens they move for (PriFT, figures 1, 4, 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses._counts import Moments, Quantiles, mid_ranks, ordered
from evaluation.analyses._lines import over_seeds
from evaluation.analyses._models import Model, one_line, runs, shortened
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.artifact import read_measured
from evaluation.token_table import aligned, rows_of, texts

GROUPS = 5  # of the tokens by their initial rank
GROUP_BITS = 16  # of the quantiles of a group, of which there are many
COUNT_BITS = 18  # of the ranks of log-probabilities
RANKS, LEVELS = 1024, 1024  # bins of the initial rank, and within one of the initial probability
SHARE_OF_LEVELS = 0.25  # their width in -log p at 0, as a power: fine near p = 1


class Settings(BaseModel):
    """chat: whose tokens the heat map shows. width: how many of them. references: line -> training samples that its
    frozen reference had seen, for the effect of contaminated references on the score of `target`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat: int = Field(0, ge=0)
    width: int = Field(48, ge=2, le=200)
    references: dict[str, float] = {}
    target: str = ""


@dataclass
class Moved:
    """One checkpoint against the base. groups: probabilities of the tokens in each fifth by initial rank. counts: of
    both models' log-probabilities. ranks: Spearman's, of the second pass."""

    model: Model
    pairs: Moments = field(default_factory=Moments)
    ranks: Moments = field(default_factory=Moments)
    groups: list[Quantiles] = field(default_factory=lambda: [Quantiles(GROUP_BITS) for _ in range(GROUPS)])
    counts: np.ndarray = field(default_factory=lambda: np.zeros(1 << COUNT_BITS, dtype=np.int64))
    kl: float = 0.0
    tokens: int = 0

    @property
    def mean_kl(self) -> float | None:
        return self.kl / self.tokens if self.tokens and np.isfinite(self.kl) else None


class Drift(Analysis):
    """Correlations and error against the base by checkpoint, medians by initial rank, a heat map, and KL."""

    name = "drift"
    needs = ("generate", "measure")
    measured = ("held_out", "benchmark")
    also = ("checkpoints",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        base, found = runs(self.name, inputs)
        start, by_run, heat = _walk(base, found, settings)
        tables = {"drift": _table(by_run), "drift_by_rank": _by_rank(start, by_run)}
        figures = {
            "drift": Figure(
                partial(_draw, by_run),
                "Label probabilities on held-out responses against the base's, by checkpoint, and KL from the base.",
            ),
            "drift_by_rank": Figure(
                partial(_draw_groups, start, by_run),
                "Median label probability by fifths of the initial rank (ties of rank by initial probability).",
            ),
            "drift_tokens": Figure(
                partial(_draw_heat, heat),
                f"Label probability of the first tokens of chat {settings.chat}, by checkpoint.",
            ),
        }
        if settings.references:
            tables["drift_references"], figures["drift_references"] = _references(inputs, settings)
        return Findings(tables, figures, _sentence(by_run), {"drift_tokens": _data(heat)})


def _walk(base: Model, found: Mapping[str, list[Model]], settings: Settings) -> Any:
    """Two passes over the tokens: the first counts, the second ranks. Returns the base's groups, checkpoints by run and
    the rows of the heat map."""
    by_run = {name: [Moved(model) for model in models] for name, models in found.items()}
    moved = [one for checkpoints in by_run.values() for one in checkpoints]
    total, done = 2 * rows_of(base.path), 0
    counts, initial = np.zeros(1 << COUNT_BITS, dtype=np.int64), np.zeros(RANKS * LEVELS, dtype=np.int64)
    heat: list[tuple[int, np.ndarray]] = []
    folders = [base.path, *(one.model.path for one in moved)]
    for first, *others in aligned(folders, ("log_p", "rank", "kl")):
        counts += np.bincount(ordered(first["log_p"], COUNT_BITS), minlength=len(counts))
        initial += np.bincount(_initial(first), minlength=RANKS * LEVELS)
        for one, batch in zip(moved, others, strict=True):
            one.counts += np.bincount(ordered(batch["log_p"], COUNT_BITS), minlength=len(counts))
            one.pairs.add(_p(first), _p(batch))
            one.kl += float(batch["kl"].sum(dtype=np.float64))
            one.tokens += len(batch["kl"])
        for at in np.flatnonzero(first["chat"] == settings.chat).tolist():
            if len(heat) < settings.width:
                heat.append((int(first["token"][at]), np.array([_p(batch)[at] for batch in (first, *others)])))
        done += len(first["log_p"])
        beat(done, total)
    if not heat:
        raise ConfigError(f"drift: settings.chat={settings.chat}: no token of that chat was measured; take another")
    start = [Quantiles(GROUP_BITS) for _ in range(GROUPS)]
    group = np.minimum(GROUPS * mid_ranks(initial) / max(1, counts.sum()), GROUPS - 1).astype(np.int64)
    ranks, of_moved = mid_ranks(counts), [mid_ranks(one.counts) for one in moved]
    for first, *others in aligned(folders, ("log_p", "rank")):
        groups = group[_initial(first)]
        of_first = ranks[ordered(first["log_p"], COUNT_BITS)]
        for place in range(GROUPS):
            start[place].add(_p(first)[groups == place])
        for one, theirs, batch in zip(moved, of_moved, others, strict=True):
            one.ranks.add(of_first, theirs[ordered(batch["log_p"], COUNT_BITS)])
            for place in range(GROUPS):
                one.groups[place].add(_p(batch)[groups == place])
        done += len(first["log_p"])
        beat(done, total)
    written = texts(base.path)
    shown = {
        "tokens": [one_line(written[token]) for token, _ in heat],
        "models": [base.label, *(one.model.label for one in moved)],
        "p": np.stack([values for _, values in heat], axis=1),
    }
    return start, by_run, shown


def _p(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.exp(batch["log_p"].astype(np.float64))


def _initial(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Bins (n,) in the order of the initial rank, and among equal ranks of falling probability."""
    rank = np.minimum(batch["rank"].astype(np.int64), RANKS) - 1
    level = np.minimum((-np.minimum(batch["log_p"], 0) / 32) ** SHARE_OF_LEVELS, 1) * (LEVELS - 1)
    return rank * LEVELS + level.astype(np.int64)


def _table(by_run: Mapping[str, list[Moved]]) -> Table:
    rows = [
        [
            run,
            one.model.model,
            one.pairs.correlation,
            one.ranks.correlation,
            one.pairs.mean_apart,
            one.mean_kl,
            one.tokens,
        ]
        for run, checkpoints in by_run.items()
        for one in checkpoints
    ]
    columns = ("run", "checkpoint", "Pearson", "Spearman", "mean absolute error", "KL from base", "tokens")
    note = (
        "Of the label probabilities of held-out response tokens against the base's; KL(base || model) in nats a token."
    )
    return Table("Drift from the base", columns, [[_finite(cell) for cell in row] for row in rows], note)


def _finite(cell: Any) -> Any:
    return None if isinstance(cell, float) and not np.isfinite(cell) else cell


def _by_rank(start: Sequence[Quantiles], by_run: Mapping[str, list[Moved]]) -> Table:
    def cells(groups: Sequence[Quantiles]) -> list[Any]:
        return [_finite(one.at([0.5])[0]) for one in groups]

    rows = [["", "base", *cells(start)]]
    rows += [[run, one.model.model, *cells(one.groups)] for run, checkpoints in by_run.items() for one in checkpoints]
    columns = ("run", "checkpoint", *(f"fifth {place + 1}" for place in range(GROUPS)))
    note = "Medians; fifth 1 holds the tokens that the base ranked highest, equal ranks in the order of probability."
    return Table("Median label probability by initial rank", columns, rows, note)


def _references(inputs: Sequence[Given], settings: Settings) -> tuple[Table, Figure]:
    scores: dict[str, list[dict[str, float]]] = {}
    for given in inputs:
        if given.kind == "measure" and given.name == settings.target and given.model == "sft":
            scores.setdefault(given.line, []).append(read_measured(given.path)["metrics"]["pass@1"])
    missing = [line for line in settings.references if line not in scores]
    if missing:
        raise ConfigError(
            f"drift: settings.references: no score of {settings.target!r} of line {missing[0]!r}; there are "
            f"{', '.join(scores) or 'none'}"
        )
    ordered_lines = sorted(settings.references.items(), key=lambda pair: pair[1])
    rows = [(line, samples, over_seeds(scores[line])) for line, samples in ordered_lines]
    cells = [[line, samples, one["value"], one["low"], one["high"]] for line, samples, one in rows]
    columns = ("line", "samples the reference saw", "pass@1", "low", "high")
    note = (
        f"pass@1 of {settings.target} after SFT, 95% intervals, by how much its frozen reference had been fine-tuned."
    )
    caption = f"Score of {settings.target} by the training samples that the frozen reference had seen."
    figure = Figure(partial(_draw_references, cells, settings.target), caption)
    return Table("Contaminated references", columns, cells, note), figure


def _data(heat: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    models, tokens = heat["p"].shape
    return pa.table(
        {
            "model": pa.array(np.repeat(heat["models"], tokens).tolist(), pa.string()),
            "place": np.tile(np.arange(tokens), models),
            "token": pa.array(heat["tokens"] * models, pa.string()),
            "p": heat["p"].reshape(-1),
        }
    )


def _sentence(by_run: Mapping[str, list[Moved]]) -> str:
    run, last = max(
        ((name, checkpoints[-1]) for name, checkpoints in by_run.items()), key=lambda pair: pair[1].pairs.mean_apart
    )
    return (
        f"{run} ({last.model.model}) moves furthest from the base: Pearson {last.pairs.correlation:.3f}, Spearman "
        f"{last.ranks.correlation:.3f}, mean absolute error {last.pairs.mean_apart:.3f}."
    )


def _ticks(axis: Any, names: Sequence[str]) -> None:
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)


def _draw(by_run: Mapping[str, list[Moved]], figure: Any) -> None:
    figure.set_size_inches(7.0, 4.6)
    axes = figure.subplots(2, 2).reshape(-1)
    names = _stages(by_run)
    panels = (
        ("Pearson", lambda one: one.pairs.correlation, 1.0),
        ("Spearman", lambda one: one.ranks.correlation, 1.0),
        ("mean absolute error", lambda one: one.pairs.mean_apart, 0.0),
        ("KL from base (nats)", lambda one: one.mean_kl, 0.0),
    )
    for axis, (title, value, start) in zip(axes, panels, strict=True):
        for place, (run, checkpoints) in enumerate(by_run.items()):
            points = [(names.index(one.model.model), value(one)) for one in checkpoints]
            there = [(0, start), *((at, given) for at, given in points if given is not None)]
            axis.plot(*zip(*there, strict=True), color=_style.colour(place), marker="o", markersize=3, label=run)
        axis.set_title(title, fontsize=9, loc="left")
        _ticks(axis, names)
    _style.legend(axes[1])
    figure.tight_layout()


def _stages(by_run: Mapping[str, list[Moved]]) -> list[str]:
    """The names of all checkpoints, the base first, in order."""
    found = {one.model.model: one.model.order for checkpoints in by_run.values() for one in checkpoints}
    return ["base", *sorted(found, key=lambda name: found[name])]


def _draw_groups(start: Sequence[Quantiles], by_run: Mapping[str, list[Moved]], figure: Any) -> None:
    figure.set_size_inches(min(3.0 * len(by_run) + 1.2, 10.0), 3.2)
    axes = figure.subplots(1, len(by_run), sharey=True, squeeze=False)[0]
    for axis, (run, checkpoints) in zip(axes, by_run.items(), strict=True):
        for place in range(GROUPS):
            medians = [start[place].at([0.5])[0], *(one.groups[place].at([0.5])[0] for one in checkpoints)]
            axis.plot(medians, color=_style.colour(place), marker="o", markersize=3, label=f"fifth {place + 1}")
        _ticks(axis, ["base", *(one.model.model for one in checkpoints)])
        axis.set_title(shortened([run])[0], fontsize=9, loc="left")
    axes[0].set(ylabel="median label probability", ylim=(-0.03, 1.03))
    _style.legend(axes[-1])


def _draw_heat(heat: Mapping[str, Any], figure: Any) -> None:
    models, tokens = heat["p"].shape
    figure.set_size_inches(7.6, 0.22 * models + 1.6)
    axis = figure.subplots()
    image = axis.imshow(heat["p"], aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks(range(models), shortened(heat["models"]), fontsize=7)
    labels = [name.strip(" ")[:9] or "\u2423" for name in heat["tokens"]]
    axis.set_xticks(range(tokens), [_plain(name) for name in labels], rotation=90, fontsize=6.5)
    figure.colorbar(image, ax=axis, label="probability", pad=0.01)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _draw_references(rows: Sequence[Sequence[Any]], target: str, figure: Any) -> None:
    axis = figure.subplots()
    places = range(len(rows))
    _style.band(
        axis, places, [dict(zip(("value", "low", "high"), row[2:], strict=True)) for row in rows], color="#0072B2"
    )
    axis.set_xticks(places, [f"{row[1]:g}\n{row[0]}" for row in rows], fontsize=7)
    axis.set(xlabel="samples that the reference saw", ylabel=f"pass@1, {target}, 95% intervals")


drift = Drift()

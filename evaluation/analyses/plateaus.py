"""Plateaus of a model's next-token distributions: how often k ids are about equally likely (LP-SFT, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from data_prep.reference.reader import ReferenceCache
from evaluation.analyses import _style
from evaluation.analyses._counts import Kept
from evaluation.analyses._envelope import lowest_ratio
from evaluation.analyses._models import BASE, Model, colours, models, one_line, shortened
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.token_table import WINDOW, batches, contexts, rows_of, texts

WIDTH, FLATNESS = 0.3, 0.95  # of a plateau (eq. 12)
N1_STEP, R_STEP = 0.05, 0.01  # bins of the joint density
SHOWN = 10  # ids of an example's table
MARKS = "osD^vPX*"
TRAINING = ", training chats"  # after the role of a cache


class Settings(BaseModel):
    """largest: k up to which plateaus are counted. examples: tokens shown for each k. seed: of their choice. shown: the
    models whose joint density is drawn; empty: the first two sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    largest: int = Field(12, ge=1, le=WINDOW)
    examples: int = Field(1, ge=0)
    seed: int = 0
    shown: tuple[str, ...] = ()


@dataclass
class Density:
    """Counts of tokens of one source. joint: (N1 bins, R bins) int64. plateaus: (largest,) int64, of k = 1 and up."""

    name: str
    largest: int
    joint: np.ndarray = field(
        default_factory=lambda: np.zeros((round((WINDOW - 1) / N1_STEP) + 1, round(1 / R_STEP)), dtype=np.int64)
    )
    plateaus: np.ndarray = field(init=False)
    tokens: int = 0
    below: int = 0  # of the envelope

    def __post_init__(self) -> None:
        self.plateaus = np.zeros(self.largest, dtype=np.int64)

    def add(self, n1: np.ndarray, n2: np.ndarray) -> np.ndarray:
        """Counts (n,) N1 and N2; returns which k each token is a plateau of, 0 for none, (n,) int64."""
        n1, n2 = n1.astype(np.float64), n2.astype(np.float64)
        ratio = n2 / n1
        places = np.clip(np.rint((n1 - 1) / N1_STEP), 0, self.joint.shape[0] - 1).astype(np.int64)
        levels = np.clip(ratio / R_STEP, 0, self.joint.shape[1] - 1).astype(np.int64)
        np.add.at(self.joint, (places, levels), 1)
        k = np.where(ratio > FLATNESS, plateau_of(n1), 0)
        self.plateaus += np.bincount(k, minlength=WINDOW + 1)[1 : self.largest + 1]
        self.tokens += len(n1)
        self.below += int((ratio < _ENVELOPE(n1) - SLACK).sum())
        return k

    def ridge(self, k: int) -> float | None:
        """Tokens within 0.1 of k over those and the mean of the ones as near to k - 1/2 and k + 1/2, R over 0.9."""
        flat, half = self.joint[:, round(0.9 / R_STEP) :].sum(1), round(0.1 / N1_STEP)

        def near(centre: float) -> float:
            place = round((centre - 1) / N1_STEP)
            return float(flat[place - half : place + half + 1].sum())

        there = near(k) + (near(k - 0.5) + near(k + 0.5)) / 2
        return near(k) / there if there else None


SLACK = 0.005  # N1 and N2 of a compact cache are float16


def _envelope() -> Any:
    grid = np.linspace(1, WINDOW, 2901)
    lowest = lowest_ratio(grid, WINDOW, (WINDOW,))
    return lambda n1: np.interp(n1, grid, lowest)


_ENVELOPE = _envelope()


def plateau_of(n1: np.ndarray) -> np.ndarray:
    """The k with N1 in [k - WIDTH, k + WIDTH], 0 for none, (n,) int64."""
    nearest = np.rint(n1)
    # float32 values of the bounds belong to the plateau, as they do in the paper's closed interval
    return np.where(np.abs(n1 - nearest) <= WIDTH + 1e-6, nearest, 0).astype(np.int64)


class Plateaus(Analysis):
    """Joint density of N1 and R, shares of plateau-k tokens by model, and example tokens."""

    name = "plateaus"
    needs = ("cache", "generate")
    measured = ("held_out",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        caches = {given.name or BASE: given for given in inputs if given.kind == "cache"}
        tabled = models(self.name, inputs) if any(given.kind == "generate" for given in inputs) else []
        if not caches and not tabled:
            raise ConfigError(f"{self.name}: no reference cache and no held-out tokens; run one of the stages")
        found = [_of_cache(f"{role}{TRAINING}", given, settings) for role, given in caches.items()]
        kept: dict[int, Kept] = {}
        for model in tabled:
            of_base = kept if model is tabled[0] else None
            found.append(_of_table(model, settings, of_base))
        tables = {"plateau_shares": _shares(found, settings)}
        ridges = _ridges(found, settings)
        if any(value is not None for row in ridges.rows for value in row[1:]):
            tables["plateau_ridges"] = ridges
        if kept:
            tables["plateau_examples"] = _examples(tabled[0], kept)
        shown = [one for one in found if one.name in settings.shown] or found[:2]
        figures = {
            "plateau_density": Figure(
                partial(_draw_density, shown),
                "Tokens by effective support N1 and R = N2 / N1, log scale; ridges at integers are plateaus. Line: the "
                f"lowest R that a window of {WINDOW} ids allows.",
            )
        }
        if any(one.plateaus.any() for one in found if "@" not in one.name):
            figures["plateau_shares"] = Figure(
                partial(_draw_shares, found, colours(tabled)),
                f"Share of tokens on a plateau of k equal ids: N1 within {WIDTH} of k and R over {FLATNESS}; no mark: "
                "none.",
            )
        return Findings(tables, figures, _sentence(found), {"plateau_density": _data(found)})


def _of_cache(name: str, given: Given, settings: Settings) -> Density:
    cache, found = ReferenceCache(given.path), Density(name, settings.largest)
    for block in cache.stream(("n1", "n2")):
        found.add(block["n1"], block["n2"])
        beat(found.tokens, cache.tokens)
    return found


def _of_table(model: Model, settings: Settings, kept: dict[int, Kept] | None) -> Density:
    found, rows = Density(model.label, settings.largest), rows_of(model.path)
    columns = ("n1", "n2", "chat", "position", "token", "top_ids", "top_log_p") if kept is not None else ("n1", "n2")
    for batch in batches(model.path, columns):
        k = found.add(batch["n1"], batch["n2"])
        beat(found.tokens, rows)
        if kept is None or not settings.examples:
            continue
        for one in range(2, settings.largest + 1):
            places = np.flatnonzero(k == one)
            wanted = [
                (
                    *(int(batch[name][at]) for name in ("chat", "position", "token")),
                    float(batch["n1"][at]),
                    float(batch["n2"][at]),
                    tuple(batch["top_ids"][at, :SHOWN].tolist()),
                    tuple(batch["top_log_p"][at, :SHOWN].tolist()),
                )
                for at in places.tolist()
            ]
            if wanted:
                kept.setdefault(one, Kept(settings.examples, settings.seed + one)).add(wanted)
    return found


def _shares(found: Iterable[Density], settings: Settings) -> Table:
    columns = ("source", "tokens", *(f"k = {k}" for k in range(1, settings.largest + 1)), "below the envelope")
    rows = [
        [one.name, one.tokens, *(count / max(1, one.tokens) for count in one.plateaus.tolist()), one.below]
        for one in found
    ]
    note = (
        f"Shares of tokens with N1 within {WIDTH} of k and R over {FLATNESS} (eq. 12); the last column counts tokens "
        f"under the finite-top-{WINDOW} envelope (eq. 11), of which there can be none."
    )
    return Table("Plateau-k states", columns, rows, note)


def _ridges(found: Iterable[Density], settings: Settings) -> Table:
    columns = ("source", *(f"k = {k}" for k in range(2, settings.largest + 1)))
    rows = [[one.name, *(one.ridge(k) for k in range(2, settings.largest + 1))] for one in found]
    note = (
        "Of tokens with R over 0.9, those within 0.1 of k as a share of them and the mean of the ones as near to "
        "k - 1/2 and to k + 1/2: 0.5 is no ridge, 1 is nothing but a ridge."
    )
    return Table("Ridges at integers", columns, rows, note)


def _examples(model: Model, kept: dict[int, Kept]) -> Table:
    written = texts(model.path)
    chosen = [(k, item) for k in sorted(kept) for item in kept[k].items]
    around = contexts(model.path, [item[:2] for _, item in chosen])
    rows = []
    for k, (chat, position, _, n1, n2, ids, log_p) in chosen:
        before, own, after = around[chat, position]
        top = "; ".join(
            f"{one_line(written[one])!r} {np.exp(log):.3f}" for one, log in zip(ids, log_p, strict=True) if one >= 0
        )
        rows.append([k, n1, n2 / n1, one_line(before), one_line(own), one_line(after), top])
    columns = ("k", "N1", "R", "before", "token", "after", f"top {SHOWN}")
    return Table(f"Tokens on a plateau, {model.label}", columns, rows, "A random choice among the held-out tokens.")


def _data(found: Sequence[Density]) -> Any:
    import pyarrow as pa

    parts = []
    for one in found:
        places, levels = np.nonzero(one.joint)
        parts.append(
            pa.table(
                {
                    "source": pa.array([one.name] * len(places), pa.string()),
                    "n1": 1 + N1_STEP * places,
                    "r": R_STEP * levels,
                    "tokens": one.joint[places, levels],
                }
            )
        )
    return pa.concat_tables(parts)


def _sentence(found: Sequence[Density]) -> str:
    first = found[0]
    k = int(first.plateaus[1:].argmax()) + 2 if first.largest > 1 else 1
    share = first.plateaus / max(1, first.tokens)
    above = f"the most frequent plateau above is k = {k}, {share[k - 1]:.2%} of tokens"
    if not first.plateaus[1:].any():
        above = f"none is on a plateau of 2 to {first.largest}"
    said = f"Of {first.tokens} tokens of {first.name}, {share[0]:.1%} are certain (plateau 1) and {above}"
    base = next((one for one in found if one.name == BASE), None)
    others = [one for one in found if one is not base and not one.name.endswith(TRAINING)]
    if base is None or not others:
        return said + "."
    low = [one.plateaus[1:5].sum() / max(1, one.tokens) for one in (base, others[-1])]
    return f"{said}; of plateaus 2 to 5 the base has {low[0]:.2%} and {others[-1].name} {low[1]:.2%}."


def _axes(figure: Any, count: int) -> Iterator[Any]:
    axes = figure.subplots(1, count, sharey=True, squeeze=False)
    yield from axes[0]


def _draw_density(shown: Sequence[Density], figure: Any) -> None:
    from matplotlib.colors import LogNorm

    grid = np.linspace(1, WINDOW, 400)
    for axis, one in zip(_axes(figure, len(shown)), shown, strict=True):
        edges = 1 + N1_STEP * (np.arange(one.joint.shape[0] + 1) - 0.5)
        levels = R_STEP * np.arange(one.joint.shape[1] + 1)
        counts = np.where(one.joint > 0, one.joint, np.nan).T
        norm = LogNorm(1, max(2, int(one.joint.max())))
        mesh = axis.pcolormesh(edges, levels, counts, norm=norm, cmap="viridis", rasterized=True)
        axis.plot(grid, lowest_ratio(grid, WINDOW, (WINDOW,)), color=_style.COLOURS[1], linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 3, 4, 5, 7, 10, 20, 30], ["1", "2", "3", "4", "5", "7", "10", "20", "30"])
        axis.minorticks_off()
        axis.set(xlabel="N1", title=one.name, xlim=(0.95, WINDOW))
        figure.colorbar(mesh, ax=axis, label="tokens")
    figure.axes[0].set_ylabel("R = N2 / N1")


def _draw_shares(found: Sequence[Density], shades: Mapping[str, str], figure: Any) -> None:
    axis = figure.subplots()
    drawn = [one for one in found if "@" not in one.name]  # checkpoints on the way are in the table
    width = 0.8 / len(drawn)
    for place, (one, name) in enumerate(zip(drawn, shortened([one.name for one in drawn]), strict=True)):
        k = np.arange(1, one.largest + 1)
        shares = np.where(one.plateaus > 0, one.plateaus / max(1, one.tokens), np.nan)
        role = one.name.removesuffix(TRAINING)
        own = shades[role] if role in shades else _style.colour(place)
        look = {"color": own, "marker": MARKS[place % len(MARKS)], "linestyle": "none"}
        axis.plot(k + (place - (len(drawn) - 1) / 2) * width, shares, label=name, markersize=4, **look)
    for k in range(1, found[0].largest):
        axis.axvline(k + 0.5, color="#dddddd", linewidth=0.6, zorder=0)
    axis.set_yscale("log")
    axis.set_xticks(range(1, found[0].largest + 1))
    axis.set(xlabel="plateau k", ylabel="share of tokens")
    _style.legend(axis)


plateaus = Plateaus()

"""Where student and teacher agree about the labels: P(p_T | p_theta) and its four quadrants (TARGET-SFT, F and G)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from data_prep.reference.reader import ReferenceCache
from evaluation.analyses import _style, _text
from evaluation.analyses._models import BASE, TEACHER, Model, models
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.token_table import aligned, rows_of, texts

QUADRANTS = ("Q1 rescue", "Q2 filter", "Q3 agreed", "Q4 doubted")
MEANINGS = ("student low, teacher high", "both low", "both high", "student high, teacher low")


class Settings(BaseModel):
    """student, teacher: models, by label. bound: from where a probability is high. bins: of the density, each way.
    chat, tokens: the text that is drawn, at most so many of its tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str = BASE
    teacher: str = TEACHER
    bound: float = Field(0.5, gt=0, lt=1)
    bins: int = Field(50, ge=2, le=500)
    chat: int = Field(0, ge=0)
    tokens: int = Field(400, ge=1, le=2000)


class Alignment(Analysis):
    """A column-normalised density, the share of each quadrant, and a text with Rescue and Filter tokens."""

    name = "alignment"
    needs = ("cache", "generate")
    measured = ("held_out",)
    also = ("teacher",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        caches = {given.name: given.path for given in inputs if given.kind == "cache"}
        tabled = {one.label: one for one in models(self.name, inputs)} if _has_tokens(inputs) else {}
        wanted = (settings.student, settings.teacher)
        pair = [tabled[name] for name in wanted] if all(name in tabled for name in wanted) else []
        counts: dict[str, np.ndarray] = {}
        if all(name in caches for name in wanted):
            counts["training chats"] = _counted(_of_caches(*(caches[name] for name in wanted)), settings)
        if pair:
            counts["held-out chats"] = _counted(_of_tables(pair), settings)
        if not counts:
            there = ", ".join(dict.fromkeys([*caches, *tabled])) or "none"
            raise ConfigError(
                f"{self.name}: needs caches or held-out tokens of both {wanted[0]!r} and {wanted[1]!r}; there are "
                f"{there}; set model.teacher, or settings.student and settings.teacher"
            )
        shares = {name: _quadrants(found, settings) for name, found in counts.items()}
        first = next(iter(counts))
        figures = {
            "alignment": Figure(
                partial(_draw, counts[first], shares[first], settings),
                f"P(p of {settings.teacher} | p of {settings.student}) of the labels of {first}; columns sum to 1, "
                "numbers: share of all tokens in the quadrant.",
            )
        }
        data = {"alignment": _data(counts, settings)}
        if pair:
            shown = _chat(pair, settings)
            figures["alignment_text"] = Figure(
                partial(_draw_text, shown, settings),
                f"Chat {settings.chat}: {shown['rescue'].sum()} Rescue tokens (solid: {MEANINGS[0]}) and "
                f"{shown['filter'].sum()} Filter tokens (light: {MEANINGS[1]}) of {len(shown['tokens'])}.",
            )
        table = _table(shares, {name: int(found.sum()) for name, found in counts.items()}, settings)
        return Findings({"alignment": table}, figures, _sentence(first, shares[first], settings), data)


def _has_tokens(inputs: Sequence[Given]) -> bool:
    return any(given.kind == "generate" and given.name == "held_out" for given in inputs)


def _of_caches(student: Path, teacher: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Label probabilities of both, some tokens at a time. Raises ConfigError where they are of other chats."""
    caches = [ReferenceCache(path) for path in (student, teacher)]
    sums = [one.column("label_checksum") for one in caches]
    if caches[0].tokens != caches[1].tokens or not np.array_equal(sums[0], sums[1]):
        raise ConfigError(f"{student}, {teacher}: caches of different chats; make both from one prepared data set")
    done, sizes = 0, [[record["tokens"] for record in one.shards] for one in caches]
    rows = 1 << 17 if sizes[0] == sizes[1] else max(*sizes[0], *sizes[1])
    for first, second in zip(_even(caches[0], rows), _even(caches[1], rows), strict=True):
        yield np.exp(first.astype(np.float64)), np.exp(second.astype(np.float64))
        done += len(first)
        beat(done, caches[0].tokens)


def _even(cache: ReferenceCache, rows: int) -> Iterator[np.ndarray]:
    """Log-probabilities of the labels, `rows` at a time whatever the shards."""
    waiting = np.empty(0, dtype=np.float32)
    for block in cache.stream(("label_logprob",), rows):
        waiting = np.concatenate([waiting, block["label_logprob"]])
        while len(waiting) >= rows:
            yield waiting[:rows]
            waiting = waiting[rows:]
    if len(waiting):
        yield waiting


def _of_tables(pair: Sequence[Model]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    done, total = 0, rows_of(pair[0].path)
    for first, second in aligned([one.path for one in pair], ("log_p",)):
        yield np.exp(first["log_p"].astype(np.float64)), np.exp(second["log_p"].astype(np.float64))
        done += len(first["log_p"])
        beat(done, total)


def _counted(pairs: Iterator[tuple[np.ndarray, np.ndarray]], settings: Settings) -> np.ndarray:
    """Tokens (bins + 1, bins + 1) int64 by student and teacher; the bins of each side meet at the bound."""
    edges = _edges(settings)
    counts = np.zeros((len(edges) - 1, len(edges) - 1), dtype=np.int64)
    for student, teacher in pairs:
        places = [np.clip(np.searchsorted(edges, p, "right") - 1, 0, len(edges) - 2) for p in (student, teacher)]
        np.add.at(counts, tuple(places), 1)
    return counts


def _edges(settings: Settings) -> np.ndarray:
    return np.unique(np.append(np.linspace(0, 1, settings.bins + 1), settings.bound))


def _quadrants(counts: np.ndarray, settings: Settings) -> list[float]:
    """Shares of the four quadrants, in the order of QUADRANTS."""
    at = int(np.searchsorted(_edges(settings), settings.bound))
    total = max(1, counts.sum())
    parts = (counts[:at, at:], counts[:at, :at], counts[at:, at:], counts[at:, :at])
    return [float(part.sum() / total) for part in parts]


def _table(shares: Mapping[str, list[float]], tokens: Mapping[str, int], settings: Settings) -> Table:
    rows = [
        [quadrant, meaning, *(found[place] for found in shares.values())]
        for place, (quadrant, meaning) in enumerate(zip(QUADRANTS, MEANINGS, strict=True))
    ]
    note = (
        f"Shares of label tokens ({', '.join(f'{count} of {name}' for name, count in tokens.items())}); high is "
        f"{settings.bound:g} or more. Student: {settings.student}; teacher: {settings.teacher}."
    )
    return Table("Agreement of student and teacher", ("quadrant", "probabilities", *shares), rows, note)


def _data(counts: Mapping[str, np.ndarray], settings: Settings) -> Any:
    import pyarrow as pa

    edges, parts = _edges(settings), []
    for name, found in counts.items():
        student, teacher = np.nonzero(found)
        columns = found.sum(1)[student]
        parts.append(
            pa.table(
                {
                    "source": pa.array([name] * len(student), pa.string()),
                    "student_from": edges[student],
                    "teacher_from": edges[teacher],
                    "tokens": found[student, teacher],
                    "density": found[student, teacher] / columns,
                }
            )
        )
    return pa.concat_tables(parts)


def _chat(pair: Sequence[Model], settings: Settings) -> dict[str, Any]:
    tokens: list[int] = []
    p: list[np.ndarray] = []
    for student, teacher in aligned([one.path for one in pair], ("log_p",)):
        there = np.flatnonzero(student["chat"] == settings.chat)[: settings.tokens - len(tokens)]
        tokens += student["token"][there].tolist()
        p.append(np.exp(np.stack([student["log_p"][there], teacher["log_p"][there]]).astype(np.float64)))
    if not tokens:
        raise ConfigError(f"alignment: settings.chat={settings.chat}: no token of that chat was measured")
    high = np.concatenate(p, axis=1) >= settings.bound
    written = texts(pair[0].path)
    return {
        "tokens": [written[one] for one in tokens],
        "rescue": ~high[0] & high[1],
        "filter": ~high[0] & ~high[1],
    }


def _sentence(source: str, shares: Sequence[float], settings: Settings) -> str:
    return (
        f"Of the labels of {source} {shares[2]:.1%} are likely for both models; {settings.teacher} rescues "
        f"{shares[0]:.1%} that {settings.student} finds unlikely, {shares[1]:.1%} are unlikely for both and "
        f"{shares[3]:.1%} for "
        f"{settings.teacher} alone."
    )


def _draw(counts: np.ndarray, shares: Sequence[float], settings: Settings, figure: Any) -> None:
    from matplotlib.colors import LogNorm

    figure.set_size_inches(5.2, 4.4)
    axis, edges = figure.subplots(), _edges(settings)
    columns = counts.sum(1, keepdims=True)
    density = np.where(counts > 0, counts / np.maximum(columns, 1), np.nan).T
    mesh = axis.pcolormesh(edges, edges, density, norm=LogNorm(1e-4, 1), cmap="cividis", rasterized=True)
    axis.axhline(settings.bound, color="black", linewidth=0.8)
    axis.axvline(settings.bound, color="black", linewidth=0.8)
    low, high = settings.bound / 2, (1 + settings.bound) / 2
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for name, share, x, y in zip(QUADRANTS, shares, (low, low, high, high), (high, low, high, low), strict=True):
        axis.text(x, y, f"{name}\n{share:.1%}", ha="center", va="center", fontsize=8, bbox=box)
    axis.set(xlabel=f"p of {settings.student}", ylabel=f"p of {settings.teacher}", xlim=(0, 1), ylim=(0, 1))
    figure.colorbar(mesh, ax=axis, label="share of the column")


def _draw_text(shown: Mapping[str, Any], settings: Settings, figure: Any) -> None:
    from matplotlib.patches import Patch

    rescue, filtered = _style.COLOURS[0], "#F5C77E"
    colours, inks = [], []
    for saved, left in zip(shown["rescue"], shown["filter"], strict=True):
        colours.append(rescue if saved else filtered if left else "white")
        inks.append("white" if saved else "black")
    axis = _text.draw(figure, shown["tokens"], colours, inks, bottom=0.35)
    handles = [
        Patch(color=rescue, label=f"Rescue: {MEANINGS[0]} ({int(shown['rescue'].sum())})"),
        Patch(color=filtered, label=f"Filter: {MEANINGS[1]} ({int(shown['filter'].sum())})"),
    ]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=2, fontsize=7, frameon=False)


alignment = Alignment()

"""A page on which every token of a text carries what each model thinks of it, the largest movers of all texts first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from evaluation.analyses._counts import Chats, Largest
from evaluation.analyses._models import BASE, TEACHER, Model, colours, models, one_line, shortened
from evaluation.analyses._progress import beat
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table
from evaluation.analyses.plateaus import FLATNESS, plateau_of
from evaluation.token_table import TOKENS, aligned, contexts, rows_of, texts

SHOWN_TOP = 5  # most probable ids of a token in the page
DRAWN = 30  # movers in the picture
COLUMNS = tuple(field.name for field in TOKENS if field.name != "kl")


class Settings(BaseModel):
    """chats: numbers of the held-out chats that the page shows; empty: the `texts` ones that moved most. tokens: that
    the page shows at most, over all chats. movers: tokens in the list of movers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chats: tuple[int, ...] = ()
    texts: int = Field(3, ge=1, le=50)
    tokens: int = Field(4000, ge=1, le=20_000)
    movers: int = Field(100, ge=1, le=2000)


class Tokens(Analysis):
    """Probability, rank, entropy, N1, the objective's weight and gradient of every token by model, in one HTML file."""

    name = "tokens"
    needs = ("generate",)
    measured = ("held_out",)
    also = ("checkpoints", "teacher")
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        there = models(self.name, inputs)
        if there[0].model != BASE:
            raise ConfigError(
                f"{self.name}: no held-out tokens of the base model, against which all others are compared"
            )
        largest, most_moved, measured = _movers(there, settings)
        chosen = settings.chats or tuple(most_moved)
        missing = [chat for chat in settings.chats if chat not in measured]
        if missing:
            raise ConfigError(f"{self.name}: settings.chats={missing[0]}: no token of that chat was measured")
        rows = _rows(there, chosen, settings.tokens)
        written = texts(there[0].path)
        for one in there[1:]:
            written.update(texts(one.path))
        movers = _described(there, largest, written)
        page, data = _page(there, chosen, rows, movers, written)
        tables = {"tokens_movers": _table(there, movers)} if movers else {}
        figures = {
            "tokens_movers": Figure(
                partial(_draw, there, movers[:DRAWN]),
                "The tokens whose probability moves furthest from the base's (open circles), by model.",
            )
        }
        return Findings(tables, figures if movers else {}, _sentence(there, movers), data, {"tokens": page})


def _movers(there: Sequence[Model], settings: Settings) -> tuple[Largest, list[int], set[int]]:
    """The tokens that moved furthest from the base in any model, the chats whose tokens moved most in sum, and which of
    `settings.chats` there are."""
    largest, chats, most_moved = Largest(settings.movers), Chats(), Largest(settings.texts)
    measured: set[int] = set()
    others = [place for place, one in enumerate(there) if one.model not in (BASE, TEACHER)]
    done, total = 0, rows_of(there[0].path)
    for together in aligned([one.path for one in there], ("log_p", "rank")):
        p = np.stack([np.exp(batch["log_p"].astype(np.float64)) for batch in together])
        apart = np.abs(p[others] - p[0]) if others else np.zeros((1, p.shape[1]))
        score, model = apart.max(0), np.array(others or [0])[apart.argmax(0)]
        everything = np.arange(p.shape[1])
        rank = np.stack([batch["rank"] for batch in together])
        first = together[0]
        if others:
            largest.add(
                score,
                **{name: first[name] for name in ("chat", "position", "token")},
                model=model,
                p_base=p[0],
                p=p[model, everything],
                rank_base=rank[0],
                rank=rank[model, everything],
                **{f"p{place}": values for place, values in enumerate(p)},
            )
        ended = chats.add(first["chat"], score)
        most_moved.add(ended.total, chat=ended.chat)
        measured.update(np.intersect1d(first["chat"], settings.chats).tolist())
        done += p.shape[1]
        beat(done, 2 * total)
    ended = chats.close()
    most_moved.add(ended.total, chat=ended.chat)
    return largest, most_moved.rows["chat"].tolist(), measured


def _rows(there: Sequence[Model], chosen: Sequence[int], most: int) -> list[dict[str, np.ndarray]]:
    """All columns of the chosen chats by model; whole chats, but the last one may be cut."""
    found: dict[int, list[list[dict[str, np.ndarray]]]] = {chat: [] for chat in chosen}
    done, total = 0, rows_of(there[0].path)
    for together in aligned([one.path for one in there], COLUMNS):
        for chat in chosen:
            at = np.flatnonzero(together[0]["chat"] == chat)
            if len(at):
                found[chat].append([{name: batch[name][at] for name in COLUMNS} for batch in together])
        done += len(together[0]["chat"])
        beat(total + done, 2 * total)
    parts = [piece for chat in chosen for piece in found[chat]]
    return [
        {name: np.concatenate([piece[place][name] for piece in parts])[:most] for name in COLUMNS}
        for place in range(len(there))
    ]


def _described(there: Sequence[Model], largest: Largest, written: Mapping[int, str]) -> list[dict[str, Any]]:
    if not largest.rows:
        return []
    names = [name for name in largest.rows if not name[1:].isdecimal()]
    columns = [largest.rows[name].tolist() for name in names]
    found = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    around = contexts(there[0].path, [(one["chat"], one["position"]) for one in found])
    for place, one in enumerate(found):
        one["before"] = around[one["chat"], one["position"]][0][-60:]
        one["token"] = written[one["token"]]
        one["all"] = [float(largest.rows[f"p{model}"][place]) for model in range(len(there))]
    return found


def _valued(
    there: Sequence[Model], rows: Sequence[Mapping[str, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Weight, gradient and why they are not known, by model; the base is seen by the first run's objective."""
    from evaluation.analyses._stored import weight_and_gradient

    references = {one.model: row for one, row in zip(there, rows, strict=True) if one.model in (BASE, TEACHER)}
    first = next((one.objective for one in there if one.objective), {})
    nothing = np.full(len(rows[0]["log_p"]), np.nan)
    found = []
    for one, row in zip(there, rows, strict=True):
        objective = one.objective or (first if one.model == BASE else {})
        found.append(
            weight_and_gradient(objective, row, references) if objective else (nothing, nothing, "no objective")
        )
    return found


def _page(
    there: Sequence[Model],
    chosen: Sequence[int],
    rows: Sequence[Mapping[str, np.ndarray]],
    movers: Sequence[Mapping[str, Any]],
    written: Mapping[int, str],
) -> tuple[str, dict[str, Any]]:
    valued = _valued(there, rows)
    chats = []
    for chat in chosen:
        at = np.flatnonzero(rows[0]["chat"] == chat)
        if not len(at):
            continue
        used: dict[int, int] = {}  # id -> place among the chat's texts
        tokens = [used.setdefault(one, len(used)) for one in rows[0]["token"][at].tolist()]
        values = [_cells(row, at, *two[:2], used) for row, two in zip(rows, valued, strict=True)]
        positions = rows[0]["position"][at].tolist()
        told = [written.get(one, "") for one in used]
        chats.append({"chat": chat, "positions": positions, "tokens": tokens, "texts": told, "values": values})
    shown = sum(len(one["tokens"]) for one in chats)
    data = {
        "about": (
            f"{shown} tokens of {len(chats)} held-out chats, {len(there)} models. Weight is -dL/dlog p and gradient "
            "dL/dz, both of the label, of the objective that a model was trained with, as if the text were one batch; "
            "a dash stands where the loss needs more than is kept. Hover or choose a token to see all models."
        ),
        "models": [
            {"label": one.label, "objective": str(one.objective.get("name", "")), "why": why}
            for one, (_, _, why) in zip(there, valued, strict=True)
        ],
        "movers": [{key: value for key, value in one.items() if key != "all"} for one in movers],
        "chats": chats,
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    template = files(__package__ or "").joinpath("tokens.html").read_text(encoding="utf-8")
    # Within a script element "</" would end it, and "<!--" change how the rest is read.
    return template.replace("__DATA__", text.replace("<", "\\u003c")), {"tokens": _flat(there, rows, valued, written)}


def _cells(
    row: Mapping[str, np.ndarray], at: np.ndarray, weight: np.ndarray, gradient: np.ndarray, used: dict[int, int]
) -> dict[str, list[Any]]:
    n1 = row["n1"][at].astype(np.float64)
    flat = row["n2"][at] / n1 > FLATNESS
    top = [
        [
            [used.setdefault(one, len(used)), round(float(np.exp(log)), 4)]
            for one, log in zip(ids, logs, strict=True)
            if one >= 0
        ]
        for ids, logs in zip(
            row["top_ids"][at, :SHOWN_TOP].tolist(), row["top_log_p"][at, :SHOWN_TOP].tolist(), strict=True
        )
    ]
    return {
        "p": _rounded(np.exp(row["log_p"][at].astype(np.float64))),
        "rank": row["rank"][at].tolist(),
        "entropy": _rounded(row["entropy"][at]),
        "n1": _rounded(n1),
        "plateau": np.where(flat, plateau_of(n1), 0).tolist(),
        "weight": _rounded(weight[at]),
        "gradient": _rounded(gradient[at]),
        "top": top,
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    """To four digits; None where a value is not known."""
    return [float(f"{one:.4g}") if np.isfinite(one) else None for one in values.astype(np.float64).tolist()]


def _flat(there: Sequence[Model], rows: Sequence[Mapping[str, np.ndarray]], valued: Any, written: Any) -> Any:
    import pyarrow as pa

    parts = []
    for one, row, (weight, gradient, _) in zip(there, rows, valued, strict=True):
        n = len(row["log_p"])
        parts.append(
            pa.table(
                {
                    "model": pa.array([one.label] * n, pa.string()),
                    **{name: row[name] for name in ("chat", "position", "token")},
                    "text": pa.array([written.get(token, "") for token in row["token"].tolist()], pa.string()),
                    "p": np.exp(row["log_p"].astype(np.float64)),
                    **{name: row[name] for name in ("rank", "entropy", "n1")},
                    "weight": pa.array(weight, from_pandas=True),
                    "gradient": pa.array(gradient, from_pandas=True),
                }
            )
        )
    return pa.concat_tables(parts)


def _table(there: Sequence[Model], movers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [one["chat"], one["position"], one_line(one["before"]), one_line(one["token"]), there[one["model"]].label,
         one["p_base"], one["p"], one["rank_base"], one["rank"]]
        for one in movers
    ]  # fmt: skip
    columns = ("chat", "position", "before", "token", "model", "p base", "p", "rank base", "rank")
    return Table("Largest movers", columns, rows, "Held-out tokens whose probability moved furthest from the base's.")


def _sentence(there: Sequence[Model], movers: Sequence[Mapping[str, Any]]) -> str:
    if not movers:
        return "The base model alone: no token has moved."
    first = movers[0]
    return (
        f"The token that moves furthest is {one_line(first['token'])!r} in chat {first['chat']}: from "
        f"{first['p_base']:.3f} to {first['p']:.3f} in {there[first['model']].label}; "
        "pages/tokens.html has every token."
    )


def _draw(there: Sequence[Model], movers: Sequence[Mapping[str, Any]], figure: Any) -> None:
    from evaluation.analyses import _style

    figure.set_size_inches(7.2, 0.2 * len(movers) + 1.1)
    axis = figure.subplots()
    names = shortened([one.label for one in there])
    drawn = [place for place, one in enumerate(there) if "@" not in one.model]  # the page has every checkpoint
    shades = colours(there)
    for place in drawn:
        name, model = names[place], there[place]
        look: dict[str, Any] = {"color": shades[model.label], "marker": "^" if model.model == "rl" else "o"}
        if model.model == BASE:
            look = {"facecolors": "none", "edgecolors": "black"}
        axis.scatter([one["all"][place] for one in movers], range(len(movers)), s=26, label=name, zorder=3, **look)
    for at, one in enumerate(movers):
        axis.plot([min(one["all"]), max(one["all"])], [at, at], color="#cccccc", linewidth=1, zorder=1)
    labels = [f"{one_line(one['before'])[-22:]}[{one_line(one['token'])}]".replace("$", r"\$") for one in movers]
    axis.set_yticks(range(len(movers)), labels, fontsize=6.5, family="monospace")
    axis.invert_yaxis()
    axis.set(xlabel="probability of the token", xlim=(-0.02, 1.02))
    _style.legend(axis)


tokens = Tokens()

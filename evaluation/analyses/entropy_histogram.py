"""How certain a model is of held-out text: the histogram of its token entropies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses._lines import Line, lines, over_seeds
from evaluation.analyses.contract import Analysis, Figure, Findings, Given, Table

COLUMNS = ("line", "model", "from", "to", "share", "low", "high", "seeds")
NOTE = "Share of held-out response tokens whose entropy, in nats, is in the bin; means over the seeds, 95% intervals."
Bins = list[dict[str, float]]


class Settings(BaseModel):
    """models: whose histograms to show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = ("base", "sft")


class EntropyHistogram(Analysis):
    """A histogram of every line, all in one figure and table."""

    name = "entropy_histogram"
    measured = ("held_out",)
    section = Settings

    def run(self, inputs: Sequence[Given], settings: Settings) -> Findings:
        """See `Analysis.run`."""
        there = lines(given for given in inputs if given.name == "held_out" and given.model in settings.models)
        if not there:
            raise ConfigError(
                f"entropy_histogram: no held-out chats measured of {', '.join(settings.models)}; set "
                "eval.held_out_chats, or analyses' models"
            )
        edges = there[0].measured[0]["entropy_histogram"]["edges"]
        found = [(line, _bins(line)) for line in there]
        rows = [
            [
                line.title,
                line.model,
                low,
                high,
                one["value"],
                one["low"],
                one["high"],
                len(line.measured),
            ]
            for line, bins in found
            for low, high, one in zip(edges, [*edges[1:], None], bins, strict=True)
        ]
        title = "Token entropies on held-out chats"
        figure = Figure(partial(_draw, found, edges), f"{title}, 95% intervals.")
        least, bins = max(found, key=lambda pair: pair[1][0]["value"])
        sentence = (
            f"{least.label} is the most certain of held-out text: {bins[0]['value']:.1%} of its tokens are below "
            f"{edges[1]:g} nats."
        )
        return Findings(
            {self.name: Table(title, COLUMNS, rows, NOTE)},
            {self.name: figure},
            sentence,
        )


def _bins(line: Line) -> Bins:
    shares = [one["entropy_histogram"]["shares"] for one in line.measured]
    return [over_seeds(same) for same in zip(*shares, strict=True)]


def _draw(found: list[tuple[Line, Bins]], edges: list[float], figure: Any) -> None:
    axis = figure.subplots()
    for line, bins in found:
        _style.band(axis, range(len(edges)), bins, color=line.colour, label=line.label)
    axis.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
    axis.set(xlabel="token entropy, from (nats)", ylabel="share of held-out tokens, 95% intervals")
    _style.legend(axis)


entropy_histogram = EntropyHistogram()

"""The held-out token tables of several models: which is the base, which are a run's checkpoints and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from evaluation.analyses import _style
from evaluation.analyses.contract import Given

BASE, TEACHER = "base", "teacher"


@dataclass(frozen=True)
class Model:
    """One model's tokens. line, seed, model: as of `Given`. objective: of its branch, empty for the base."""

    path: Path
    line: str
    seed: str
    model: str
    objective: dict[str, Any]

    @property
    def label(self) -> str:
        """As a legend names it."""
        if self.model in (BASE, TEACHER):
            return self.model
        return " ".join(filter(None, (self.line, self.seed, self.model)))

    @property
    def run(self) -> str:
        """The branch that it is a checkpoint of."""
        return " ".join(filter(None, (self.line, self.seed)))

    @property
    def order(self) -> tuple[int, float, str]:
        """Where it stands in its run: the base, SFT checkpoints by step, the tuned model, then RL's."""
        phase, _, step = self.model.partition("@")
        at = float(step) if step.isdecimal() else float("inf")
        return ({BASE: 0, "sft": 1}.get(phase, 2), at, self.model)


def models(name: str, inputs: Iterable[Given]) -> list[Model]:
    """The models whose held-out tokens are among the inputs of analysis `name`: the base first, then run by run.

    Raises ConfigError where there is none.
    """
    found: dict[Path, Model] = {}
    for given in inputs:
        if given.kind == "generate" and given.name == "held_out":
            model = Model(given.path, given.line, given.seed, given.model, dict(given.objective))
            found.setdefault(given.path.resolve(), model)
    if not found:
        raise ConfigError(f"{name}: no held-out tokens of any model; set eval.held_out_chats above 0")
    runs = list(dict.fromkeys(model.run for model in found.values()))
    return sorted(found.values(), key=lambda one: (one.model != BASE, runs.index(one.run), one.order))


def runs(name: str, inputs: Iterable[Given]) -> tuple[Model, dict[str, list[Model]]]:
    """The base, and by run the models that came of it, in order. Raises ConfigError where one of the two is missing."""
    there = models(name, inputs)
    base = next((one for one in there if one.model == BASE), None)
    if base is None:
        raise ConfigError(f"{name}: no held-out tokens of the base model, against which all others are compared")
    found: dict[str, list[Model]] = {}
    for one in there:
        if one.model not in (BASE, TEACHER):
            found.setdefault(one.run, []).append(one)
    if not found:
        raise ConfigError(f"{name}: the base model alone; run sft, and name sft.publish_steps to see its checkpoints")
    return base, found


def colours(found: Iterable[Model]) -> dict[str, str]:
    """By label the colour of each model, the same in every picture: one for each run, and those of base and teacher."""
    own = {BASE: _style.GREY, TEACHER: _style.BLACK}
    runs: dict[str, str] = {}
    for one in found:
        if one.model not in own:
            own[one.label] = runs.setdefault(one.run, _style.colour(len(runs)))
    return own


def one_line(text: str) -> str:
    """Text for a table cell: line breaks are shown as a sign."""
    return text.replace("\n", "\u23ce").replace("\t", "\u21e5")


def shortened(names: Sequence[str], most: int = 28) -> list[str]:
    """Names for an axis, cut in the middle where they are long."""
    return [name if len(name) <= most else f"{name[: most // 2 - 1]}\u2026{name[-most // 2 :]}" for name in names]

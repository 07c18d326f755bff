"""Several sources that feed one part: the files they need, what identifies them, which rows each gives.

launch asks `inputs` and `identity` when it plans; the stage asks `open_feeds` with the files in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.user_code import code_digest
from data_prep.sources import load
from data_prep.sources.contract import Row, Source


class Feed(BaseModel):
    """One of the sources that a part is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str = Field(description="a source of data_prep.sources, or the dotted path of one's own")
    rows: int | None = Field(None, description="rows of the training part or benchmark, drawn by data.seed; all", gt=0)
    weight: float = Field(1.0, description="every row that many times; a fraction takes that share of them", gt=0)
    settings: dict[str, Any] = Field({}, description="the source's own settings")


def section_of(feed: Any) -> BaseModel:
    """The feed's settings as its source's section. Raises ConfigError (one line) for settings that do not fit."""
    try:
        return load(feed.source).section.model_validate(feed.settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"data source {feed.source}: {field}: {first['msg']}") from None


def graders(feeds: Sequence[Any], part: str) -> set[str]:
    """The graders that rows of `part` name (see `Source.graders`)."""
    return {name for feed in feeds for name in load(feed.source).graders(section_of(feed), part)}


def inputs(feeds: Sequence[Any], part: str) -> dict[str, str]:
    """Name -> path or hub name of the outside files that the feeds of `part` need.

    Args:
        part: `sft`, `rl`, `pretrain` or `benchmark/<name>`.
    """
    found: dict[str, str] = {}
    for place, feed in enumerate(feeds):
        wanted = load(feed.source).inputs(section_of(feed), part)
        found |= {_input(name, place): path for name, path in wanted.items()}
    return found


def _input(name: str, place: int) -> str:
    return name if place == 0 else f"{name}_{place + 1}"


def identity(feeds: Sequence[Any], part: str) -> list[dict[str, Any]]:
    """What of the feeds bears on the rows of `part`, beside their files and data.seed: names, versions, settings."""
    found = []
    for feed in feeds:
        source = load(feed.source)
        own = {"source": source.name, "version": source.version, "code": code_digest(feed.source)}
        drawn = {"rows": feed.rows, "weight": feed.weight}
        found.append({**own, **drawn, "settings": source.identity(section_of(feed), part)})
    return found


def rough_rows(feeds: Sequence[Any], part: str) -> float | None:
    """About how many rows `part` will have for training or measuring; None where a source cannot tell."""
    total = 0.0
    for feed in feeds:
        rows = load(feed.source).rough_rows(section_of(feed), part)
        rows = feed.rows if feed.rows is not None else rows
        if rows is None:
            return None
        total += rows * feed.weight
    return total


def rough_tokens(feeds: Sequence[Any], max_length: int) -> tuple[float, float, float] | None:
    """About how many chats, tokens and response tokens `sft` will have; None where a source cannot tell."""
    total = (0.0, 0.0, 0.0)
    for feed in feeds:
        counts = load(feed.source).rough_tokens(section_of(feed), max_length)
        if counts is None:
            return None
        share = feed.weight * (1.0 if feed.rows is None else min(1.0, feed.rows / counts[0]))
        total = (total[0] + share * counts[0], total[1] + share * counts[1], total[2] + share * counts[2])
    return total


@dataclass(frozen=True)
class OpenFeed:
    """A feed with its files: `label` is the source's name, made unique among the feeds."""

    label: str
    source: Source
    section: Any
    inputs: Mapping[str, Path]
    seed: int
    limit: int | None
    weight: float

    def names(self) -> list[str]:
        """Names of the rows that there are (`sft_train`, `benchmark/<name>`, ...)."""
        return list(self.source.parts(self.section, self.inputs, self.seed))

    def extent(self, name: str) -> int:
        """The last position of the rows called `name`; 0 if it is not known."""
        return self.source.extent(self.section, self.inputs, name)

    def rows(self, name: str) -> Iterator[Row]:
        """All rows, in the source's order."""
        return self.source.parts(self.section, self.inputs, self.seed)[name]

    def drawn(self, name: str) -> Iterator[tuple[Row, int]]:
        """The rows that the feed asks for, in the source's order, each with the number of its copies (at least 1).

        A limit or a fraction reads the source twice: rows are counted, places are drawn, nothing is kept.

        Raises:
            ConfigError: fewer rows than the limit.
        """
        whole, share = divmod(self.weight, 1)
        if self.limit is None and not share:
            for row in self.rows(name):
                yield row, int(whole)
            return
        total = sum(1 for _ in self.rows(name))
        if self.limit is not None and self.limit > total:
            raise ConfigError(f"data source {self.label}: {total} rows in {name}, rows={self.limit} asked; lower rows")
        rng = Random(f"rows {self.label} {name} {self.seed}")
        chosen = range(total) if self.limit is None else sorted(rng.sample(range(total), self.limit))
        once_more = set(rng.sample(chosen, round(share * len(chosen))))
        kept = set(chosen)
        for place, row in enumerate(self.rows(name)):
            copies = int(whole) + (place in once_more)
            if place in kept and copies:
                yield row, copies


def open_feeds(feeds: Sequence[Any], part: str, given: Mapping[str, Path], seed: int) -> list[OpenFeed]:
    """The feeds of `part`, with what `inputs` named found in `given`. Raises ConfigError: a file is missing."""
    found: list[OpenFeed] = []
    for place, feed in enumerate(feeds):
        source, section = load(feed.source), section_of(feed)
        paths = {name: Path(given[_input(name, place)]) for name in source.inputs(section, part)}
        for path in paths.values():
            if not path.exists():
                raise ConfigError(f"{path}: no such file")
        same = sum(earlier.source.name == source.name for earlier in found)
        label = source.name if not same else f"{source.name}_{same + 1}"
        found.append(OpenFeed(label, source, section, paths, seed, feed.rows, feed.weight))
    return found

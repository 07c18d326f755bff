"""What an analysis is: it reads the artifacts of several branches and finds tables, figures and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Given:
    """One artifact.

    path: its directory. kind: of the stage that made it. line: its branch, without the seed; seed: of that branch.
    model: whose it is, `base`, `sft`, `rl` or other. name: of what was measured, a benchmark's, a task's or `held_out`;
    of another stage its role in the branch (`base` and `teacher` of caches). objective: of that branch, name and
    settings; empty for what precedes it.
    """

    path: Path
    kind: str
    line: str
    seed: str
    model: str
    name: str
    objective: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of JSON values under `columns`; `note` says what to know of them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """draw: puts it on an empty matplotlib figure; plotting libraries are imported there at the earliest."""

    draw: Callable[[Canvas], None]
    caption: str = ""


@dataclass(frozen=True)
class Findings:
    """What an analysis found, by name (which are file names), and in one sentence.

    tables and figures: the report shows them. data: what figures were drawn from and no report shows. pages: HTML.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    sentence: str = ""
    data: Mapping[str, pa.Table] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)


class Analysis:
    """Base class; a file holds one instance.

    name: as recipes name it. version: to be raised with every change of what it finds. needs: kinds of the stages whose
    artifacts it reads; none: it reads nothing. measured: of scores and answers those of benchmark, task or held_out;
    none named: all. also: whose held-out chats it looks at beside those of measured models: `checkpoints` in
    `sft.publish_steps`, the `teacher`.
    section: type of its settings, if it has any; a field `target` that is left "" becomes the recipe's `eval.target`.
    """

    name: str
    version: int = 1
    needs: tuple[str, ...] = ("measure",)
    measured: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    section: type[BaseModel] | None = None

    def run(self, inputs: Sequence[Given], settings: Any) -> Findings:
        """The findings of these artifacts, in the order given.

        settings: a `section`, or None. `evaluation.analyses.beat(done, total)` is progress and sign of life. Raises
        ConfigError where there is nothing of what it looks for.
        """
        raise NotImplementedError

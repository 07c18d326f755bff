"""What a data set offers: a source is one file, and the rows come as people have them.

Parts are named by artifact: `sft`, `rl`, `pretrain` and `benchmark/<name>`. `parts` cuts them further: `sft` gives
`sft_train` and perhaps `sft_val`, `rl` gives `rl_train` and perhaps `rl_val`, `pretrain` gives `pretrain/<skill>`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError


class RowError(ConfigError):
    """A bad row; `reason` is the word under which dropped rows are counted."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    where: its place (file and line), the start of every message about it; its last word numbers a row without an id.
    value: chats {messages, id?, critical_spans?, defect?}; prompts and problems {prompt, answer, grader?, id?};
        pretraining text {messages, style}; or the RowError of a row that cannot be read.
    position: how much of the part is read with it, of `Source.extent`.
    """

    where: str
    value: Any
    position: int = 0


class NoSettings(BaseModel):
    """The section of a source without settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(ABC):
    """One data set, or a way to read one's own.

    name: what a recipe calls it. version: bumped when it gives other rows for equal settings; it identifies only what
    was made from it. section: its own settings, frozen and without unknown keys. reference: paper and table, or "".
    """

    name: str
    version: int = 1
    section: type[BaseModel] = NoSettings
    reference: str = ""

    def inputs(self, section: Any, part: str) -> dict[str, str]:
        """Name -> path or hub name of the outside files that `part` needs. Raises ConfigError naming a missing one."""
        return {}

    @abstractmethod
    def parts(self, section: Any, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        """Name -> rows of every part that there is; each is computed when it is read, and alone.

        inputs: local copies of what `inputs` named, of the parts that are asked for. seed: `data.seed`.
        """

    def unpinned(self, section: Any) -> str:
        """The hub name that it reads without a commit, which `run.pinned` refuses; "" where there is none."""
        return ""

    def benchmarks(self, section: Any) -> list[str]:
        """Names of the benchmarks that it can give."""
        return []

    def identity(self, section: Any, part: str) -> dict[str, Any]:
        """The settings that the rows of `part` depend on, and no other; files are identified by what is in them."""
        return section.model_dump(mode="json")

    def graders(self, section: Any, part: str) -> Collection[str]:
        """Graders that rows of `part` (rl, or a benchmark) name, as far as they are known before it is prepared.

        The code of those that are the user's own identifies the scores; our own have versions.
        """
        return ()

    def extent(self, section: Any, inputs: Mapping[str, Path], name: str) -> int:
        """The last `Row.position` of the rows called `name`; 0 if it is not known."""
        return 0

    def rough_rows(self, section: Any, part: str) -> float | None:
        """About how many rows `part` has for training or measuring; None if nothing is known before it is made."""
        return None

    def rough_tokens(self, section: Any, max_length: int | None = None) -> tuple[float, float, float] | None:
        """About how many chats, tokens and response tokens `sft` has; None if nothing is known."""
        return None

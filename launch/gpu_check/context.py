"""What an item's process is told, and where it writes what it finds."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
BOUNDS = ("at_most", "at_least")


PACKAGES = ("common", "launch", "data_prep", "sft_objectives", "rl_stage", "evaluation", "verl_cpu")


class NotRun(Exception):
    """A part that cannot be measured here; the message says why."""


class NotYet(NotRun):
    """A part that a later run may measure: something has not arrived, or the time is over."""


@dataclass
class Context:
    """Of one item.

    device: cuda or cpu. tiny: sizes for a rehearsal, whose speeds mean nothing. out: the check's directory, which stays
    between runs. until: on the clock of time.monotonic, when the process will be ended. failed: parts that raised.
    """

    item: int
    device: str
    tiny: bool
    out: Path
    until: float
    done: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Path:
        """The item's findings, one JSON object a line."""
        return self.out / f"item_{self.item}.jsonl"

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()

    def scratch(self, name: str) -> Path:
        """A directory for large files, which nobody needs afterwards."""
        path = self.out / "scratch" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def measure(self, name: str, part: Callable[[], Figures], **limits: Mapping[str, float]) -> None:
        """Write the figures of a part, or why there are none; a part that an earlier run has measured is left out.

        limits: figure -> {"at_most": x} or {"at_least": x}, what is asked of it; in a rehearsal nothing is.
        """
        if name in self.done:
            return
        started = time.monotonic()
        row: dict[str, Any] = {"item": self.item, "part": name}
        try:
            figures = dict(part())
            row["figures"] = figures
            asked = {} if self.tiny else limits
            row["asked"] = [
                {"figure": figure, "value": figures[figure], bound: limit, "met": _met(figures[figure], bound, limit)}
                for figure, bounds in asked.items()
                for bound, limit in bounds.items()
            ]
        except NotRun as error:
            row |= {"not_run": str(error), "later": isinstance(error, NotYet)}
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name in PACKAGES:
                self._note_failure(row, error)
            else:
                row |= {"not_run": f"{name} is not installed", "later": True}
        except Exception as error:  # the other parts are measured all the same
            self._note_failure(row, error)
        row["seconds"] = round(time.monotonic() - started, 2)
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _note_failure(self, row: dict[str, Any], error: Exception) -> None:
        traceback.print_exc()
        row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        self.failed.append(row["part"])

    def ceiling(self, figure: str) -> float:
        """A ceiling that item 1 found. Raises NotRun without one."""
        for row in read_rows(self.out / "item_1.jsonl"):
            if figure in row.get("figures", {}):
                return row["figures"][figure]
        raise NotRun(f"item 1 has not measured {figure}")


def _met(value: float | None, bound: str, limit: float) -> bool | None:
    if value is None:
        return None
    return value <= limit if bound == "at_most" else value >= limit


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an item so far; the last of each part counts, and a line that was cut is left out."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                found[row["part"]] = row
    return list(found.values())

"""The curve of one RL run: what each step measured."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping

from common.files import write_json_lines


class Curve:
    """curve.jsonl: one row per logged step, {"step": n, "<metric>": float}; survives a kill and goes on from a step."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line that a kill cut short
                self.rows[row["step"]] = row

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that were not checkpointed and will be run again."""
        self.rows = {number: row for number, row in self.rows.items() if number <= step}
        self._write()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Merge finite values into the row of `step`."""
        row = self.rows.setdefault(step, {"step": step})
        row.update({name: float(value) for name, value in metrics.items() if math.isfinite(value)})
        self._write()

    def _write(self) -> None:
        write_json_lines(self.path, [self.rows[step] for step in sorted(self.rows)])

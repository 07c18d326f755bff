"""The training curve on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch.distributed as dist

from common.files import write_text


class Curve:
    """The training curve on disk, one JSON row a step; rows after the step that training resumes from are dropped."""

    def __init__(self, path: Path, resume_step: int, is_writer: bool) -> None:
        self.path, self.is_writer = path, is_writer
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines[:resume_step]]
        dist.barrier()
        if is_writer:
            write_text(path, "".join(line + "\n" for line in lines[:resume_step]))

    def append(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self.is_writer:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def last(self) -> dict[str, float]:
        return self.rows[-1]

    def best_step(self) -> int | None:
        """The step of the lowest validation loss so far, the earliest of equals."""
        validated = [row for row in self.rows if "val_loss" in row]
        return min(validated, key=lambda row: row["val_loss"])["step"] if validated else None

"""Checkpoints that are there whole or not at all, and are found again after a kill."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch.distributed as dist
from verl.utils.checkpoint import CheckpointHandler
from verl.utils.checkpoint.checkpoint_handler import extract_step

from common.files import write_json

COMPLETE = "complete.json"


class Checkpoints(CheckpointHandler):
    """verl's handler, with a record written last: a checkpoint without it, or with other file sizes, does not exist.

    Older checkpoints are removed after the new one is complete. A checkpoint of another number of processes is passed
    over, since verl cannot load it. verl stores an exhausted loader at the end of an epoch, with which the next epoch
    would be skipped; that state is not loaded.
    """

    def __init__(self, *args, steps_per_epoch: int, keep: int, **kwargs) -> None:
        super().__init__(*args, max_ckpt_to_keep=None, **kwargs)
        self.steps_per_epoch, self.keep = steps_per_epoch, keep
        self.directory = Path(self.default_local_dir)

    def save_checkpoint(self, step: int) -> None:
        """Save step `step`; returns on every rank when the checkpoint is complete."""
        path = self.directory / f"global_step_{step}"
        if self.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        dist.barrier()
        super().save_checkpoint(step)
        if self.rank == 0:
            sizes = {}
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
                sizes[str(file.relative_to(path))] = file.stat().st_size
            write_json(path / COMPLETE, {"processes": dist.get_world_size(), "sizes": sizes}, durable=True)
            for older in self.complete()[self.keep :]:
                shutil.rmtree(older)
        dist.barrier()

    def complete(self) -> list[Path]:
        """Checkpoints that can be loaded, newest first."""
        paths = sorted(
            self.directory.glob("global_step_*"), key=lambda path: extract_step(path.name) or 0, reverse=True
        )
        return [path for path in paths if self._is_complete(path)]

    def _is_complete(self, path: Path) -> bool:
        try:
            record = json.loads((path / COMPLETE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        files = {name: path / name for name in record["sizes"]}
        return record["processes"] == dist.get_world_size() and all(
            file.is_file() and file.stat().st_size == record["sizes"][name] for name, file in files.items()
        )

    def _find_latest_checkpoint(self) -> str | None:
        found = [str(path) for path in self.complete()[:1]] if self.rank == 0 else []
        choice = [found[0] if found else None]
        dist.broadcast_object_list(choice, src=0)
        return choice[0]

    def _load_dataloader_state(self, checkpoint_path: str) -> None:
        if (extract_step(checkpoint_path) or 0) % self.steps_per_epoch:
            super()._load_dataloader_state(checkpoint_path)

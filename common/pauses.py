"""What a stage that pauses leaves in its scratch directory: its scores at the steps at which it has paused.

The stage that writes it and the selection that reads it share this file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.files import read_json, write_json

PAUSES = "pauses.json"


def note_pause(scratch: Path, step: int, scores: Mapping[str, float]) -> None:
    """Adds the scores at a step, durably: whoever reads them knows that the run can go on from there."""
    found = {str(number): row for number, row in pauses(scratch).items()}
    write_json(scratch / PAUSES, {**found, str(step): dict(scores)}, durable=True)


def pauses(scratch: Path) -> dict[int, dict[str, float]]:
    """Scores by the step of each pause; empty where the stage has not paused."""
    return {int(step): row for step, row in (read_json(scratch / PAUSES) or {}).items()}

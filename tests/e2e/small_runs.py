"""Runs of the small world through the command line, and what they have left in the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from small_world import SMALL

ROOT = Path(__file__).resolve().parents[2]


def run_small(root: Path, *overrides: str, seconds: float) -> None:
    """Runs the micro-world with these overrides, and what of SMALL they leave; fails with the end of its log."""
    log = root.with_suffix(".log")
    given = {text.partition("=")[0] for text in overrides}
    small = [text for text in SMALL if text.partition("=")[0] not in given]
    with log.open("ab") as file:
        done = subprocess.run(
            [sys.executable, "-m", "launch", "run", "microworld", *small, f"run.root={root}", *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
            timeout=seconds,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-4000:]


def attempts(root: Path, kind: str) -> list[tuple[str, str]]:
    """Fingerprint and outcome of every attempt at a kind of stage, oldest first."""
    rows = [json.loads(line) for line in (root / "costs.jsonl").read_text().splitlines()]
    return [(row["fingerprint"], row["outcome"]) for row in rows if row["kind"] == kind]

"""The `sft` stage: one process a device, then the artifact. Imports no torch."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.files import write_json, write_json_lines
from common.settings import describe

from .config import verl_config
from .ranks import run_ranks


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Fine-tune `inputs["model"]` on `inputs["data"]` with the objective of the settings.

    Other inputs: base_cache, teacher_cache, checkpoint_cache (reference caches); base, teacher, checkpoint (live
    models). Writes checkpoints/step_<n>/, checkpoints.json, metrics.json, curve.jsonl and timings.jsonl to `output`. A
    killed run continues from the last complete checkpoint in `scratch` and ends with the same bytes. Raises ConfigError
    for settings or data that are wrong, RuntimeError if a process failed.
    """
    verl_config(settings, inputs, scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    result = scratch / "result.json"
    result.unlink(missing_ok=True)
    job = {
        "settings": describe(settings),
        "inputs": {name: str(path) for name, path in inputs.items()},
        "scratch": str(scratch),
    }
    write_json(scratch / "job.json", job)
    started = time.monotonic()
    run_ranks(settings, scratch / "job.json", report)
    outcome = json.loads(result.read_text())
    _assemble(outcome, scratch, output, seconds=time.monotonic() - started)


def _assemble(outcome: Mapping[str, Any], scratch: Path, output: Path, seconds: float) -> None:
    for step in outcome["steps"]:
        source = scratch / "exports" / f"step_{step}"
        shutil.copytree(source, output / "checkpoints" / source.name, copy_function=_link_or_copy, dirs_exist_ok=True)
    shutil.copyfile(scratch / "curve.jsonl", output / "curve.jsonl")
    checkpoints = {name: outcome[name] for name in ("best", "final", "steps")}
    write_json(output / "checkpoints.json", checkpoints)
    write_json(output / "metrics.json", outcome["metrics"])
    write_json_lines(output / "timings.jsonl", [{"seconds": round(seconds, 3), **outcome["timings"]}])


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

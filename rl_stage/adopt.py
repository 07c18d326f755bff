"""The stage `adopt`: copies a model that was trained elsewhere into an artifact, after the gate that RL has."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.files import write_json
from common.models import FILES, tensor_headers
from rl_stage.handoff import check_model

STEP = 0  # nothing was trained here
TEMPLATES = "additional_chat_templates"


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Write `inputs["model"]` to `output/checkpoints/step_0` as it is, with `checkpoints.json` and `metrics.json`.

    Files that no model is read from (optimizer states, pickled weights, logs) are named in the log and not copied.
    Raises ConfigError for a model that is not complete or whose tokens and chat template RL could not use.
    """
    model = inputs["model"]
    check_model(model, settings)
    files = sorted({file for kind in FILES for file in model.glob(kind) if file.is_file()})
    target = output / "checkpoints" / f"step_{STEP}"
    target.mkdir(parents=True)
    for number, file in enumerate(files):
        report(number, len(files))
        shutil.copy(file, target / file.name)
    if (model / TEMPLATES).is_dir():
        shutil.copytree(model / TEMPLATES, target / TEMPLATES)
    left = sorted({path.name for path in model.iterdir()} - {path.name for path in target.iterdir()})
    print(f"adopted {len(files)} files of {settings.source}; not copied: {', '.join(left) or 'none'}")
    write_json(output / "checkpoints.json", {"best": STEP, "final": STEP, "steps": [STEP]})
    count = sum(math.prod(header.shape) for header in tensor_headers(target).values())
    write_json(output / "metrics.json", {"parameters": count})

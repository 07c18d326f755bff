"""Checkpoints of one RL run: what a resumed run starts from, and which steps are published."""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any

from common.chats import template_arguments
from common.files import read_json, write_json
from rl_stage.curve import Curve
from rl_stage.export import LORA_META, finish_export


def repair_checkpoints(directory: pathlib.Path, keep: int) -> int:
    """Make `directory` what verl's resume expects after a kill at any moment; returns the step to resume from, or 0.

    verl writes its tracker file last and not atomically, and deletes only parts of old checkpoints. A checkpoint is
    complete when its data loader's state, written after everything else, is a whole file.
    """
    complete: dict[int, pathlib.Path] = {}
    for path in directory.glob("global_step_*"):
        if zipfile.is_zipfile(path / "data.pt") and (path / "actor" / "huggingface").is_dir():
            complete[int(path.name.removeprefix("global_step_"))] = path
        else:
            shutil.rmtree(path)
    for step in sorted(complete)[:-keep]:
        shutil.rmtree(complete.pop(step))
    tracker = directory / "latest_checkpointed_iteration.txt"
    if not complete:
        tracker.unlink(missing_ok=True)
        return 0
    tracker.write_text(str(max(complete)))
    return max(complete)


class Exports:
    """Checkpoints to publish: Hugging Face directories copied out of verl's checkpoints, which are rotated."""

    def __init__(self, scratch: pathlib.Path, settings: Any, curve: Curve):
        self.checkpoints, self.directory = scratch / "checkpoints", scratch / "published"
        self.timings = scratch / "timings.jsonl"
        self.settings, self.curve = settings, curve
        self.directory.mkdir(exist_ok=True)

    def timing(self, **values: float) -> None:
        """Append a row of wall times (never part of the payload)."""
        with self.timings.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def validated(self) -> dict[int, float]:
        """Validation pass rate by step, without the policy RL started from."""
        return {
            step: row["validation_pass_rate"]
            for step, row in self.curve.rows.items()
            if step > 0 and "validation_pass_rate" in row
        }

    def best_step(self) -> int:
        """The step with the best validation; the earliest of equals; the final one where none was validated."""
        rates = self.validated()
        return min(rates, key=lambda step: (-rates[step], step)) if rates else self.settings.rl.steps

    def is_best(self, step: int, rate: float) -> bool:
        """Whether a validation pass rate beats those of all earlier steps."""
        return all(rate > other for number, other in self.validated().items() if number < step)

    def wanted(self) -> set[int]:
        """Steps to publish, as far as is known now."""
        return {self.settings.rl.steps, self.best_step(), *self.settings.rl.publish_steps}

    def path(self, step: int) -> pathlib.Path:
        """Where the copy of a step is kept until it is published."""
        return self.directory / f"step_{step}"

    def keep(self, step: int) -> None:
        """Copy the Hugging Face directory of verl's checkpoint of `step` if it is wanted; drop what no longer is."""
        wanted = self.wanted()
        for old in self.directory.glob("step_*"):
            if int(old.name.removeprefix("step_")) not in wanted:
                shutil.rmtree(old)
        source = self.checkpoints / f"global_step_{step}" / "actor"
        if step not in wanted or self.path(step).exists() or not source.exists():
            return
        temporary = self.directory / f".step_{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source / "huggingface", temporary)
        if (source / LORA_META).exists():
            shutil.copy(source / LORA_META, temporary)
        temporary.replace(self.path(step))


def publish(
    settings: Any,
    inputs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    scratch: pathlib.Path,
    curve: Curve,
    exports: Exports,
) -> None:
    """Write the model artifact: checkpoints that reload, checkpoints.json, metrics.json, curve.jsonl, timings.jsonl.

    Raises RuntimeError for a checkpoint that does not reload, or where nothing was validated.
    """
    steps = sorted(exports.wanted())
    for step in steps:
        finish_export(
            exports.path(step),
            inputs["model"],
            output / "checkpoints" / f"step_{step}",
            chat_template=settings.model.chat_template,
            template_arguments=template_arguments(settings.model),
            trust_remote_code=settings.model.trust_remote_code,
        )
    listing = {"final": settings.rl.steps, "best": exports.best_step(), "steps": steps}
    write_json(output / "checkpoints.json", listing)
    last = curve.rows[settings.rl.steps]
    if "validation_pass_rate" not in last:
        raise RuntimeError(f"{inputs['data'] / 'rl_val.parquet'}: no response to it was scored after training")
    metrics = {name: value for name, value in last.items() if name != "step"}
    start = curve.rows.get(0, {}).get("validation_pass_rate")
    if start is not None:
        metrics["validation_pass_rate_before"] = start
        metrics["validation_pass_rate_gain"] = last["validation_pass_rate"] - start
    metrics["prompts_dropped"] = float(read_json(scratch / "prompts.json")["dropped"])
    write_json(output / "metrics.json", metrics)
    shutil.copy(curve.path, output / "curve.jsonl")
    if exports.timings.exists():
        shutil.copy(exports.timings, output / "timings.jsonl")

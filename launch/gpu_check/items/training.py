"""Item 5: SFT of a 0.5B random Qwen2 through verl's engine: fused and on whole logits, packed and padded."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from launch.gpu_check.context import Context, NotRun, read_rows
from launch.gpu_check.items.models import random_model_directory, write_chats

VARIANTS = {
    "packed varlen, fused": {"attention": "varlen", "packed": True, "fused": "auto"},
    "packed varlen, whole logits": {"attention": "varlen", "packed": True, "fused": "off"},
    "padded sdpa, fused": {"attention": "sdpa", "packed": False, "fused": "auto"},
}
FIRST = "packed varlen, fused"
STEPS, BATCH = 14, 16
WARM = 2  # steps that warm up
FLOOR = {"cpu": 1e-4, "cuda": 2e-2}  # relative difference of losses of one batch: float32, bfloat16


def run(context: Context) -> None:
    for name, how in VARIANTS.items():
        context.measure(name, lambda how=how, name=name: _train(context, name, how))
    context.measure("losses", lambda: _agreement(context))


def settings_of(context: Context, how: dict[str, Any]) -> Any:
    """Settings of the stage `sft`. A rehearsal packs with the kernel's reference, which recipes refuse on a CPU."""
    import yaml

    from launch.recipe.recipe import Recipe
    from launch.stages.sft import SftSettings

    recipes = Path(__file__).resolve().parents[3] / "recipes"
    cpu = context.device == "cpu"
    platform = yaml.safe_load((recipes / "platform" / f"{'cpu' if cpu else 'gpu'}.yaml").read_text())
    longest = 256 if context.tiny else 2048
    recipe: Any = Recipe.model_validate(
        {
            "model": {"path": "unused", "dtype": "float32" if cpu else "bfloat16"},
            "data": {"max_length": longest},
            "sft": {
                "steps": WARM + 3 if context.tiny else STEPS,
                "batch_size": 4 if context.tiny else BATCH,
                "tokens_per_micro_batch": longest if context.tiny else 8 * longest,
                "gradient_checkpointing": not context.tiny,
                "save_every": 1000,
                "packed": how["packed"],
                "fused": how["fused"],
            },
            "platform": platform,
        }
    )
    return SftSettings(
        sft=recipe.sft,
        data=recipe.data,
        objective=recipe.objective,
        model=recipe.model.model_copy(update={"attention": how["attention"]}),
        platform=recipe.platform,
    )


def _train(context: Context, name: str, how: dict[str, Any]) -> dict[str, Any]:
    from sft_objectives.trainer.stage import run as stage

    settings = settings_of(context, how)
    chats = settings.sft.steps * settings.sft.batch_size
    folder = context.scratch("sft") / name.replace(" ", "_").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    total = write_chats(folder / "data", chats, settings.data.max_length)
    model = random_model_directory(context)
    ends: dict[int, float] = {}
    most = 0.0

    def report(done: int, total: int, **metrics: float) -> None:
        nonlocal most
        if done not in ends:
            ends[done] = time.monotonic()
        if context.device == "cuda":
            free, whole = torch.cuda.mem_get_info()
            most = max(most, (whole - free) / 1e9)

    os.environ.update(settings.platform.env)
    stage(settings, {"model": model, "data": folder / "data"}, folder / "output", folder / "scratch", report)
    rows = [json.loads(line) for line in (folder / "output" / "curve.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    # the last step ends with validation and an export
    timed = sorted(step for step in ends if WARM <= step < settings.sft.steps)
    if len(timed) < 2:
        raise NotRun(f"{settings.sft.steps} steps ended within one look at them")
    seconds = (ends[timed[-1]] - ends[timed[0]]) / (timed[-1] - timed[0])
    tokens = total / settings.sft.steps
    figures: dict[str, Any] = {"tokens_per_s": tokens / seconds, "step_seconds": seconds, "first_loss": rows[0]["loss"]}
    figures["last_loss"] = rows[-1]["loss"]
    if not all(math.isfinite(row["loss"]) for row in rows):
        raise RuntimeError(f"a loss is not finite: {[row['loss'] for row in rows]}")
    if context.device == "cuda":
        size = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 2
        ceiling = context.ceiling("product_tflop_per_s") * 1e12
        figures |= {"flop_utilisation": 6 * size * tokens / seconds / ceiling, "device_memory_gb": most}
    return figures


def _agreement(context: Context) -> dict[str, Any]:
    """The losses of the first step, which all variants compute from the same weights and chats."""
    found = {
        row["part"]: row["figures"]["first_loss"]
        for row in read_rows(context.rows)
        if "first_loss" in row.get("figures", {})
    }
    if len(found) < 2 or FIRST not in found:
        raise NotRun("fewer than two variants were trained")
    apart = {name: abs(loss - found[FIRST]) / abs(found[FIRST]) for name, loss in found.items() if name != FIRST}
    if max(apart.values()) > FLOOR[context.device]:
        raise RuntimeError(f"losses of the first step differ from those of {FIRST!r}: {apart}")
    return {f"{name} apart": value for name, value in apart.items()}

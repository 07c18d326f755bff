"""Item 7: sampling and grading beside a bare `LLM.generate`; then, if there is time, the whole quickstart."""

from __future__ import annotations

import os
from typing import Any

from launch.gpu_check.context import Context, NotRun, NotYet
from launch.gpu_check.items.models import random_model_directory
from launch.gpu_check.items.pipeline import pipeline

QUICKSTART = 360.0  # seconds it may take
OBJECTIVES = "objective=sft,prift_mass,lp_sft"


def run(context: Context) -> None:
    context.measure("evaluation", lambda: _throughput(context), ratio={"at_least": 0.95})
    context.measure("quickstart", lambda: _quickstart(context), seconds={"at_most": QUICKSTART})


def _throughput(context: Context) -> dict[str, Any]:
    from evaluation.bench import throughput

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if context.device == "cpu":
        os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_CPU_KVCACHE_SPACE="1", OMP_NUM_THREADS="1")
    if context.tiny:
        return throughput(16, 1, 16, model=random_model_directory(context), max_tokens=16)
    return throughput(
        2048, 3, 2048, model=random_model_directory(context), dtype="bfloat16", max_tokens=256, eager=True
    )


def _quickstart(context: Context) -> dict[str, Any]:
    if context.tiny:
        raise NotRun("a rehearsal leaves it out: item 6 is the same with one objective")
    if context.seconds_left < QUICKSTART:
        raise NotYet(f"{context.seconds_left:.0f} s left of the {QUICKSTART:.0f} it may take")
    return pipeline(context, "quickstart", ["platform=gpu", OBJECTIVES])

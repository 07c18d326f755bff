"""Item 3: objectives beside others' cross-entropies on one output head, and in a whole training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from launch.gpu_check.context import Context, NotRun, NotYet, read_rows
from sft_objectives.bench import measure
from sft_objectives.bench_workloads import TrainingStep, Workload

OBJECTIVES = ("sft", "dft", "lp_sft", "target_sft", "gem", "eaft", "sed_sft", "label_smoothing")
STEP_OBJECTIVES = ("sft", "lp_sft")
STEP_LAYERS = 16  # a deeper model would hide the head
TIME, MEMORY, STEP_TIME, SPREAD = 1.10, 0.5, 1.02, 0.10


def run(context: Context) -> None:
    dtype = torch.float32 if context.device == "cpu" else torch.bfloat16
    tokens, width, vocab_size = (256, 32, 211) if context.tiny else (16_384, 2560, 151_936)
    device, layers = torch.device(context.device), 1 if context.tiny else STEP_LAYERS
    names = OBJECTIVES[:2] if context.tiny else OBJECTIVES
    limits = {
        "time_vs_verl_plain": {"at_most": TIME},
        "memory_vs_verl_plain": {"at_most": MEMORY},
        "time_vs_liger": {"at_most": 1.0},
    }
    if any(f"head {name}" not in context.done for name in names):
        work = Workload(tokens, width, vocab_size, dtype, device)
        measured(context, "head", names, work, 1 if context.tiny else 5, limits)
        del work
        if context.device == "cuda":
            torch.cuda.empty_cache()
    context.measure("heads together", lambda: _together(context), slowest_over_fastest={"at_most": 1 + SPREAD})
    if any(f"step {name}" not in context.done for name in STEP_OBJECTIVES):
        try:
            step = TrainingStep(tokens, width, vocab_size, dtype, device, layers)
        except (ImportError, torch.OutOfMemoryError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            context.measure("step", lambda: _cannot(reason))
            return
        limits = {"time_vs_verl_plain": {"at_most": STEP_TIME}}
        measured(context, "step", STEP_OBJECTIVES, step, 1 if context.tiny else 3, limits)


def _cannot(reason: str) -> dict[str, Any]:
    raise NotYet(reason)


def measured(
    context: Context, what: str, names: Sequence[str], work: Workload, repeats: int, limits: Mapping[str, Any]
) -> None:
    """One part for each objective that is not done; after one that fails the others are measured all the same."""
    waiting = [name for name in names if f"{what} {name}" not in context.done]
    rows: Iterator[dict[str, Any]] | None = None
    for place, name in enumerate(waiting):

        def part(place: int = place) -> dict[str, Any]:
            nonlocal rows
            if rows is None:
                rows = measure(work, [(name, {}) for name in waiting[place:]], repeats, naive=False)
            try:
                figures = head_figures(next(rows))
            except Exception:
                rows = None
                raise
            return figures if what == "head" else {**figures, "parameters": cast(Any, work).parameters}

        context.measure(f"{what} {name}", part, **limits)


def head_figures(row: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds and gigabytes of an objective, and its ratios to the baselines that ran."""
    kept = {key: value for key, value in row.items() if key.startswith(("time_vs_", "memory_vs_"))}
    asked = ("time_vs_verl_plain", "memory_vs_verl_plain", "time_vs_liger")
    kept = {key: value for key, value in kept.items() if value is not None or key in asked}
    return {"milliseconds": 1000 * row["seconds"], "peak_gb": row["peak_bytes"] / 1e9, **kept}


def _together(context: Context) -> dict[str, float]:
    """How far the single-pass objectives are from one another."""
    rows = [row for row in read_rows(context.rows) if row["part"].startswith("head ") and "figures" in row]
    if len(rows) < 2:
        raise NotRun("fewer than two objectives were measured")
    times = [row["figures"]["milliseconds"] for row in rows]
    return {"slowest_over_fastest": max(times) / min(times)}

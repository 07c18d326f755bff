"""Item 6: the micro-world's pipeline with one objective: pretraining, SFT, GRPO with vLLM, evaluation, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launch.gpu_check.context import Context

SHORT = [
    "objective=sft",
    "run.retries=0",
    "model.pretrain.steps=600",
    "data.microworld.pretrain_examples=12000",
    "rl.steps=4",
    "rl.save_every=4",
    "eval.held_out_chats=64",
]
TINY = [
    "data.microworld.pretrain_examples=1200",
    "data.microworld.sft_examples=96",
    "data.microworld.rl_prompts=32",
    "data.microworld.target_problems=8",
    "data.microworld.skill_problems=4",
    "model.pretrain.hidden=64",
    "model.pretrain.layers=2",
    "model.pretrain.heads=2",
    "model.pretrain.steps=30",
    "sft.steps=3",
    "sft.batch_size=16",
    "rl.steps=2",
    "rl.save_every=2",
    "rl.prompts=4",
    "rl.samples=4",
    "rl.mini_batch=4",
    "rl.probe.prompts=2",
    "rl.probe.samples=2",
    "eval.held_out_chats=8",
    "eval.benchmarks=[{name: target, num_samples: 2, temperature: 1.0, max_tokens: 64}]",
    "eval.k=[1,2]",
]


def run(context: Context) -> None:
    context.measure("pipeline", lambda: pipeline(context, "short", _overrides(context)), seconds={"at_most": 180.0})


def _overrides(context: Context) -> list[str]:
    """bfloat16 as a GPU trains, padded chats and sdpa: what the recipe says where nothing else is chosen."""
    if context.device == "cpu":
        return ["platform=cpu", *SHORT[:2], *TINY]
    return ["platform=gpu", "model.dtype=bfloat16", "eval.dtype=bfloat16", *SHORT, *(TINY if context.tiny else ())]


def pipeline(context: Context, name: str, overrides: list[str]) -> dict[str, Any]:
    """Seconds of the whole run and of each kind of stage, and what the weight check of every RL step saw.

    A run that was ended goes on where it stopped; its seconds are then those of the rest. Raises RuntimeError if it
    fails.
    """
    root = context.scratch("runs") / name
    log = context.out / f"pipeline_{name}.log"
    command = [sys.executable, "-m", "launch", "run", "microworld", f"run.root={root.resolve()}", *overrides]
    # Ray counts logical devices on a CPU, and refuses an empty list of visible ones.
    hidden = ("CUDA_VISIBLE_DEVICES",) if context.device == "cpu" else ()
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    started = time.monotonic()
    with log.open("a") as file:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    seconds = time.monotonic() - started
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(f"launch ended with {done.returncode}: {' | '.join(lines[-3:])[:300]}; see {log}")
    figures: dict[str, Any] = {"seconds": seconds, **_stage_seconds(root), **_weight_check(root)}
    figures["report"] = (root / "index.html").is_file() or any(root.glob("**/index.html"))
    return figures


def _stage_seconds(root: Path) -> dict[str, float]:
    taken: dict[str, float] = {}
    for line in (root / "costs.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = f"{row['kind']}_seconds"
        taken[name] = round(taken.get(name, 0.0) + row["seconds"], 1)
    return taken


def _weight_check(root: Path) -> dict[str, Any]:
    """Over the RL steps: largest mean difference of token probabilities of vLLM and trainer, least correlation, and the
    reward of the first and last step. Raises RuntimeError if a step was not checked."""
    rows = [
        json.loads(line) for file in sorted(root.glob("rl/*/curve.jsonl")) for line in file.read_text().splitlines()
    ]
    steps = [row for row in rows if "reward" in row]
    unchecked = [row["step"] for row in steps if "probability_difference_mean" not in row]
    if not steps or unchecked:
        raise RuntimeError(f"of {len(steps)} RL steps {unchecked or 'all'} were not checked for stale weights")
    return {
        "rl_steps": len(steps),
        "probability_difference_mean": max(row["probability_difference_mean"] for row in steps),
        "probability_difference_max": max(row["probability_difference_max"] for row in steps),
        "probability_pearson": min(row["probability_pearson"] for row in steps),
        "first_reward": steps[0]["reward"],
        "last_reward": steps[-1]["reward"],
    }

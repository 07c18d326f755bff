"""The stage `rl`: one run of verl's PPO trainer (GRPO, DAPO) from one SFT checkpoint, published as a model artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.attention import require
from common.errors import Paused
from common.pauses import note_pause
from rl_stage import handoff
from rl_stage.checkpoints import Exports, publish, repair_checkpoints
from rl_stage.config import verl_config
from rl_stage.curve import Curve
from rl_stage.rewards import check_rows, load_reward
from rl_stage.session import prepare_environment
from rl_stage.time_limit import time_limit
from rl_stage.warm import kept_session


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Train the policy `inputs["model"]` on `inputs["data"]` and publish checkpoints, curve and metrics in `output`.

    settings: with sections rl, model and platform, and seed; inputs: `model` (Hugging Face directory) and `data` (with
    rl_train.parquet and rl_val.parquet). Resumes from the last complete checkpoint in `scratch`. A resumed run
    is a continuation of the same optimization, equal bit for bit only under `rl.full_determinism` without dynamic
    sampling. With `rl.pause_at` it ends after that step, with a checkpoint and its scores in `scratch`, and publishes
    nothing. Raises Paused there, ConfigError for configuration or data that cannot work and for a task that dynamic
    sampling finds saturated, RuntimeError for a failed weight sync, TimeoutError past `rl.step_timeout`.
    """
    began = time.monotonic()
    prepare_environment(settings)
    report(0, settings.rl.steps)
    rl = settings.rl
    scratch.mkdir(parents=True, exist_ok=True)
    last = rl.steps if rl.pause_at is None else rl.pause_at
    resumed = repair_checkpoints(scratch / "checkpoints", rl.keep_checkpoints)
    with kept_session() as session:
        if resumed < last:
            session.prepare(settings)
        load_reward(rl.reward.name, rl.reward.settings)
        for name in ("rl_train", "rl_val"):
            check_rows(inputs["data"] / f"{name}.parquet", rl.reward.settings)
        require(settings.model.attention)
        handoff.check_model(inputs["model"], settings)
        data = handoff.check_prompts(inputs, settings, scratch)
        config = verl_config(settings, {**inputs, "data": data}, scratch)
        curve = Curve(scratch / "curve.jsonl")
        curve.forget_after(resumed)
        exports = Exports(scratch, settings, curve)
        exports.keep(resumed)
        # A kill between the last checkpoint and its validation leaves only the validation to do.
        validates = last == rl.steps or bool(rl.validate_every and last % rl.validate_every == 0)
        validated = not validates or "validation_pass_rate" in curve.rows.get(last, {})
        exported = last < rl.steps or exports.path(last).exists()
        if resumed < last or (resumed == last and not (exported and validated)):
            config.trainer.val_before_train = 0 not in curve.rows or resumed == last
            from rl_stage.trainer import train  # verl and vLLM, which read the environment set above

            session.open(settings, config, inputs["model"])
            with time_limit(rl.step_timeout) as begin_phase:
                exports.timing(step=resumed, start_seconds=time.monotonic() - began)
                train(config, settings, curve, exports, report, begin_phase, session)
    if last < rl.steps:
        note_pause(scratch, last, {name: value for name, value in curve.rows[last].items() if name != "step"})
        raise Paused(f"paused after step {last} of {rl.steps}")
    publish(settings, inputs, output, scratch, curve, exports)
    report(rl.steps, rl.steps)

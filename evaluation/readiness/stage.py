"""The `readiness` stage: every predictor of a model, from its rollouts and from what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ConfigError
from common.files import read_json, write_json
from evaluation import readiness
from evaluation.artifact import read_measured
from evaluation.readiness.contract import Evidence


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Write metrics.json: {"figures": {name: {"value", "low", "high", "n"}}}, 95% intervals over problems or chats.

    settings: `seed` and `resamples`. inputs: `rollouts`, and optional `base_rollouts` (of the base model), `target` and
    `held_out` (`measure` artifacts). Raises ConfigError where the two models were not asked the same prompts.
    """
    scores, correct = read_rollouts(inputs["rollouts"])
    base = read_rollouts(inputs["base_rollouts"])[1] if "base_rollouts" in inputs else None
    if base is not None:  # a prompt may be too long for one model's tokenizer
        both = correct.keys() & base.keys()
        if not both:
            raise ConfigError(f"{inputs['rollouts']}: no prompt that the base answered too; sample both alike")
        scores, correct, base = ({prompt: one[prompt] for prompt in sorted(both)} for one in (scores, correct, base))
    measured = {key: read_measured(inputs[key])["metrics"] if key in inputs else {} for key in ("target", "held_out")}
    evidence = Evidence(
        measured["target"], measured["held_out"], scores, correct, base, settings.seed, settings.resamples
    )
    figures = {}
    for done, name in enumerate(readiness.names(), start=1):
        figures |= {key: asdict(one) for key, one in readiness.load(name).figures(evidence).items()}
        report(done, len(readiness.names()))
    write_json(output / "metrics.json", {"figures": figures})


def read_rollouts(directory: Path) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Scores (float64) and correctness (bool) of the samples of each prompt, by its row."""
    import pyarrow.parquet as pq

    rows = pq.read_table(directory / "rollouts.parquet", columns=["prompt", "sample", "score", "correct"]).to_pylist()
    found: dict[int, list[tuple[float, bool]]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt"], row["sample"])):
        found.setdefault(row["prompt"], []).append((row["score"], row["correct"]))
    scores = {prompt: np.array([score for score, _ in drawn]) for prompt, drawn in found.items()}
    return scores, {prompt: np.array([right for _, right in drawn], dtype=bool) for prompt, drawn in found.items()}


def read_figures(directory: Path) -> dict[str, dict[str, float]]:
    """The figures of a `readiness` artifact. Raises ConfigError where it holds none."""
    found = read_json(directory / "metrics.json")
    if not isinstance(found, dict) or "figures" not in found:
        raise ConfigError(f"{directory}/metrics.json: no figures; name the directory of a readiness artifact")
    return found["figures"]

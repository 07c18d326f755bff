"""The `average` stage: WiSE-FT, theta = (1 - weight) * base + weight * fine-tuned (arXiv 2109.01903, eq. 1; TALR 4.2).

Reads and writes safetensors one tensor at a time; torch is imported only inside `run`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SAME = ("architectures", "hidden_size", "model_type", "num_hidden_layers", "tie_word_embeddings", "vocab_size")


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Write `output/checkpoints/step_<n>`, the average of `inputs["base"]` and `inputs["sft"]`, and `checkpoints.json`.

    Each weight is interpolated in float32 and stored in the fine-tuned model's dtype and shard; everything else of the
    checkpoint (tokenizer, chat template, generation settings) is the fine-tuned model's. n is the step of
    `inputs["sft"]`, 0 if its directory has none. Raises ConfigError if the two models differ in architecture, names or
    shapes, or if settings.average.weight is null.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    weight = settings.average.weight
    if weight is None or not 0.0 <= weight <= 1.0:
        raise ConfigError(f"average.weight={weight}: allowed: a number from 0 (base) to 1 (fine-tuned)")
    base, tuned = inputs["base"], inputs["sft"]
    _check_configs(base, tuned)
    base_shards, tuned_shards = shards_of(base), shards_of(tuned)
    missing = set(tuned_shards) ^ set(base_shards)
    if missing:
        raise ConfigError(f"{base} and {tuned}: weights {', '.join(sorted(missing)[:3])} are in one of them only")
    step = int(tuned.name.removeprefix("step_")) if tuned.name.startswith("step_") else 0
    directory = output / "checkpoints" / f"step_{step}"
    shutil.copytree(tuned, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    done, total = 0, len(tuned_shards)
    report(done, total)
    for shard in sorted(set(tuned_shards.values())):
        averaged: dict[str, Tensor] = {}
        with safe_open(tuned / shard, "pt") as file:
            metadata = file.metadata()
            for name in sorted(file.keys()):
                with safe_open(base / base_shards[name], "pt") as other:
                    averaged[name] = interpolate(name, other.get_tensor(name), file.get_tensor(name), weight)
                done += 1
                report(done, total)
        save_file(averaged, directory / shard, metadata=metadata)
    _check_reloads(directory)
    write_json(output / "checkpoints.json", {"best": step, "final": step, "steps": [step]}, durable=True)
    write_json(output / "metrics.json", {"weight": weight}, durable=True)


def shards_of(directory: Path) -> dict[str, str]:
    """Weight name -> safetensors file of a Hugging Face directory. Raises ConfigError if it holds none."""
    from safetensors import safe_open

    if (directory / INDEX).exists():
        return json.loads((directory / INDEX).read_text())["weight_map"]
    if not (directory / SINGLE).exists():
        raise ConfigError(f"{directory}: neither {SINGLE} nor {INDEX}; save the model with safetensors")
    with safe_open(directory / SINGLE, "pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)


def interpolate(name: str, base: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """(1 - weight) * base + weight * tuned in float32, in the dtype of `tuned`; tensors that hold integers stay tuned.

    Exactly `base` at weight 0 (where the dtypes agree) and `tuned` at weight 1. Raises ConfigError if shapes differ.
    """
    if base.shape != tuned.shape:
        raise ConfigError(f"weight {name}: shape {tuple(base.shape)} in the base, {tuple(tuned.shape)} fine-tuned")
    if not tuned.is_floating_point():
        return tuned
    return ((1.0 - weight) * base.float() + weight * tuned.float()).to(tuned.dtype)


def _check_configs(base: Path, tuned: Path) -> None:
    first, second = (json.loads((directory / "config.json").read_text()) for directory in (base, tuned))
    for name in _SAME:
        if first.get(name) != second.get(name):
            raise ConfigError(f"config.json: {name} is {first.get(name)!r} in {base}, {second.get(name)!r} in {tuned}")


def _check_reloads(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation="sdpa")
    with torch.no_grad():
        logits = model(torch.arange(min(8, model.config.vocab_size))[None]).logits
    if not logits.isfinite().all():
        raise RuntimeError(f"{directory}: the averaged model gives non-finite logits")

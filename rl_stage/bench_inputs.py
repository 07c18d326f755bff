"""What `rl_stage.bench` runs on where it is given nothing: settings, a random model, prompts."""

from __future__ import annotations

import pathlib
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.registry import ROOT


def stage_settings(prompts: int, samples: int, steps: int) -> DictConfig:
    """The stage's settings: the recipe's defaults, the CPU platform, and the micro-world's lengths."""
    base, cpu = (OmegaConf.load(ROOT / "recipes" / f"{name}.yaml") for name in ("base", "platform/cpu"))
    rl = {
        "steps": steps,
        "prompts": prompts,
        "samples": samples,
        "mini_batch": prompts,
        "max_prompt_length": 64,
        "max_response_length": 48,
        "gradient_checkpointing": False,
        "save_every": 0,
        "warm": True,
        "probe": {"prompts": 0},
        "reward": {"name": "boxed"},
        "verl": {"trainer": {"logger": ["file"]}},
    }
    settings: Any = OmegaConf.merge(base, {"platform": cpu, "rl": rl})
    return OmegaConf.masked_copy(settings, ["rl", "model", "platform", "seed"])


def write_model(
    directory: pathlib.Path,
    hidden: int = 192,
    layers: int = 4,
    heads: int = 6,
    initializer_range: float = 0.02,
    tied: bool = True,
) -> pathlib.Path:
    """A random fp32 byte-level Qwen2 model with a ChatML tokenizer, as a Hugging Face directory."""
    from common.tiny_models import byte_tokenizer, ends_of, random_model, save

    tokenizer = byte_tokenizer()
    model = random_model(
        "Qwen2",
        len(tokenizer),
        hidden=hidden,
        layers=layers,
        heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        **ends_of(tokenizer),
    )
    return save(directory, model, tokenizer)


def write_prompts(directory: pathlib.Path) -> pathlib.Path:
    """rl_train.parquet and rl_val.parquet of sums, in verl's columns."""
    import pyarrow
    import pyarrow.parquet as pq

    directory.mkdir()
    for name, count in (("train", 512), ("val", 16)):
        rows = [
            {
                "data_source": "sums",
                "prompt": [{"role": "user", "content": f"{number} + {7 * number} = "}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(8 * number)},
                "extra_info": {"index": number, "split": name, "id": f"{name}-{number}"},
            }
            for number in range(count)
        ]
        pq.write_table(pyarrow.Table.from_pylist(rows), directory / f"rl_{name}.parquet")
    return directory

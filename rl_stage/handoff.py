"""The gate between SFT and RL: is this model complete, does it stop where RL stops, can it reach a reward at all?"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from common.chats import renderer_for
from common.errors import ConfigError
from common.files import write_json
from common.models import load_tokenizer

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def check_model(path: pathlib.Path, settings: Any) -> None:
    """Raise ConfigError, naming file and remedy, unless `path` is a complete Hugging Face model whose weights, EOS, PAD
    and chat template RL and vLLM will read alike."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            raise ConfigError(f"{path / name}: missing; RL starts from a complete Hugging Face directory")
    check_weights(path)
    config = json.loads((path / "config.json").read_text())
    if "dtype" not in config and "torch_dtype" not in config:
        raise ConfigError(f"{path / 'config.json'}: has no dtype; save the model with its weights' dtype")
    tokenizer = recipe_tokenizer(path, settings)
    if not tokenizer.chat_template:
        raise ConfigError(f"{path}: the tokenizer has no chat template; set model.chat_template")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ConfigError(f"{path}: the tokenizer must name an EOS and a PAD token")
    stops = _stop_tokens(path, config)
    if tokenizer.eos_token_id not in stops:
        raise ConfigError(
            f"{path}: the tokenizer ends with {tokenizer.eos_token_id} ({tokenizer.eos_token}), generation_config.json "
            f"and config.json with {sorted(stops)}: vLLM and RL would stop at different tokens"
        )
    rows = config["vocab_size"]
    if len(tokenizer) > rows:
        raise ConfigError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows")
    check_names(path, settings.model.trust_remote_code)


def recipe_tokenizer(path: pathlib.Path, settings: Any) -> Any:
    """The tokenizer of a Hugging Face directory, with the recipe's chat template in place if it names one."""
    model = settings.model
    return load_tokenizer(path, chat_template=model.chat_template, trust_remote_code=model.trust_remote_code)


def check_names(path: pathlib.Path, trust_remote_code: bool) -> None:
    """Raise ConfigError unless the weight files hold the model's tensors, all of them and no others, by name and shape.

    The model is loaded without memory for its weights. An adapter that was not merged shows here.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=trust_remote_code,
    )
    _, found = loaded
    for what in ("missing", "unexpected", "mismatched"):
        if names := sorted(str(name) for name in found[f"{what}_keys"]):
            raise ConfigError(
                f"{path}: {len(names)} {what} tensors, {names[0]} the first; RL starts from a merged Hugging Face model"
            )


def check_weights(path: pathlib.Path) -> None:
    """Raise ConfigError unless every weight file that the index names exists, opens and holds what its header says."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (path / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ConfigError(f"{path}: has neither of {', '.join(WEIGHTS)}")
    for name in files:
        try:
            with safe_open(path / name, framework="pt") as weights:
                if not list(weights.keys()):
                    raise ConfigError(f"{path / name}: holds no weights")
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path / name}: cannot be read ({error}); the SFT artifact is incomplete") from error


def _stop_tokens(path: pathlib.Path, config: Mapping[str, Any]) -> set[int]:
    generation = path / "generation_config.json"
    source = json.loads(generation.read_text()) if generation.is_file() else config
    value = source.get("eos_token_id", config.get("eos_token_id"))
    return {value} if isinstance(value, int) else set(value or ())


def check_prompts(inputs: Mapping[str, pathlib.Path], settings: Any, scratch: pathlib.Path) -> pathlib.Path:
    """A directory with rl_train.parquet and rl_val.parquet whose prompts fit `rl.max_prompt_length`.

    Too long prompts are dropped and counted in scratch/prompts.json. Raises ConfigError naming file and row for rows
    without verl's columns, and where fewer prompts are left than one step takes.
    """
    import pyarrow.compute
    import pyarrow.parquet as pq

    renderer = renderer_for(recipe_tokenizer(inputs["model"], settings), settings.model)
    target = scratch / "prompts"
    target.mkdir(exist_ok=True)
    counts: dict[str, int] = {"dropped": 0}
    for name in ("rl_train", "rl_val"):
        source = inputs["data"] / f"{name}.parquet"
        if not source.is_file():
            raise ConfigError(f"{source}: missing; `prepare` writes it")
        table = pq.read_table(source)
        absent = {"data_source", "prompt", "reward_model", "extra_info"} - set(table.column_names)
        if absent:
            raise ConfigError(f"{source}: has no column {', '.join(sorted(absent))}")
        kept = []
        shown = ["tools"] if "tools" in table.column_names else []
        if shown:  # verl hands every row's cell on, and a batch takes text alone
            column = table.column_names.index("tools")
            table = table.set_column(column, "tools", pyarrow.compute.fill_null(table["tools"], "[]"))
        for number, row in enumerate(table.select(["prompt", "reward_model", *shown]).to_pylist()):
            answer = (row["reward_model"] or {}).get("ground_truth")
            if not row["prompt"] or answer is None or str(answer) == "":
                raise ConfigError(f"{source}: row {number} has no prompt or no reward_model.ground_truth")
            (ids,) = renderer.prompts([row["prompt"]], [row.get("tools")])
            if isinstance(ids, ConfigError):
                raise ConfigError(f"{source}: row {number}: {ids}")
            kept.append(len(ids) <= settings.rl.max_prompt_length)
        counts[name] = sum(kept)
        counts["dropped"] += len(kept) - counts[name]
        pq.write_table(table.filter(pyarrow.array(kept)), target / f"{name}.parquet")
    if counts["rl_train"] < settings.rl.prompts:
        raise ConfigError(
            f"rl.prompts: a step takes {settings.rl.prompts} prompts, {inputs['data'] / 'rl_train.parquet'} has "
            f"{counts['rl_train']} of at most rl.max_prompt_length={settings.rl.max_prompt_length} tokens"
        )
    if not counts["rl_val"]:
        raise ConfigError(f"{inputs['data'] / 'rl_val.parquet'}: has no prompt that fits rl.max_prompt_length")
    write_json(scratch / "prompts.json", counts)
    return target


def judge_probe(rates: Sequence[float], settings: Any) -> None:
    """Say, or with `rl.on_unreachable: stop` raise ConfigError, where sampling found no or only solved prompts.

    rates: pass rate of each probed prompt. GRPO learns from the differences within a group, so it would learn nothing.
    """
    if any(0 < rate < 1 for rate in rates) or 0 < sum(rates) < len(rates):
        return
    found = "every sample is right" if rates[0] else "no sample is right"
    message = (
        f"reachability: of {len(rates)} prompts x {settings.rl.probe.samples} samples {found}; RL has nothing to learn "
        "from. Check the reward on a sample (rl.reward), choose easier or harder prompts (rl.filter), or set "
        "rl.on_unreachable=warn to go on"
    )
    if settings.rl.on_unreachable == "stop":
        raise ConfigError(message)
    logger.warning(message)

"""The gate between SFT and RL: is this model complete, does it stop where RL stops, can it reach a reward at all?"""

from __future__ import annotations

import json
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger(__name__)

LORA_META = "lora_train_meta.json"  # verl's name
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def check_model(path: pathlib.Path, settings: SimpleNamespace) -> None:
    """Raise ValueError, naming file and remedy, unless `path` is a complete Hugging Face model whose weights, EOS, PAD
    and chat template RL and vLLM will read alike."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            raise ValueError(f"{path / name}: missing; RL starts from a complete Hugging Face directory")
    check_weights(path)
    config = json.loads((path / "config.json").read_text())
    if "dtype" not in config and "torch_dtype" not in config:
        raise ValueError(f"{path / 'config.json'}: has no dtype; save the model with its weights' dtype")
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=settings.model.trust_remote_code)
    if not tokenizer.chat_template:
        raise ValueError(f"{path}: the tokenizer has no chat template; set model.chat_template for SFT")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ValueError(f"{path}: the tokenizer must name an EOS and a PAD token")
    stops = _stop_tokens(path, config)
    if tokenizer.eos_token_id not in stops:
        raise ValueError(
            f"{path}: the tokenizer ends with {tokenizer.eos_token_id} ({tokenizer.eos_token}), generation_config.json "
            f"and config.json with {sorted(stops)}: vLLM and RL would stop at different tokens"
        )
    rows = config["vocab_size"]
    if len(tokenizer) > rows:
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows")
    check_names(path, settings.model.trust_remote_code)


def check_names(path: pathlib.Path, trust_remote_code: bool) -> None:
    """Raise ValueError unless the weight files hold the model's tensors, all of them and no others, by name and shape.

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
            raise ValueError(
                f"{path}: {len(names)} {what} tensors, {names[0]} the first; RL starts from a merged Hugging Face model"
            )


def check_weights(path: pathlib.Path) -> None:
    """Raise ValueError unless every weight file that the index names exists, opens and holds what its header says."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (path / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ValueError(f"{path}: has neither of {', '.join(WEIGHTS)}")
    for name in files:
        try:
            with safe_open(path / name, framework="pt") as weights:
                if not list(weights.keys()):
                    raise ValueError(f"{path / name}: holds no weights")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path / name}: cannot be read ({error}); the SFT artifact is incomplete") from error


def _stop_tokens(path: pathlib.Path, config: Mapping[str, Any]) -> set[int]:
    generation = path / "generation_config.json"
    source = json.loads(generation.read_text()) if generation.is_file() else config
    value = source.get("eos_token_id", config.get("eos_token_id"))
    return {value} if isinstance(value, int) else set(value or ())


def check_prompts(inputs: Mapping[str, pathlib.Path], settings: SimpleNamespace, scratch: pathlib.Path) -> pathlib.Path:
    """A directory with rl_train.parquet and rl_val.parquet whose prompts fit `rl.max_prompt_length`.

    Too long prompts are dropped and counted in scratch/prompts.json. Raises ValueError naming file and row for rows
    without verl's columns, and where fewer prompts are left than one step takes.
    """
    import pyarrow.compute
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(inputs["model"], trust_remote_code=settings.model.trust_remote_code)
    target = scratch / "prompts"
    target.mkdir(exist_ok=True)
    counts: dict[str, int] = {"dropped": 0}
    for name in ("rl_train", "rl_val"):
        source = inputs["data"] / f"{name}.parquet"
        if not source.is_file():
            raise ValueError(f"{source}: missing; `prepare` writes it")
        table = pq.read_table(source)
        absent = {"data_source", "prompt", "reward_model", "extra_info"} - set(table.column_names)
        if absent:
            raise ValueError(f"{source}: has no column {', '.join(sorted(absent))}")
        kept = []
        for number, row in enumerate(table.select(["prompt", "reward_model"]).to_pylist()):
            answer = (row["reward_model"] or {}).get("ground_truth")
            if not row["prompt"] or answer is None or str(answer) == "":
                raise ValueError(f"{source}: row {number} has no prompt or no reward_model.ground_truth")
            encoded = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
            kept.append(len(encoded["input_ids"]) <= settings.rl.max_prompt_length)
        counts[name] = sum(kept)
        counts["dropped"] += len(kept) - counts[name]
        pq.write_table(table.filter(pyarrow.array(kept)), target / f"{name}.parquet")
    if counts["rl_train"] < settings.rl.prompts:
        raise ValueError(
            f"rl.prompts: a step takes {settings.rl.prompts} prompts, {inputs['data'] / 'rl_train.parquet'} has "
            f"{counts['rl_train']} of at most rl.max_prompt_length={settings.rl.max_prompt_length} tokens"
        )
    if not counts["rl_val"]:
        raise ValueError(f"{inputs['data'] / 'rl_val.parquet'}: has no prompt that fits rl.max_prompt_length")
    (scratch / "prompts.json").write_text(json.dumps(counts, sort_keys=True) + "\n")
    return target


def judge_probe(rates: Sequence[float], settings: SimpleNamespace) -> None:
    """Say, or with `rl.on_unreachable: stop` raise ValueError, where sampling found no or only solved prompts.

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
        raise ValueError(message)
    logger.warning(message)


def finish_export(source: pathlib.Path, model: pathlib.Path, target: pathlib.Path) -> None:
    """Make a published checkpoint of verl's Hugging Face export `source`: merged, with the tokenizer, chat template and
    generation settings of `model` (the policy RL started from), the dtype that its weights have; then reload it and run
    one forward pass. Raises RuntimeError if its tensors are not those of `model` by name and shape, or are not
    finite."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(source, target, ignore=shutil.ignore_patterns(LORA_META))
    config = json.loads((model / "config.json").read_text())
    tied = config.get("tie_word_embeddings", False)
    if (source / LORA_META).is_file():
        merge_lora(source, target, tied)
    for path in model.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.startswith(("model", "pytorch_model")):
            shutil.copy(path, target / path.name)
    config.pop("torch_dtype", None)
    config["dtype"] = weights_dtype(target)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    check_weights(target)
    # Transformers would fill in what is missing with random weights and only warn.
    found, wanted = (tensor_shapes(path, tied) for path in (target, model))
    different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if different:
        raise RuntimeError(
            f"{source}: {len(different)} tensors differ in name or shape from those of {model}, first {different[0]}"
        )
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        finite = bool(torch.isfinite(loaded(ids).logits).all())
    if not finite:
        raise RuntimeError(f"{source}: the exported model's logits are not finite")


def merge_lora(source: pathlib.Path, target: pathlib.Path, tied: bool) -> None:
    """Write the weights of `source` to `target` with the low-rank update added: W + alpha / rank * B A, in float32;
    without the output head if it is `tied` to the embedding.

    verl exports the training module as it is, with PEFT's names, and rank and alpha in a file beside it.
    """
    from safetensors.torch import load_file, save_file

    meta = json.loads((source / LORA_META).read_text())
    weights = {
        name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    merged = {}
    for name, tensor in weights.items():
        stem, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind == "base_layer":
            down, up = (weights[f"{stem}.lora_{side}.default.weight"].float() for side in "AB")
            tensor = (tensor.float() + meta["lora_alpha"] / meta["r"] * (up @ down)).to(tensor.dtype)
            name = f"{stem}.weight"
        elif ".lora_" in name:
            continue
        # A bias keeps its layer's inner name too.
        merged[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = tensor.contiguous()
    if tied:
        merged.pop("lm_head.weight", None)
    for file in target.glob("*.safetensors*"):
        file.unlink()
    save_file(merged, target / "model.safetensors", metadata={"format": "pt"})


def tensor_shapes(path: pathlib.Path, tied: bool) -> dict[str, list[int]]:
    """Shape of every tensor in the safetensors files of `path`, by name; not of an output head that is tied."""
    from safetensors import safe_open

    shapes = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    if tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def weights_dtype(path: pathlib.Path) -> str:
    """The dtype of most parameters in the safetensors files of `path`, as config.json spells it."""
    from collections import Counter

    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    count: Counter[str] = Counter()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - not a mapping
                part = weights.get_slice(key)
                size = 1
                for length in part.get_shape():
                    size *= length
                count[names[part.get_dtype()]] += size
    return count.most_common(1)[0][0]

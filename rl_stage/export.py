"""From verl's checkpoint to a published Hugging Face model: merged, complete, and reloaded once."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from collections import Counter
from collections.abc import Mapping
from typing import Any

from common.chats import Renderer
from common.files import write_json
from common.models import load_tokenizer, tensor_headers
from common.templates import template_file
from rl_stage.handoff import check_weights

LORA_META = "lora_train_meta.json"  # verl's name
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names -> those of config.json


def finish_export(
    source: pathlib.Path,
    model: pathlib.Path,
    target: pathlib.Path,
    *,
    chat_template: str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Make a published checkpoint of verl's Hugging Face export `source`: merged, with the tokenizer and generation
    settings of `model` (the policy RL started from), the dtype that its weights have; then reload it and run one
    forward pass.

    chat_template: a Jinja file in place of the template of `model`. template_arguments: its variables.

    Raises RuntimeError if its tensors are not those of `model` by name and shape, or its logits not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, target, ignore=shutil.ignore_patterns(LORA_META))
    config = json.loads((model / "config.json").read_text())
    tied = config.get("tie_word_embeddings", False)
    if (source / LORA_META).is_file():
        merge_lora(source, target, tied)
    for path in model.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.startswith(("model", "pytorch_model")):
            shutil.copy(path, target / path.name)
    if chat_template is not None:
        shutil.copy(template_file(chat_template), target / "chat_template.jinja")
    config.pop("torch_dtype", None)
    config["dtype"] = weights_dtype(target)
    write_json(target / "config.json", config)
    check_weights(target)
    # Transformers would fill in what is missing with random weights and only warn.
    found, wanted = (_shapes(path, tied) for path in (target, model))
    different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if different:
        raise RuntimeError(
            f"{source}: {len(different)} tensors differ in name or shape from those of {model}, first {different[0]}"
        )
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype="auto", trust_remote_code=trust_remote_code)
    tokenizer: Any = load_tokenizer(target, trust_remote_code=trust_remote_code)
    _, ids = Renderer(tokenizer, template_arguments=template_arguments).prompt([{"role": "user", "content": "1"}])
    with torch.no_grad():
        finite = bool(torch.isfinite(loaded(torch.tensor([ids])).logits).all())
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


def _shapes(path: pathlib.Path, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name; not of an output head that is tied to the embedding."""
    shapes = {name: header.shape for name, header in tensor_headers(path).items()}
    if tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def weights_dtype(path: pathlib.Path) -> str:
    """The dtype of most parameters in the safetensors files of `path`, as config.json spells it."""
    count: Counter[str] = Counter()
    for header in tensor_headers(path).values():
        count[DTYPES[header.dtype]] += math.prod(header.shape)
    return count.most_common(1)[0][0]

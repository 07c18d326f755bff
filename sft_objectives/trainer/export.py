"""A trained module as a Hugging Face directory that loads anywhere."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_huggingface(
    state: Mapping[str, Tensor], model_config, row: Mapping[str, Tensor], dtype: torch.dtype, directory: Path
) -> None:
    """Write a Hugging Face directory that loads anywhere, and load it.

    state: the trained module's full state dict on the CPU; a low-rank update is merged. model_config: verl's. row: a
    chat of the training set, whose closing special tokens become end-of-sequence tokens of generation. dtype: of the
    written weights and of `config.json`. Raises RuntimeError if what was written does not load or gives non-finite
    logits.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer, trust = model_config.tokenizer, model_config.trust_remote_code
    config = copy.deepcopy(model_config.hf_config)
    if "attn_implementation" in vars(config):
        del config.attn_implementation  # verl's override; in config.json it would choose the kernel of every later user
    with torch.device("meta"):
        model = cast("PreTrainedModel", AutoModelForCausalLM.from_config(config, trust_remote_code=trust))
    if model_config.lora_rank > 0:
        model = _merged_lora(model, state, model_config)
    else:
        missing, unexpected = model.load_state_dict(dict(state), strict=False, assign=True)
        model.tie_weights()
        if unexpected or any(parameter.is_meta for parameter in model.parameters()):
            raise RuntimeError(f"export: weights do not fit the model: missing {missing}, unexpected {unexpected}")
    cast(torch.nn.Module, model).to(dtype)
    model.config.dtype = dtype
    try:
        generation = GenerationConfig.from_pretrained(model_config.local_path)
    except OSError:  # the model came without one
        generation = GenerationConfig()
    generation.eos_token_id = end_tokens(tokenizer, generation.eos_token_id, row)
    generation.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generation._from_model_config = False
    model.generation_config = generation
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _check_reloads(directory, row, dtype, trust)


def end_tokens(tokenizer, declared: Any, row: Mapping[str, Tensor]) -> list[int]:
    """Ids that end a response: the tokenizer's, the model's, and the special token that closes a supervised turn."""
    supervised = row["input_ids"][row["loss_mask"] > 0].tolist()
    closing = [token for token in supervised[-2:] if token in tokenizer.all_special_ids]
    declared = declared if isinstance(declared, list) else [declared]
    ids = [*closing[-1:], tokenizer.eos_token_id, *declared]
    return list(dict.fromkeys(token for token in ids if token is not None))


def _merged_lora(model: PreTrainedModel, state: Mapping[str, Tensor], model_config) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=model_config.lora_rank,
        lora_alpha=model_config.lora_alpha,
        target_modules=model_config.target_modules,
        target_parameters=list(model_config.target_parameters or []) or None,
        exclude_modules=model_config.exclude_modules,
        bias="none",
    )
    wrapped = get_peft_model(model, lora)
    _, unexpected = wrapped.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    unread = [name for name, parameter in wrapped.named_parameters() if parameter.is_meta]
    if unread or unexpected:
        raise RuntimeError(
            f"export: the low-rank state does not fit the model: missing {unread[:3]}, unexpected {unexpected[:3]}"
        )
    return cast("PreTrainedModel", wrapped.merge_and_unload())


@torch.no_grad()
def _check_reloads(directory: Path, row: Mapping[str, Tensor], dtype: torch.dtype, trust_remote_code: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype="auto",
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    model, loading = loaded
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    logits = model(row["input_ids"][None, :32]).logits
    problems = [
        *(["dtype is " + str(model.dtype)] if model.dtype != dtype else []),
        *(["no chat template"] if tokenizer.chat_template is None else []),
        *(["non-finite logits"] if not logits.isfinite().all() else []),
        *(f"{kind}: {sorted(loading[kind])}" for kind in ("missing_keys", "unexpected_keys") if loading[kind]),
    ]
    if problems:
        raise RuntimeError(f"{directory}: the exported model does not load: {'; '.join(problems)}")

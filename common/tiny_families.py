"""A small random model of each family of the papers, with the family's special tokens and chat template.

`python -m common.tiny_families <family> <seed> <directory>` writes one; a process of its own, as it needs torch.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.templates import template_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKER = re.compile(r"<\|[A-Za-z0-9_]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")
LONGEST = 2048


@dataclass(frozen=True)
class Family:
    """architecture: transformers' name of it. template: of recipes/templates. begin, end, pad: its special tokens."""

    architecture: str
    template: str
    end: str
    pad: str
    begin: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "qwen2": Family("Qwen2", "qwen2_5", "<|im_end|>", "<|endoftext|>"),
    "qwen2_math": Family("Qwen2", "qwen2_5_math", "<|im_end|>", "<|endoftext|>"),
    "qwen3": Family("Qwen3", "qwen3", "<|im_end|>", "<|endoftext|>", fields={"head_dim": 32}),
    "qwen3_moe": Family(
        "Qwen3Moe",
        "qwen3",
        "<|im_end|>",
        "<|endoftext|>",
        fields={"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "llama2": Family("Llama", "llama2", "</s>", "<unk>", "<s>"),
    "llama3": Family("Llama", "llama3", "<|eot_id|>", "<|finetune_right_pad_id|>", "<|begin_of_text|>"),
    "gemma3": Family("Gemma3", "gemma3", "<end_of_turn>", "<pad>", "<bos>", {"head_dim": 32, "sliding_window": 512}),
    "deepseek": Family(  # of DeepSeek-Math and DeepSeek-Coder, whose architecture is Llama's
        "Llama",
        "deepseek",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5cpad\uff5c>",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    ),
}


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    """One token for each byte, and the family's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AddedToken, PreTrainedTokenizerFast

    template = template_file(family.template).read_text(encoding="utf-8")
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.begin,
        eos_token=family.end,
        pad_token=family.pad,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )
    special = sorted({*MARKER.findall(template), family.end, family.pad})
    added: list[str | AddedToken] = [AddedToken(text, special=True, normalized=False) for text in special]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def build(name: str, seed: int, directory: Path) -> None:
    """Writes a model of the family called `name` with weights drawn from `seed`."""
    from common.tiny_models import random_model, save

    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    model = random_model(
        family.architecture,
        len(
            tokenizer
        ),  # verl lets vLLM sample no id that the tokenizer lacks, which in random weights is as likely as others
        hidden=64,
        layers=2,
        heads=2,
        seed=seed,
        max_position_embeddings=LONGEST,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.fields,
    )
    save(directory, model, tokenizer)


if __name__ == "__main__":
    build(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

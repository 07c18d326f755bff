"""Small random models with byte or character tokenizers: for benchmarks, dry runs and tests, never for results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHAT_ML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIGURATIONS = {"Gemma3": "Gemma3TextConfig"}  # of a language model that has no Config of its name
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # padding, start of a turn, end of a turn and EOS


def byte_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """One token for each byte and a ChatML template.

    It is a byte-level BPE without merges: AutoTokenizer replaces the pre-tokenizer of every Qwen directory by Qwen's
    own, and verl requires that a newline is one token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = [*CHAT_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _chat_tokenizer(core, max_length)


def character_tokenizer(max_length: int = 256) -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character and the newline, and a ChatML template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = [*CHAT_TOKENS, "\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {character: number for number, character in enumerate(characters)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=characters[0]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return _chat_tokenizer(core, max_length)


def _chat_tokenizer(core: Any, max_length: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=CHAT_TOKENS[2],
        pad_token=CHAT_TOKENS[0],
        additional_special_tokens=[CHAT_TOKENS[1]],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_ML
    return tokenizer


def random_model(
    family: str,
    vocabulary: int,
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    key_value_heads: int | None = None,
    seed: int = 0,
    **fields: Any,
) -> PreTrainedModel:
    """A float32 decoder with random weights.

    family: transformers' name before Config and ForCausalLM (Qwen2, Qwen3, Llama, Granite). fields: any other field of
    its configuration; the feed-forward layer is twice as wide as the hidden state where none says otherwise.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, CONFIGURATIONS.get(family, f"{family}Config"))(
        **{
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads or heads,
            **fields,
        }
    )
    return getattr(transformers, f"{family}ForCausalLM")(config)


def ends_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Fields of a configuration that say which ids begin, end and pad a text."""
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def save(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Writes a Hugging Face directory whose generation stops where the tokenizer's turns end."""
    ends = ends_of(tokenizer)
    if model.generation_config is not None:
        model.generation_config.update(eos_token_id=ends["eos_token_id"], pad_token_id=ends["pad_token_id"])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

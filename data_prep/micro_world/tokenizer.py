"""The micro-world's tokenizer: bytes plus a closed list of words, with a ChatML template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.micro_world.world import WORDS

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
MAX_LENGTH = 256  # tokens
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(words: Sequence[str], max_length: int) -> Qwen2Tokenizer:
    """Build a tokenizer with one token for each byte, role and word of `words`; any text round-trips exactly.

    It is a Qwen2Tokenizer without merges, because AutoTokenizer rebuilds that class for every Qwen2 model, whatever the
    files say. Roles and words are added tokens, matched wherever their characters occur. EOS is `<|im_end|>` and
    padding `<|endoftext|>`.

    Args:
        words: strings which become single tokens, such as `\\boxed{`.
        max_length: `model_max_length` of the tokenizer, in tokens.

    Raises:
        ValueError: a word is shorter than two characters, or repeated.
    """
    from tokenizers import pre_tokenizers
    from transformers import AddedToken, Qwen2Tokenizer

    pieces = [*ROLES, *words]
    for piece in pieces:
        if len(piece) < 2 or pieces.count(piece) > 1:
            raise ValueError(f"tokenizer word {piece!r}: needs at least two characters and may occur only once")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])},
        merges=[],
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in pieces])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def world_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer of the embedded world."""
    return build_tokenizer(WORDS, MAX_LENGTH)

"""The micro-world's tokenizer: single characters plus a closed list of words, with a ChatML template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
UNKNOWN = "<|unknown|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, UNKNOWN)
ROLES = ("system", "user", "assistant")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per printable ASCII character, role and word of `words`.

    A word is matched wherever its characters occur, longest first, so text round-trips exactly; characters outside
    printable ASCII become `<|unknown|>`. EOS is `<|im_end|>` and padding `<|endoftext|>`.

    Args:
        words: multi-character strings which become single tokens, such as `\\boxed{`.
        max_length: `model_max_length` of the tokenizer, in tokens.

    Raises:
        ValueError: a word is shorter than two characters, repeated, or not printable ASCII.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    for word in words:
        if len(word) < 2 or not set(word) <= set(CHARACTERS):
            raise ValueError(f"tokenizer word {word!r}: must have at least two characters, all printable ASCII")
    pieces = [*ROLES, *words]
    if len(set(pieces)) != len(pieces):
        raise ValueError("tokenizer words: every word may occur only once, and roles are already in the list")
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS, *pieces])}
    longest_first = sorted(pieces, key=lambda piece: (-len(piece), piece))
    pattern = "|".join([*(re.escape(piece) for piece in longest_first), r"[\s\S]"])

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

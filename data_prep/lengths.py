"""A model's tokenizer, checked, and the lengths of chats under its template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from common.errors import ConfigError
from common.models import load_tokenizer
from data_prep.tables import BATCH_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXCHANGE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def checked_tokenizer(
    directory: Path, *, chat_template: Path | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, after checking that its template and end-of-sequence token agree with the model.

    Raises:
        ConfigError: no chat template, or the token that ends a turn is not one that stops generation.
    """
    from transformers import AutoConfig, GenerationConfig

    template = None if chat_template is None else str(chat_template)
    tokenizer = load_tokenizer(directory, chat_template=template, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise ConfigError(f"{directory}: the tokenizer has no chat template; set model.chat_template to a Jinja file")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{directory}: the tokenizer has no eos_token; set it in tokenizer_config.json")
    if (directory / "generation_config.json").is_file():
        stops, file = GenerationConfig.from_pretrained(directory).eos_token_id, "generation_config.json"
    else:
        stops, file = (
            AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code).eos_token_id,
            "config.json",
        )
    stops = set(stops if isinstance(stops, list) else [stops])
    if tokenizer.eos_token_id not in stops:
        raise ConfigError(
            f"{directory}: eos_token_id is {tokenizer.eos_token_id} ({tokenizer.eos_token}) in the tokenizer, "
            f"{sorted(map(str, stops))} in {file}; make them agree"
        )
    ids = encode_chats(tokenizer, [_EXCHANGE])[0]
    if not stops & set(ids[-3:]):
        raise ConfigError(
            f"{directory}: the chat template ends a turn with {tokenizer.decode(ids[-3:])!r}, without an eos_token_id "
            f"of {file}, so no response would stop; set model.eos to the token that ends a turn, or model.chat_template"
        )
    return tokenizer


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]], prompt: bool = False
) -> list[list[int]]:
    """Token ids of each chat under the tokenizer's template, ending in the assistant's header when `prompt`."""
    texts = [str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)) for chat in chats]
    return tokenizer(texts, add_special_tokens=False).input_ids


def count_splits(
    tokenizer: PreTrainedTokenizerBase, output: Path, data: Any, beat: Callable[[], None]
) -> dict[str, dict[str, int]]:
    """For sft_train and sft_val: `chats`, their `tokens` after truncation, and of these the `response_tokens`.

    Response tokens are what training supervises: every token of an assistant turn after its header.
    """
    splits = {}
    for split in ("sft_train", "sft_val"):
        counts: Counter[str] = Counter()
        for batch in pq.ParquetFile(output / f"{split}.parquet").iter_batches(BATCH_ROWS, columns=["messages"]):
            counts.update(count_tokens(tokenizer, batch.column("messages").to_pylist(), data))
            beat()
        splits[split] = dict(counts)
    return splits


def count_tokens(tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]], data: Any) -> dict[str, int]:
    """`chats`, `tokens` and `response_tokens` of some chats; see `count_splits`."""
    turns = [(row, at) for row, chat in enumerate(chats) for at, turn in enumerate(chat) if turn["role"] == "assistant"]
    headers = encode_chats(tokenizer, [chats[row][:at] for row, at in turns], prompt=True)
    answers = encode_chats(tokenizer, [chats[row][: at + 1] for row, at in turns])
    lengths = {row: len(ids) for (row, _), ids in zip(turns, answers, strict=True)}  # the last turn is an answer
    responses = 0
    for (row, _), header, answer in zip(turns, headers, answers, strict=True):
        first = max(0, lengths[row] - data.max_length) if data.on_long_row == "truncate_left" else 0
        start, end = max(len(header), first + 1), min(len(answer), first + data.max_length)  # never token 0
        responses += max(0, end - start)
    tokens = sum(min(length, data.max_length) for length in lengths.values())
    return {"chats": len(chats), "tokens": tokens, "response_tokens": responses}

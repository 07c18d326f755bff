"""A model's tokenizer, checked, and how long the training rows of chats are under its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.chats import Renderer, renderer_for, template_arguments
from common.errors import ConfigError
from common.models import load_tokenizer, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A model's embedding may have rows beyond its tokenizer's ids: padding to a multiple, ids kept for later.
SPARE_SHARE, SPARE_ROWS = 0.1, 1024


def checked_tokenizer(
    directory: Path,
    *,
    chat_template: Path | None = None,
    trust_remote_code: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, after checking that its ids and its end-of-sequence token are the model's own.

    arguments: variables of the chat template.

    Raises:
        ConfigError: no chat template, ids that are not the model's, or a token that ends a turn and does not stop
            generation.
    """
    template = None if chat_template is None else str(chat_template)
    tokenizer = load_tokenizer(directory, chat_template=template, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise ConfigError(f"{directory}: the tokenizer has no chat template; set model.chat_template to a Jinja file")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{directory}: the tokenizer has no eos_token; set it in tokenizer_config.json")
    check_vocabulary(directory, tokenizer)
    stops, file = stop_tokens(directory, trust_remote_code)
    if tokenizer.eos_token_id not in stops:
        raise ConfigError(
            f"{directory}: eos_token_id is {tokenizer.eos_token_id} ({tokenizer.eos_token}) in the tokenizer, "
            f"{sorted(map(str, stops))} in {file}; make them agree"
        )
    _check_end(directory, Renderer(tokenizer, template_arguments=arguments), stops, file)
    return tokenizer


def check_vocabulary(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError where the tokenizer in `directory` is not the one of the model there, by its number of ids."""
    if not (directory / "config.json").is_file():
        return
    rows, ids = vocabulary_size(directory), max(tokenizer.get_vocab().values()) + 1
    if ids > rows or ids + max(SPARE_ROWS, SPARE_SHARE * rows) < rows:
        raise ConfigError(
            f"{directory}: the tokenizer has {ids} ids, the model's vocab_size is {rows}; this is another model's "
            "tokenizer: put the model's own beside its weights"
        )


def stop_tokens(directory: Path, trust_remote_code: bool = False) -> tuple[set[Any], str]:
    """The ids at which generation stops, and the file of the model that says so."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        stops, file = GenerationConfig.from_pretrained(directory).eos_token_id, "generation_config.json"
    else:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        stops, file = config.eos_token_id, "config.json"
    return set(stops if isinstance(stops, list) else [stops]), file


@dataclass(frozen=True)
class Measured:
    """The training rows of one chat, after truncation: their `tokens`, and of these the `supervised` ones; of a prompt
    only its length.

    longest: tokens of the longest before truncation. answered: every row keeps some of its last answer.
    """

    tokens: list[int]
    supervised: list[int]
    longest: int
    answered: bool


class ChatLengths:
    """Measures chats and prompts with a model's tokenizer under the recipe's `model` and `data` sections."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: Any, data: Any):
        self.renderer, self.data = renderer_for(tokenizer, model, data), data

    @classmethod
    def of_model(cls, directory: Path, model: Any, data: Any, chat_template: Path | None = None) -> ChatLengths:
        """For the model in `directory`.

        Raises ConfigError as `checked_tokenizer` does.
        """
        tokenizer = checked_tokenizer(
            directory,
            chat_template=chat_template,
            trust_remote_code=model.trust_remote_code,
            arguments=template_arguments(model),
        )
        return cls(tokenizer, model, data)

    def chats(
        self, chats: Sequence[Sequence[dict]], tools: Sequence[Any] | None = None
    ) -> list[Measured | ConfigError]:
        """What each chat becomes; the error stands in the place of one that the template refuses."""
        found = self.renderer.many(zip(chats, tools or [None] * len(chats), strict=True))
        return [rows if isinstance(rows, ConfigError) else self._measured(rows) for rows in found]

    def prompts(
        self, chats: Sequence[Sequence[dict]], tools: Sequence[Any] | None = None
    ) -> list[Measured | ConfigError]:
        """The length of each prompt, the assistant's header included."""
        found = self.renderer.prompts(chats, tools)
        return [ids if isinstance(ids, ConfigError) else Measured([], [], len(ids), True) for ids in found]

    def _measured(self, rows: Sequence[Any]) -> Measured:
        limit, left = self.data.max_length, self.data.on_long_row == "truncate_left"
        tokens, supervised, answered = [], [], True
        for row in rows:
            first = max(0, len(row.ids) - limit) if left else 0
            kept = row.supervised[first : first + limit]
            tokens.append(len(kept))
            supervised.append(sum(kept[1:]))  # never token 0
            answered &= _last_answer(row.supervised) < first + limit
        return Measured(tokens, supervised, max(len(row.ids) for row in rows), answered)


def _last_answer(supervised: list[int]) -> int:
    """Where the last run of supervised tokens begins."""
    end = len(supervised) - 1 - supervised[::-1].index(1)
    while end and supervised[end - 1]:
        end -= 1
    return end


def _check_end(directory: Path, renderer: Renderer, stops: set[Any], file: str) -> None:
    """Raise ConfigError where the template ends turns with a token that does not stop the model in `directory`."""
    ends = renderer.template.ends
    if ends.last is None and ends.earlier is None:
        raise ConfigError(
            f"{directory}: {renderer.template.name} ends a turn with nothing, so no response would stop; set "
            "model.chat_template to one that writes an EOS"
        )
    if not stops & {ends.last, ends.earlier}:
        end = next(end for end in ends if end is not None)
        raise ConfigError(
            f"{directory}: {renderer.template.name} ends a turn with {renderer.template.token(end)}, not an "
            f"eos_token_id of {file}, so no response would stop; set model.eos to the token that ends a turn, or "
            "model.chat_template"
        )


def encode_chats(renderer: Renderer, chats: list[list[dict[str, str]]], prompt: bool = False) -> list[list[int]]:
    """Token ids of each chat under the renderer's template, ending in the assistant's header when `prompt`.

    Raises ConfigError where the template refuses a chat.
    """
    found: list[Any] = renderer.prompts(chats) if prompt else renderer.many((chat, None) for chat in chats)
    for rows in found:
        if isinstance(rows, ConfigError):
            raise rows
    return found if prompt else [rows[0].ids for rows in found]

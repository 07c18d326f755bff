"""From chat messages to the prompt's text and token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common.errors import ConfigError
from common.models import load_tokenizer


@dataclass(frozen=True)
class Prompt:
    """What the model reads: its text and token ids."""

    text: str
    ids: tuple[int, ...]


class Prompter:
    """The tokenizer of a Hugging Face directory, applied as `chat` (its template) or `plain` (for base models: the
    contents of the messages joined by blank lines).

    chat_template: a Jinja file that replaces the tokenizer's own template.
    """

    def __init__(self, model: Path, chat_template: Path | str | None = None, trust_remote_code: bool = False):
        self.model = model
        template = None if chat_template is None else str(chat_template)
        self.tokenizer = load_tokenizer(model, chat_template=template, trust_remote_code=trust_remote_code)

    def prompt(self, messages: Sequence[dict], style: str = "chat") -> Prompt:
        """The prompt of `messages` ({role, content}). Raises ConfigError for `chat` without a template."""
        if style == "plain":
            text = "\n\n".join(message["content"] for message in messages)
            return Prompt(text, tuple(self.tokenizer(text)["input_ids"]))
        if style != "chat":
            raise ConfigError(f"prompting: {style!r} is not one of chat, plain")
        if not self.tokenizer.chat_template:
            raise ConfigError(f"{self.model}: the tokenizer has no chat template; set model.chat_template or use plain")
        text = cast(str, self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        return Prompt(text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

"""From chat messages to the prompt's text and token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.chats import Renderer
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

    chat_template: a Jinja file that replaces the tokenizer's own template. template_arguments: its variables.
    """

    def __init__(
        self,
        model: Path,
        chat_template: Path | str | None = None,
        trust_remote_code: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
    ):
        self.model = model
        template = None if chat_template is None else str(chat_template)
        self.template_arguments = dict(template_arguments or {})
        self.tokenizer = load_tokenizer(model, chat_template=template, trust_remote_code=trust_remote_code)

    def prompt(self, messages: Sequence[dict], style: str = "chat", tools: list | None = None) -> Prompt:
        """The prompt of `messages` ({role, content}) and, for `chat`, the functions that it may call.

        Raises ConfigError for `chat` where there is no template or it refuses the messages.
        """
        if style == "plain":
            text = "\n\n".join(message["content"] for message in messages)
            return Prompt(text, tuple(self.tokenizer(text)["input_ids"]))
        if style != "chat":
            raise ConfigError(f"prompting: {style!r} is not one of chat, plain")
        if not self.tokenizer.chat_template:
            raise ConfigError(f"{self.model}: the tokenizer has no chat template; set model.chat_template or use plain")
        text, ids = self.renderer.prompt(messages, tools)
        return Prompt(text, tuple(ids))

    @cached_property
    def renderer(self) -> Renderer:
        """Chats as training rows, only the last answer supervised."""
        return Renderer(self.tokenizer, template_arguments=self.template_arguments, turns="last")

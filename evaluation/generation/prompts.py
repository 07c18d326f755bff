"""From chat messages to the prompt's text and token ids."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass


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

    def __init__(self, model: pathlib.Path, chat_template: pathlib.Path | None = None, trust_remote_code: bool = False):
        from transformers import AutoTokenizer

        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        if chat_template is not None:
            self.tokenizer.chat_template = pathlib.Path(chat_template).read_text()

    def prompt(self, messages: Sequence[dict], style: str = "chat") -> Prompt:
        """The prompt of `messages` ({role, content}). Raises ValueError for `chat` without a template."""
        if style == "plain":
            text = "\n\n".join(message["content"] for message in messages)
            return Prompt(text, tuple(self.tokenizer(text)["input_ids"]))
        if style != "chat":
            raise ValueError(f"prompting: {style!r} is not one of chat, plain")
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.model}: the tokenizer has no chat template; set model.chat_template or use plain")
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return Prompt(text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

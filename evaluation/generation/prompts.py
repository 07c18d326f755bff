"""From chat messages to the prompt's text and token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.chats import Renderer
from common.errors import ConfigError
from common.models import load_tokenizer


@dataclass(frozen=True)
class Form:
    """What goes around a problem.

    style: `chat` (the tokenizer's template) or `plain` (for base models: the contents of the messages joined by blank
    lines). plain: the text of a problem with its answer, `{prompt}` and `{answer}` in it; a prompt ends before the
    answer and before the white space in front of it, which the model writes itself. shots: (problem, answer) pairs that
    come first, as turns after the system message, or as plain text with blank lines between. prefill: how the answer
    begins; it is part of what the model reads.
    """

    style: str = "chat"
    plain: str = "{prompt}\n\n{answer}"
    shots: tuple[tuple[str, str], ...] = field(default=())
    prefill: str = ""

    def __post_init__(self):
        if self.style not in ("chat", "plain"):
            raise ConfigError(f"prompting: {self.style!r} is not one of chat, plain")
        before, prompt, after = self.plain.partition("{prompt}")
        if not prompt or after.count("{answer}") != 1 or "{answer}" in before or "{prompt}" in after:
            raise ConfigError(f"plain: {self.plain!r} must hold {{prompt}} and after it {{answer}}, once each")


@dataclass(frozen=True)
class Prompt:
    """What the model reads: its text and token ids."""

    text: str
    ids: tuple[int, ...]


class Prompter:
    """The tokenizer of a Hugging Face directory, applied to chats.

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

    def prompt(self, messages: Sequence[dict], form: Form | str = "chat", tools: Any = None) -> Prompt:
        """The prompt of `messages` ({role, content}) and, for `chat`, the functions that it may call (or JSON text).

        form: or a style alone. Raises ConfigError for an unknown style, for `plain` where there are functions, and for
        `chat` where there is no template or it refuses the messages.
        """
        form = Form(form) if isinstance(form, str) else form
        if form.style == "plain":
            if tools:
                raise ConfigError(
                    "prompting: plain text shows no tools; set prompting: chat, or leave such problems out"
                )
            text = _plain(messages, form)
            return Prompt(text, tuple(self.tokenizer(text)["input_ids"]))
        if not self.tokenizer.chat_template:
            raise ConfigError(f"{self.model}: the tokenizer has no chat template; set model.chat_template or use plain")
        first = next((place for place, one in enumerate(messages) if one["role"] != "system"), len(messages))
        shots = [
            {"role": role, "content": content}
            for shot in form.shots
            for role, content in zip(("user", "assistant"), shot, strict=True)
        ]
        text, ids = self.renderer.prompt([*messages[:first], *shots, *messages[first:]], tools)
        if form.prefill:
            text += form.prefill
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prompt(text, tuple(ids))

    @cached_property
    def renderer(self) -> Renderer:
        """Chats as training rows, only the last answer supervised."""
        return Renderer(self.tokenizer, template_arguments=self.template_arguments, turns="last")


def _plain(messages: Sequence[dict], form: Form) -> str:
    body = "\n\n".join(message["content"] for message in messages)
    # Not str.format: problems are full of braces.
    before, _, after = form.plain.partition("{prompt}")
    between, _, end = after.partition("{answer}")
    shots = [f"{before}{problem}{between}{answer}{end}\n\n" for problem, answer in form.shots]
    return "".join([*shots, before, body, between.rstrip(), form.prefill])

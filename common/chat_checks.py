"""What is refused of a chat because training on it would lose or confuse something."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.chat_template import ChatTemplate
from common.errors import ConfigError

_NAME = "jolpf"  # of a function that no chat has
_WORDS = re.compile(r"\w+")


def no_end_in_text(template: ChatTemplate, chat: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError for text in which the tokenizer would read the end of a turn."""
    ends = {index for index in (*template.ends, template.eos) if index is not None}
    for token in map(template.token, sorted(ends)):
        for number, message in enumerate(chat, 1):
            if token in (message["content"] or ""):
                raise ConfigError(
                    f"turn {number} ({message['role']}): its text has {token}, which would end the turn there; write "
                    "it in another way or leave the row out"
                )


def nothing_left_out(template: ChatTemplate, chat: Sequence[Mapping[str, Any]], tools: list | None, whole: str) -> None:
    """Raise ConfigError where the text `whole` of a chat lacks a message, a call or a tool.

    Thinking that a template drops from earlier turns is its family's way and passes.
    """
    for number, message in enumerate(chat, 1):
        content = (message["content"] or "").split("</think>")[-1].strip()
        if content and content not in whole and not _mostly_in(content, whole):
            raise left_out(template, number, message, "its content")
        if message.get("tool_calls") and not _shows_calls(template, chat[:number], tools):
            raise left_out(template, number, message, "its tool_calls")
    tools_shown(template, chat, tools, whole, prompt=False)


def tools_shown(
    template: ChatTemplate, chat: Sequence[Mapping[str, Any]], tools: list | None, text: str, *, prompt: bool
) -> None:
    """Raise ConfigError where the `text` of a chat, with the assistant's header if `prompt`, shows none of its tools.

    A chat with calls passes: DeepSeek's templates write calls and leave what may be called to the system prompt.
    """
    if not tools or any(message.get("tool_calls") for message in chat):
        return
    try:
        without = template.render(chat, None, prompt)
    except Exception:  # it takes calls of declared tools alone
        return
    if without == text:
        raise ConfigError(f"turn 1 ({chat[0]['role']}): {template.name} leaves out the tools; use another one")


def left_out(template: ChatTemplate, number: int, message: Mapping[str, Any], what: str) -> ConfigError:
    """The error for a part of a turn that the template does not write."""
    return ConfigError(
        f"turn {number} ({message['role']}): {template.name} leaves out {what}; use another role or "
        "model.chat_template, or leave the row out"
    )


def _shows_calls(template: ChatTemplate, chat: Sequence[Mapping[str, Any]], tools: Any) -> bool:
    """Whether the calls of the last message make a difference to what the template writes."""
    renamed = [
        {**call, "function": {**call["function"], "name": f"{_NAME}{at}"}}
        for at, call in enumerate(chat[-1]["tool_calls"])
    ]
    try:
        text, other = (
            template.render([*chat[:-1], {**chat[-1], "tool_calls": calls}], tools, False)
            for calls in (chat[-1]["tool_calls"], renamed)
        )
    except Exception:  # it looks at names, so it reads them
        return True
    return text != other


def _mostly_in(content: str, whole: str) -> bool:
    """Whether a text stands in another one that escapes or respells some of it."""
    words = set(_WORDS.findall(content))
    return bool(words) and 2 * len(words & set(_WORDS.findall(whole))) > len(words)

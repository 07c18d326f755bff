"""`messages`: a list of {role, content}, as chat templates take it; a prompt is `prompt`, text or such a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.formats.contract import Fields, Format, present, said

QUESTIONS = ("prompt", "question", "problem")


def fits(raw: Mapping[str, Any], part: str) -> bool:
    return present(raw, "messages") or (part == "prompt" and present(raw, *QUESTIONS))


def read(fields: Fields, part: str) -> Any:
    if part == "prompt" and fields.has(*QUESTIONS):
        return asked(fields, *QUESTIONS)
    return fields.nested("messages", fields.take("messages"))


def asked(fields: Fields, *names: str) -> Any:
    """A prompt that is text, or a list of messages, perhaps as JSON text."""
    prompt = fields.take(*names)
    if isinstance(prompt, str):
        if not prompt.lstrip().startswith('[{"'):
            return [said("user", prompt)]
        prompt = fields.nested("prompt", prompt)
    return prompt


MESSAGES = Format(
    "messages",
    {"chat": "messages", "prompt": "prompt (text or messages) and answer"},
    fits,
    read,
)

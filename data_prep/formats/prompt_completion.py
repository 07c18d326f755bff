"""`prompt_completion`: `prompt` and `completion` (or `response`), each text or a list of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.formats.contract import Fields, Format, present, said
from data_prep.formats.messages import asked

ANSWERS = ("completion", "response")


def fits(raw: Mapping[str, Any], part: str) -> bool:
    return "prompt" in raw and (present(raw, *ANSWERS) or part == "prompt")


def read(fields: Fields, part: str) -> Any:
    before = asked(fields, "prompt")
    if part == "prompt":
        return before
    after = fields.take(*ANSWERS)
    if isinstance(after, str):
        after = [said("assistant", after)]
    return [*before, *after] if isinstance(before, list) and isinstance(after, list) else None


PROMPT_COMPLETION = Format(
    "prompt_completion",
    {"chat": "prompt and completion", "prompt": "prompt and answer"},
    fits,
    read,
)

"""`sharegpt`: `conversations`, a list of {from, value}, perhaps with `system` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.formats.contract import Fields, Format, present, said

COLUMNS = ("conversations", "conversation")


def fits(raw: Mapping[str, Any], part: str) -> bool:
    return present(raw, *COLUMNS)


def read(fields: Fields, part: str) -> Any:
    turns = fields.nested("conversations", fields.take(*COLUMNS))
    system = fields.take("system")
    if not isinstance(system, str) or not system or not isinstance(turns, list):
        return turns
    return [said("system", system), *turns]


SHAREGPT = Format(
    "sharegpt",
    {"chat": "conversations", "prompt": "conversations (ending with the question) and answer"},
    fits,
    read,
)

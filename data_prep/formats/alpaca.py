"""`alpaca`: `instruction`, perhaps `input`, and `output`; `system` and `history` ([question, answer] pairs) before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.formats.contract import Fields, Format, present, said
from data_prep.sources.contract import RowError


def fits(raw: Mapping[str, Any], part: str) -> bool:
    return present(raw, "instruction") and (part == "prompt" or "output" in raw or "response" in raw)


def read(fields: Fields, part: str) -> Any:
    asked, given = fields.take("instruction"), fields.take("input")
    for name, value in (("instruction", asked), ("input", given or "")):
        if not isinstance(value, str):
            raise RowError("broken", f"{fields.where}: {name} must be text, is {type(value).__name__}")
    turns = _before(fields)
    turns.append(said("user", f"{asked}\n{given}" if given else asked))
    if part == "chat":
        turns.append(said("assistant", fields.take("output", "response")))
    return turns


def _before(fields: Fields) -> list[dict[str, Any]]:
    system, history = fields.take("system"), fields.nested("history", fields.take("history")) or []
    turns = [said("system", system)] if system else []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError("broken", f"{fields.where}: history must be a list of [question, answer] pairs")
    for question, answer in history:
        turns += [said("user", question), said("assistant", answer)]
    return turns


ALPACA = Format(
    "alpaca",
    {"chat": "instruction, input, output", "prompt": "instruction, input and answer (or output, the answer alone)"},
    fits,
    read,
    lambda fields: fields.take("answer", "output"),
)

"""`verl`: the columns of verl's own data; a prompt has `reward_model.ground_truth`, a chat is `messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.formats.contract import Fields, Format, present
from data_prep.formats.messages import asked
from data_prep.sources.contract import RowError


def fits(raw: Mapping[str, Any], part: str) -> bool:
    return present(raw, "messages") if part == "chat" else present(raw, "reward_model") and present(raw, "prompt")


def read(fields: Fields, part: str) -> Any:
    if part == "chat":
        return fields.nested("messages", fields.take("messages"))
    fields.take("ability")  # verl writes it and reads it nowhere
    extra = fields.nested("extra_info", fields.take("extra_info")) or {}
    for name, value in extra.items() if isinstance(extra, Mapping) else ():
        if value is not None and name not in ("index", "split", "id"):  # places of the row, which prepare numbers anew
            fields.strange(f"extra_info.{name}")
    return asked(fields, "prompt")


def answer(fields: Fields) -> Any:
    model = fields.nested("reward_model", fields.take("reward_model"))
    if not isinstance(model, Mapping):
        raise RowError("no answer", f"{fields.where}: reward_model must be {{style, ground_truth}}")
    if model.get("style") not in (None, "rule"):
        raise RowError(
            "broken", f"{fields.where}: reward_model.style is {model['style']!r}; allowed: rule (a reference answer)"
        )
    for name, value in model.items():
        if value is not None and name not in ("style", "ground_truth"):
            fields.strange(f"reward_model.{name}")
    return model.get("ground_truth")


VERL = Format(
    "verl",
    {"chat": "messages", "prompt": "data_source, prompt, reward_model.ground_truth"},
    fits,
    read,
    answer,
)

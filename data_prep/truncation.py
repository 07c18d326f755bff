"""The recipe's settings of the training rows, as the data set reads them from verl's `data` section."""

from __future__ import annotations

from typing import Any

from common.chats import POLICY, template_arguments

# What `data.on_long_row` is called in verl's configuration.
TRUNCATION = {"error": "error", "drop": "error", "truncate_left": "left", "truncate_right": "right"}


def dataset_config(data: Any, model: Any = None) -> dict[str, Any]:
    """The `data.*` entries that decide tokens and masks, from the recipe's `data` and `model` sections."""
    return {
        "pad_mode": "no_padding",
        "max_length": data.max_length,
        "truncation": TRUNCATION[data.on_long_row],
        "apply_chat_template_kwargs": template_arguments(model),
        **{name: getattr(data, name) for name in POLICY if hasattr(data, name)},
    }

"""How rows say the same thing: one file for each format, chosen by `data.format`. Imports nothing heavy."""

from __future__ import annotations

from common.registry import Registry
from data_prep.formats.contract import Fields, Format, Part
from data_prep.sources.contract import RowError

__all__ = ["AUTO", "Fields", "Format", "load", "names", "recognised"]

AUTO = "auto"
_registry: Registry[Format] = Registry(
    "data_prep.formats", Format, "data format", apart=("contract", "turns", "answers")
)
# A row may look like two formats: the one with more columns of its own comes first.
_ORDER = {
    "chat": ("messages", "sharegpt", "prompt_completion", "alpaca"),
    "prompt": ("verl", "messages", "sharegpt", "alpaca"),
}


def names() -> list[str]:
    """The formats of this package."""
    return _registry.names()


def load(name: str) -> Format:
    """The format called `name`. Raises ConfigError for an unknown name."""
    return _registry.load(name)


def recognised(fields: Fields, part: Part, name: str = AUTO) -> Format:
    """The format of a row of `part` ("chat" or "prompt"): the one called `name`, or the first that it looks like.

    Raises RowError (`broken`) where it has not the fields of that format, or of any.
    """
    asked = [load(known) for known in (_ORDER[part] if name == AUTO else (name,))]
    for format in asked:
        if format.fits(fields.raw, part):
            return format
    present = ", ".join(map(str, fields.raw)) or "none"
    wanted = "; ".join(f"{format.name}: {format.columns[part]}" for format in asked)
    raise RowError(
        "broken", f"{fields.where}: the fields ({present}) are not those of a {part} (data.format={name}; {wanted})"
    )

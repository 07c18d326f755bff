"""Overrides as people type them, by Hydra's grammar where it can read them and as plain text where it cannot.

Hydra's grammar refuses many characters without quotes (`<`, `~`, `=`, `(`, `#`, umlauts), and the quotes that a user
types are taken by the shell. What the grammar refuses is text, split at commas as a sweep is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from launch.recipe import fields
from launch.recipe.library import RecipeError, close_to

_OVERRIDE = re.compile(r"(\+{1,2}|~)?([^=]*)=(.*)", re.DOTALL)
_CALL = re.compile(r"\s*(\w+)\s*\(.*\)\s*", re.DOTALL)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Assignment:
    """One override with one value: `key=value`, or the choice of a config group."""

    key: str
    value: Any
    is_group: bool

    def __str__(self) -> str:
        return f"{self.key}={shown(self.value)}"


def shown(value: Any) -> str:
    """A value as an override writes it; a text that would read as another value is in quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    text = str(value)
    return f"'{text}'" if isinstance(value, str) and text.lower() in ("null", "true", "false", "") else text


def parse(texts: Sequence[str], schema: type[BaseModel], choices: dict[str, list[str]]) -> list[list[Assignment]]:
    """Every override as the list of its alternatives (one, unless it is a sweep axis).

    Args:
        choices: config group -> its files.

    Raises:
        RecipeError: one line that names the override and the remedy.
    """
    return [_alternatives(text, schema, choices) for text in texts]


def _alternatives(text: str, schema: type[BaseModel], choices: dict[str, list[str]]) -> list[Assignment]:
    split = _OVERRIDE.fullmatch(text)
    if text.startswith("~"):
        key = text[1:].partition("=")[0]
        raise RecipeError(f"override {text!r}: deleting is not supported; set {key}=null")
    if split is None:
        raise RecipeError(f"override {text!r}: write key=value, without spaces around the =")
    key, raw = split[2], split[3]
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key):
        raise RecipeError(f"override {text!r}: {key!r} names no field; write key=value, such as sft.lr=1e-5")
    if not raw.strip():
        raise RecipeError(
            f"override {text!r}: there is no value; write {key}=null for none, {key}=\"''\" for an empty one"
        )
    values = _read(key, raw, choices.get(key))
    kind = fields.annotation(schema, key.split("."))
    lists = fields.holds_list(kind) and not fields.holds_text(kind)
    if len(values) > 1 and lists and not any(isinstance(value, list) for value in values):
        raise RecipeError(f"override {text!r}: a comma makes a sweep; for a list write {key}=[{raw.strip()}]")
    return [assignment(key, value, schema, choices) for value in values]


def assignment(key: str, value: Any, schema: type[BaseModel], choices: dict[str, list[str]]) -> Assignment:
    """`key=value`, with its numbers as the schema reads them. Raises RecipeError for an unknown choice of a group."""
    if key not in choices or isinstance(value, dict):
        check_path(key, schema)
        return Assignment(key, fields.settled(schema, key.split("."), value), False)
    if str(value) not in choices[key]:
        allowed = f"{close_to(str(value), choices[key])}allowed: {', '.join(choices[key])} (recipes/{key}/*.yaml)"
        raise RecipeError(f"override {key}={shown(value)}: {allowed}")
    return Assignment(key, str(value), True)


def check_path(key: str, schema: type[BaseModel]) -> None:
    """Refuses a path that goes on below a name of the user's: such names hold no dot."""
    parts = key.split(".")
    for place in range(1, len(parts) - 1):
        above = fields.annotation(schema, parts[:place])
        if fields.holds_names(above) and fields.holds_text(fields.annotation(schema, parts[: place + 1])):
            name = ".".join(parts[place:])
            raise RecipeError(
                f"override {key}: names in {'.'.join(parts[:place])} hold no dot; choose another than {name}"
            )


def _read(key: str, raw: str, choices: list[str] | None) -> list[Any]:
    """The alternatives of a value: as Hydra reads them, else the texts between commas."""
    from hydra.errors import HydraException

    from launch.recipe.grammar import values

    try:
        return values(key, raw, choices)
    except HydraException as error:
        reason = " ".join(str(error).split())
    return [one for text in _between_commas(raw) for one in _loosely(key, text, choices, f"{key}={raw}: {reason}")]


def _loosely(key: str, text: str, choices: list[str] | None, refusal: str) -> list[Any]:
    """The alternatives of a part of a value that Hydra's grammar refuses as a whole; in lists and mappings too."""
    from hydra.errors import HydraException

    from launch.recipe.grammar import values

    try:
        return values(key, text, choices)
    except HydraException:
        if _is_plain(text):
            return [text]
    parts = _between_commas(text[1:-1]) if text[-1:] in ("]", "}") else []
    if text.startswith("[") and parts:
        return [[one for part in parts for one in _loosely(key, part, choices, refusal)]]
    if text.startswith("{") and parts and all(":" in part for part in parts):
        split = [part.partition(":") for part in parts]
        return [{name.strip(): _loosely(key, item.strip(), choices, refusal)[0] for name, _, item in split}]
    raise RecipeError(
        f"override {refusal}; write key=value, key=a,b for a sweep, or quote the text twice: {key}=\"'...'\""
    )


def _is_plain(text: str) -> bool:
    """Whether what Hydra's grammar refuses is meant as text: neither a list nor a mapping, quotes or a call."""
    from launch.recipe.grammar import FUNCTIONS

    call = _CALL.fullmatch(text)
    return bool(text) and text[0] not in "[{'\"" and not (call is not None and call[1] in FUNCTIONS)


def _between_commas(raw: str) -> list[str]:
    """The parts between the commas that stand outside brackets and quotes, without spaces around them."""
    parts, depth, quote, before = [""], 0, "", ","
    for letter in raw:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in ",:[{":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth = max(0, depth - 1)
        elif letter == "," and not depth:
            parts.append("")
            before = letter
            continue
        parts[-1] += letter
        before = before if letter.isspace() else letter
    return [part.strip() for part in parts]
